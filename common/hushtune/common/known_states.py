"""Parts of a base whose outcome is known, so that a pass leaves them out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn


class SeenEnoughError(Exception):
    """Ends a pass through the base where its first adapted block begins."""


class PassThrough(nn.Module):
    """Stands in for a block whose output is known."""

    def forward(self, hidden_states: Tensor, *_args: Any, **_kwargs: Any) -> Tensor:
        return hidden_states


def hidden_argument(args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> Tensor:
    """The states that a block is given."""
    return args[0] if args else kwargs["hidden_states"]


def with_hidden(
    args: tuple[Any, ...], kwargs: dict[str, Any], hidden: Tensor
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """What a block is given, with other states."""
    if args:
        return (hidden, *args[1:]), kwargs
    return args, {**kwargs, "hidden_states": hidden}
