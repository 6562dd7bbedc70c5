"""The targets of all rows of a task."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor

from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.units import Rows


class TargetRows(Protocol):
    """Targets by row."""

    def take(self, rows: Rows) -> Tensor:
        """The targets of some rows, ``(b, ...)``."""
        ...


@dataclass(frozen=True, eq=False)
class DenseTargets:
    """One target of a fixed shape for each row."""

    values: Tensor  # (n, ...)

    def take(self, rows: Rows) -> Tensor:
        """See ``TargetRows``."""
        return self.values[torch.from_numpy(rows)]

    def replaced(self, rows: Rows, values: Tensor) -> DenseTargets:
        """Other targets for some rows."""
        changed = self.values.clone()
        changed[torch.from_numpy(rows)] = values
        return DenseTargets(changed)


@dataclass(frozen=True, eq=False)
class TokenTargets:
    """A target for each token of each row, padded as the tokens are."""

    tokens: TokenRows  # in place of ids the targets; the padding is IGNORED

    def take(self, rows: Rows) -> Tensor:
        """See ``TargetRows``: ``(b, t)``."""
        return self.tokens.inputs(rows)["input_ids"]
