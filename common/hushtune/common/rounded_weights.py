"""Frozen weights in bfloat16 beside their own float32, for products in that precision.

Autocast rounds a weight anew in each pass, a fifth of the time where rows are few and short. Of a
frozen one the outcome is always the same, so it is kept: 2 bytes more a value, and the same bits.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def keep_rounded(model: nn.Module, *, but: Iterable[nn.Parameter]) -> None:
    """Let a model's linear layers keep their rounded weights, but for those that hold one of
    ``but``, which are trained."""
    trained = {id(parameter) for parameter in but}
    for module in model.modules():
        kind = _KINDS.get(type(module))
        if kind and trained.isdisjoint(id(own) for own in module.parameters(recurse=False)):
            module.__class__ = kind


def _rounded(layer: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor | None] | None:
    """Weight and bias of a layer as autocast would round them; None where it would not."""
    device = inputs.device.type
    if not torch.is_autocast_enabled(device) or torch.get_autocast_dtype(device) != torch.bfloat16:
        return None
    weight, bias = cast("tuple[Tensor, Tensor | None]", (layer.weight, layer.bias))
    # What is kept is of these very values: another device, a copy or a change makes it anew.
    now = tuple((t.data_ptr(), t._version, t.device) for t in (weight, bias) if t is not None)
    kept = cast(Any, layer).__dict__.get("_kept")
    if kept is None or kept[0] != now:
        short = weight.detach().bfloat16(), None if bias is None else bias.detach().bfloat16()
        kept = vars(layer)["_kept"] = (now, short)
    return kept[1]


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        kept = _rounded(self, input)
        return super().forward(input) if kept is None else nn.functional.linear(input, *kept)


class _Conv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        kept = _rounded(self, x)
        if kept is None:
            return super().forward(x)
        weight, bias = cast("tuple[Tensor, Tensor]", kept)  # it always has a bias
        return torch.addmm(bias, x.flatten(0, -2), weight).view(*x.shape[:-1], self.nf)


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, Conv1D: _Conv1D}
