"""What the frozen part of the model computes for each row, kept in memory.

Under LoRA in the top blocks the states that enter the first adapted block never change, and while
every factor B is zero neither do the pooled features. One pass over the rows fills both.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from hushtune.common.tasks.base import Rows

_WIDTH = 8


@dataclass(frozen=True)
class TokenRows:
    """Token ids of all rows, one after the other."""

    ids: Tensor  # (total,), int32
    offsets: Rows  # (n + 1,)
    pad_id: int
    max_tokens: int

    @property
    def lengths(self) -> Rows:
        """Tokens of each row, ``(n,)``."""
        return np.diff(self.offsets)

    @property
    def widths(self) -> Rows:
        """Places that each row is padded to, ``(n,)``: from its own length alone.

        Products of another width round otherwise, by a percent in bfloat16. A row that were padded
        to the longest beside it would so change with it, beyond what clipping bounds.
        """
        return np.minimum(-(-self.lengths // _WIDTH) * _WIDTH, self.max_tokens)

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, each ``(b, t)``, padded to the largest width."""
        lengths = self.lengths[rows]
        ids = torch.full((len(rows), int(self.widths[rows].max())), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            start, size = int(self.offsets[row]), int(lengths[place])
            ids[place, :size] = self.ids[start : start + size]
            mask[place, :size] = 1
        return {"input_ids": ids, "attention_mask": mask}


@dataclass(frozen=True)
class Activations:
    """Frozen states of all rows: ``hidden`` ragged over tokens, ``features`` one a row.

    Either may be absent: hidden states for want of memory, features where the head is the
    family's own.
    """

    hidden: Tensor | None  # (total, d)
    features: Tensor | None  # (n, d)

    def padded_hidden(self, tokens: TokenRows, rows: Rows) -> Tensor:
        """``(b, t, d)``, zero where a row has ended."""
        if self.hidden is None:
            raise ValueError("hidden states were not kept")
        lengths, width = tokens.lengths[rows], int(tokens.widths[rows].max())
        out = self.hidden.new_zeros(len(rows), width, self.hidden.shape[1])
        for place, row in enumerate(rows):
            start, size = int(tokens.offsets[row]), int(lengths[place])
            out[place, :size] = self.hidden[start : start + size]
        return out


def by_length(tokens: TokenRows, rows: Rows, size: int) -> list[Rows]:
    """Pieces of at most ``size`` rows of one width; widest first, so that memory peaks early."""
    widths = tokens.widths
    order = rows[np.argsort(-widths[rows], kind="stable")]
    alike = np.split(order, np.flatnonzero(np.diff(widths[order])) + 1)
    return [same[start : start + size] for same in alike for start in range(0, len(same), size)]
