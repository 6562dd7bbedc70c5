"""Whose removal a guarantee speaks of: each row by itself, or all rows of a patient or user."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune.common.packing import Packing

Rows = NDArray[np.int64]


@dataclass(frozen=True)
class Units:
    """Rows in units; a unit is drawn, clipped and accounted for as a whole.

    ``rows (n,)`` are indices into a table, unit after unit; unit ``u`` holds
    ``rows[starts[u]:starts[u + 1]]``, at least one row.
    """

    rows: Rows
    starts: Rows  # (num_units + 1,)

    @classmethod
    def single(cls, rows: Rows) -> Units:
        """Every row a unit of its own."""
        return cls(rows, np.arange(len(rows) + 1, dtype=np.int64))

    @classmethod
    def by_code(cls, rows: Rows, codes: Rows) -> Units:
        """Rows of equal ``codes[row]`` together, in the order of the codes, then of the rows."""
        ordered = rows[np.lexsort((rows, codes[rows]))]
        changes = np.flatnonzero(np.diff(codes[ordered])) + 1
        ends = [len(rows)] if len(rows) else []
        return cls(ordered, np.array([0, *changes, *ends], dtype=np.int64))

    @classmethod
    def joined(cls, parts: Sequence[Units]) -> Units:
        """The units of all parts, one part after the other."""
        sizes = np.concatenate([part.sizes for part in parts])
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        return cls(np.concatenate([part.rows for part in parts]), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    @property
    def sizes(self) -> Rows:
        """Rows of each unit, ``(num_units,)``."""
        return np.diff(self.starts)

    @property
    def is_single(self) -> bool:
        """Whether every unit is one row."""
        return len(self) == len(self.rows)

    def take(self, places: Rows) -> Units:
        """The units at some places, in that order."""
        if self.is_single:
            return Units.single(self.rows[places])
        sizes = self.sizes[places]
        starts = np.concatenate([[0], np.cumsum(sizes)]).astype(np.int64)
        # For each wanted row, its place: where its unit begins, plus its place in the unit.
        within = np.arange(starts[-1]) - np.repeat(starts[:-1], sizes)
        return Units(self.rows[np.repeat(self.starts[:-1][places], sizes) + within], starts)

    def at_most(self, limit: int, random: np.random.Generator) -> Units:
        """Each unit with at most ``limit`` of its rows, drawn at random."""
        if not len(self) or int(self.sizes.max()) <= limit:
            return self
        kept = [
            np.sort(random.permutation(self.rows[start:end])[:limit])
            for start, end in zip(self.starts[:-1], self.starts[1:], strict=True)
        ]
        starts = np.concatenate([[0], np.cumsum([len(rows) for rows in kept])]).astype(np.int64)
        return Units(np.concatenate(kept), starts)

    def repeated(self, times: int) -> Units:
        """Each unit with each of its rows so often, one after the other: its views, of which
        ``means`` then are over all."""
        if times == 1:
            return self
        return Units(np.repeat(self.rows, times), self.starts * times)

    def majority(self, labels: Rows) -> Rows:
        """The most frequent label of each unit, the lowest of equals, ``(num_units,)``."""
        if self.is_single:
            return labels[self.rows]
        pairs = zip(self.starts[:-1], self.starts[1:], strict=True)
        return np.array(
            [np.bincount(labels[self.rows[start:end]]).argmax() for start, end in pairs],
            dtype=np.int64,
        )

    def means(self, values: Tensor) -> Tensor:
        """Mean of each unit over its rows: ``(num_rows, ...)`` to ``(num_units, ...)``."""
        if self.is_single:
            return values
        sizes = torch.from_numpy(self.sizes).to(values.device)
        owners = torch.repeat_interleave(torch.arange(len(self), device=values.device), sizes)
        sums = values.new_zeros(len(self), *values.shape[1:]).index_add_(0, owners, values)
        return sums / sizes.view(-1, *[1] * (values.dim() - 1))


@dataclass(frozen=True, slots=True)
class Piece:
    """Units that are computed at once: ``rows`` are theirs and, after them, what fills it up.

    ``packing``: where its rows lie, if their texts lie side by side in one row of places.
    """

    units: Units
    rows: Rows
    packing: Packing | None = None

    @classmethod
    def filled(cls, units: Units, count: int) -> Piece:
        """Units of one size as a piece of ``count`` such units: the first stands for the rest."""
        missing = np.tile(units.rows[: int(units.sizes[0])], count - len(units))
        return cls(units, np.concatenate([units.rows, missing]))
