"""What the frozen part of the model computes for each row, kept in memory.

Under LoRA in the top blocks the states that enter the first adapted block never change, and while
every factor B is zero neither do the pooled features. One pass over the rows fills both; what there
is no room for is computed anew, in the same shapes and so to the same bits.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields, is_dataclass, replace
from enum import StrEnum
from functools import cached_property
from typing import Any, Protocol, TypeVar, cast

import numpy as np
import torch
from torch import Tensor

from hushtune.common.packing import NARROWEST
from hushtune.common.tasks.units import Piece, Rows, Units

_LADDER = np.array([NARROWEST, *(third * 2**k for k in range(3, 18) for third in (3, 4))])
"""Widths of texts: 16, 24, 32, 48, 64, 96, ... Few, so that few pieces have to be filled up."""
USUAL_WIDTH = 32


class InputRows(Protocol):
    """The inputs of all rows of a task, whatever they are."""

    @cached_property
    def lengths(self) -> Rows:
        """Positions of each row in the base's states, ``(n,)``."""
        ...

    @cached_property
    def widths(self) -> Rows:
        """Positions that each row is padded to, ``(n,)``, from its own length alone; ``(n, s)``
        where its tensors have other sizes beside, which follow."""
        ...

    def inputs(self, rows: Rows) -> Mapping[str, Tensor]:
        """What the base's own forward takes, each ``(b, ...)``."""
        ...


def shapes_of(inputs: InputRows) -> Rows:
    """What the tensors of each row are padded to, ``(n, s)``; positions come first."""
    return inputs.widths.reshape(len(inputs.lengths), -1)


class Padding(StrEnum):
    """What a text is padded to."""

    OWN = "own"  # a width of few, which follows from its own length alone
    ALIKE = "alike"  # the most tokens there may be
    BESIDE = "beside"  # the longest that is computed beside it, and no further


@dataclass(frozen=True)
class TokenRows:
    """Token ids of all rows, one after the other."""

    ids: Tensor  # (total,), int32
    offsets: Rows  # (n + 1,)
    pad_id: int
    max_tokens: int
    padding: Padding = Padding.OWN

    @cached_property
    def lengths(self) -> Rows:
        """Tokens of each row, ``(n,)``."""
        return np.diff(self.offsets)

    @cached_property
    def widths(self) -> Rows:
        """Places that each row is padded to, ``(n,)``: from its own length alone.

        Products of another width round otherwise, by a percent in bfloat16. A row that were padded
        to the longest beside it would so change with it, beyond what clipping bounds.
        """
        return self._padded(self.lengths)

    def _padded(self, lengths: Rows) -> Rows:
        if self.padding is Padding.ALIKE:
            return np.full(len(lengths), self.max_tokens, dtype=np.int64)
        if self.padding is Padding.BESIDE:
            return lengths
        wide = _LADDER[np.searchsorted(_LADDER, lengths)]
        return np.minimum(wide, self.max_tokens)

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """``input_ids`` and ``attention_mask``, each ``(b, t)``, padded to the largest width."""
        lengths = self.offsets[rows + 1] - self.offsets[rows]
        wide = int(self._padded(lengths).max())
        ids = torch.full((len(rows), wide), self.pad_id, dtype=torch.long)
        mask = torch.zeros_like(ids)
        for place, row in enumerate(rows):
            start, size = int(self.offsets[row]), int(lengths[place])
            ids[place, :size] = self.ids[start : start + size]
            mask[place, :size] = 1
        return {"input_ids": ids, "attention_mask": mask}


_Held = TypeVar("_Held")


def padded_alike(rows: _Held) -> _Held:
    """The same inputs, targets or views with all their texts padded to ``max_tokens``."""
    return _padded(rows, Padding.ALIKE)


def padded_to_beside(rows: _Held) -> _Held:
    """The same inputs or targets with each text padded to the longest beside it, unless all are
    padded alike: for looks that promise nothing of each row alone."""
    return _padded(rows, Padding.BESIDE)


def _padded(rows: _Held, padding: Padding) -> _Held:
    if isinstance(rows, TokenRows):
        return rows if rows.padding is Padding.ALIKE else replace(rows, padding=padding)
    if not is_dataclass(rows) or isinstance(rows, type):
        return rows
    held = {field.name: getattr(rows, field.name) for field in fields(rows)}
    texts = {n: _padded(own, padding) for n, own in held.items() if isinstance(own, TokenRows)}
    return cast(_Held, replace(cast(Any, rows), **texts)) if texts else rows


@dataclass(frozen=True)
class Activations:
    """Frozen states of some rows: ``hidden`` ragged over tokens, ``features`` one a row.

    Either may be absent: for want of memory, or since the head is the family's own and reads none.
    """

    rows: Rows  # (n,), sorted
    starts: Rows  # (n + 1,), where each row's hidden states begin
    hidden: Tensor | None  # (tokens of these rows, d)
    features: Tensor | None  # (n, d)

    def padded_hidden(self, rows: Rows, width: int) -> Tensor:
        """``(b, width, d)``, zero where a row has ended."""
        if self.hidden is None:
            raise ValueError("hidden states were not kept")
        out = self.hidden.new_zeros(len(rows), width, self.hidden.shape[1])
        for place, at in enumerate(np.searchsorted(self.rows, rows)):
            start, end = self.starts[at], self.starts[at + 1]
            out[place, : end - start] = self.hidden[start:end]
        return out


def _rows_of(inputs: InputRows, size: int, width: int) -> int:
    """How many rows of some width are computed at once: ``size`` texts of 32 tokens, or as many as
    have as many tokens, up to twice ``size``."""
    if not isinstance(inputs, TokenRows):
        return size
    return min(2 * size, size * USUAL_WIDTH // width)


def in_pieces(inputs: InputRows, units: Units, size: int) -> list[Piece]:
    """Units in pieces of about ``size`` rows, widest first, so that memory peaks early. Of texts
    ``size`` are of 32 tokens: fewer of longer ones, of shorter ones up to twice as many.

    All units of a piece have as many rows as one another, and are padded to the same sizes. How
    many rows are computed at once follows from those and ``size``, and not from how many units
    there are: the last piece is filled up. So the shapes in which a unit is computed follow from
    the unit alone, and what is computed for it does not change with who else is there.
    """
    if not len(units):
        return []
    shapes = np.maximum.reduceat(shapes_of(inputs)[units.rows], units.starts[:-1])  # (units, s)
    order = np.lexsort((units.sizes, *(-shapes.T[::-1])))
    kinds = np.stack([*shapes[order].T, units.sizes[order]])
    changes = np.flatnonzero(np.diff(kinds).any(0)) + 1
    pieces: list[Piece] = []
    for alike in np.split(order, changes):
        rows = _rows_of(inputs, size, int(shapes[alike[0], 0]))
        count = max(1, rows // int(units.sizes[alike[0]]))
        for start in range(0, len(alike), count):
            pieces.append(Piece.filled(units.take(alike[start : start + count]), count))
    return pieces


def side_by_side(inputs: TokenRows, rows: Rows, size: int) -> list[Piece]:
    """Rows of about one width in pieces of about ``size``, widest first; none is filled up."""
    widths = inputs.widths[rows]
    order, start = np.argsort(-widths, kind="stable"), 0
    pieces: list[Piece] = []
    while start < len(rows):
        count = max(1, _rows_of(inputs, size, int(widths[order[start]])))
        chosen = rows[order[start : start + count]]
        pieces.append(Piece(Units.single(chosen), chosen))
        start += count
    return pieces
