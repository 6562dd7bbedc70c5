"""Texts of many widths side by side in one row of places, so that hardly any place is empty.

A piece of a training step has the same number of places whatever lies in it, so that all products
of the base see one shape, and what is computed for a text stays its own. Its texts lie in blocks of
one width: attention (``hushtune.common.packed_attention``), the mean over a text and each example's
gradients are taken block by block.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

NARROWEST = 16
"""Places that any text has at least."""
_LEAST_ROWS = 16
"""Of fewer rows a head's product may round each by its place."""


@dataclass(frozen=True)
class Packing:
    """Where the texts of a piece lie: ``blocks`` of ``(rows, width)``, one after the other from the
    first of its ``places`` on. A text's places follow one another."""

    blocks: tuple[tuple[int, int], ...]
    places: int

    @classmethod
    def of_widths(cls, widths: NDArray[np.int64], places: int) -> Packing:
        """Of texts ``(rows,)``, widest first.

        A block has 1, 2, 4, 8 ... rows: for each shape of a product that oneDNN has not met it
        makes a kernel first, and keeps it.
        """
        found, counts = np.unique(-widths, return_counts=True)
        blocks = [
            (1 << power, -width)
            for width, count in zip(found.tolist(), counts.tolist(), strict=True)
            for power in reversed(range(count.bit_length()))
            if count >> power & 1
        ]
        return cls(tuple(blocks), places)

    @property
    def rows(self) -> int:
        """How many texts there are."""
        return sum(rows for rows, _ in self.blocks)

    @property
    def most_rows(self) -> int:
        """How many there can be, which is how many rows a head computes."""
        return max(_LEAST_ROWS, -(-self.places // NARROWEST))

    @cached_property
    def _sizes(self) -> list[int]:
        taken = [rows * width for rows, width in self.blocks]
        return [*taken, self.places - sum(taken)]

    @cached_property
    def starts(self) -> list[int]:
        """The first place of each row."""
        widths = [width for rows, width in self.blocks for _ in range(rows)]
        return [0, *np.cumsum(widths[:-1]).tolist()]

    def split(self, values: Tensor) -> list[Tensor]:
        """``(places, ...)`` by block, ``(rows, width, ...)`` each."""
        parts = values.split(self._sizes)
        return [part.unflatten(0, block) for part, block in zip(parts, self.blocks, strict=False)]

    def unfilled(self, like: Tensor) -> Tensor:
        """``(places, ...)``, to be filled: zero only where no text lies."""
        found = torch.empty_like(like, memory_format=torch.contiguous_format)
        found[self.places - self._sizes[-1] :] = 0
        return found

    def joined(self, parts: Sequence[Tensor]) -> Tensor:
        """What ``split`` takes apart, with zeros where no text lies."""
        rest = parts[0].new_zeros(self._sizes[-1], *parts[0].shape[2:])
        return torch.cat([*(part.flatten(0, 1) for part in parts), rest])

    def filled(self, parts: Sequence[Tensor]) -> Tensor:
        """``(rows, ...)`` of each block as ``(most_rows, ...)``, zero where there is no text."""
        found = torch.cat(list(parts))
        rest = found.new_zeros(self.most_rows - len(found), *found.shape[1:])
        return torch.cat([found, rest])

    def spread(self, values: Tensor) -> Tensor:
        """What each row ``(at least rows,)`` has at all its places, ``(places,)``; elsewhere 0."""
        parts = values[: self.rows].split([rows for rows, _ in self.blocks])
        wide = zip(parts, self.blocks, strict=True)
        return self.joined([part.unsqueeze(1).expand(block) for part, block in wide])


def products(left: Tensor, right: Tensor) -> Tensor:
    """``left (n, i, j) @ right (n, j, k)``, pair by pair: never of a single one, which libraries
    take to be another problem and round otherwise, while n follows from who else is there."""
    if len(left) > 1:
        return torch.bmm(left, right)
    return torch.bmm(left.expand(2, -1, -1), right.expand(2, -1, -1))[:1]


_current: ContextVar[Packing | None] = ContextVar("packing", default=None)


def current() -> Packing | None:
    """How the inputs of layers lie in the pass through the base that runs, if they are packed."""
    return _current.get()


@contextmanager
def is_current(packing: Packing) -> Generator[None]:
    """Passes within the block are of one row of places ``(1, places, ...)`` that lie so."""
    token = _current.set(packing)
    try:
        yield
    finally:
        _current.reset(token)
