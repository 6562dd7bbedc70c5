"""The columns of a table as numbers: scaled by public ranges, one-hot by public lists.

Nothing here is learnt from rows: a mean or a largest value of the rows would tell of them, and
nobody would have paid for it. What is not covered by a range or a list is counted and says so.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hushtune.common.tasks.report import rows_text

Cell = str | float | int | None
CLAMPED, NO_NUMBER, UNKNOWN = "outside its range", "no number", "not in its list"


@dataclass(frozen=True, slots=True)
class Column:
    """One column: a number with a public range, or a category with a public list.

    ``bounds``: least and largest value; None for a category, which has ``values``.
    """

    name: str
    bounds: tuple[float, float] | None = None
    values: tuple[str, ...] = ()

    @property
    def width(self) -> int:
        """How many inputs it makes: the number or one for each value, and one for a missing
        cell."""
        return (len(self.values) if self.bounds is None else 1) + 1

    def encode(self, cell: Cell, odd: Counter[tuple[str, str]]) -> list[float]:
        """A cell as ``width`` numbers; what is odd of it is counted under the column's name.

        >>> Column("age", (0.0, 120.0)).encode(30, Counter())
        [-0.5, 0.0]
        >>> Column("job", values=("clerk", "nurse")).encode(None, Counter())
        [0.0, 0.0, 1.0]
        """
        word = _word(cell)
        missing = [0.0] * (self.width - 1) + [1.0]
        if self.bounds is None:
            if not word:
                return missing
            if word not in self.values:
                odd[self.name, UNKNOWN] += 1
            return [float(word == value) for value in self.values] + [0.0]
        number = _number(word)
        if math.isnan(number):
            if word and word.lower() != "nan":
                odd[self.name, NO_NUMBER] += 1
            return missing
        low, high = self.bounds
        inside = min(max(number, low), high)
        if inside != number:
            odd[self.name, CLAMPED] += 1
        return [2 * (inside - low) / (high - low) - 1, 0.0]

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        if self.bounds is None:
            return {"name": self.name, "values": list(self.values)}
        return {"name": self.name, "low": self.bounds[0], "high": self.bounds[1]}

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> Column:
        """Inverse of ``to_dict``; KeyError, TypeError or ValueError for anything else."""
        if "values" in raw:
            return Column(str(raw["name"]), values=tuple(map(str, raw["values"])))
        return Column(str(raw["name"]), (float(raw["low"]), float(raw["high"])))


def encoded(
    columns: Sequence[Column], texts: Sequence[str]
) -> tuple[NDArray[np.float32], tuple[str, ...]]:
    """Canonical rows as numbers ``(n, sum of widths)``, and a line for each that is odd of a
    column. A column that a row does not have is missing there."""
    odd: Counter[tuple[str, str]] = Counter()
    found = np.empty((len(texts), sum(column.width for column in columns)), dtype=np.float32)
    for place, text in enumerate(texts):
        cells = json.loads(text)
        found[place] = [x for c in columns for x in c.encode(cells.get(c.name), odd)]
    means = {
        CLAMPED: "and moved to its end",
        NO_NUMBER: "and read as missing",
        UNKNOWN: "and read as none of it",
    }
    lines = (
        f"{rows_text(count)} with a cell of column {name!r} that is {what}, {means[what]}"
        for (name, what), count in sorted(odd.items())
    )
    return found, tuple(lines)


def digest(columns: Sequence[Column], width: int) -> str:
    """sha256 of what is public of a network on columns: its inputs, and its hidden units."""
    told = {"columns": [column.to_dict() for column in columns], "width": width}
    return hashlib.sha256(json.dumps(told, sort_keys=True).encode()).hexdigest()


def _word(cell: Cell) -> str:
    """A cell as text; a whole number without ``.0``, as tables write it either way."""
    if cell is None:
        return ""
    if isinstance(cell, float) and cell.is_integer():
        cell = int(cell)
    return str(cell).strip()


def _number(word: str) -> float:
    try:
        return float(word)
    except ValueError:
        return math.nan
