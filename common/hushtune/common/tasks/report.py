"""What cleaning left out, counted by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

_EXAMPLES = 3


def rows_text(count: int) -> str:
    """So many rows, in words.

    >>> rows_text(1), rows_text(2)
    ('1 row', '2 rows')
    """
    return "1 row" if count == 1 else f"{count} rows"


@dataclass
class DataReport:
    """What was read and what was left out, with places as ``file:row`` and no folder.

    ``notes``: what else was decided about the rows, a sentence each.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    notes: list[str] = field(default_factory=list[str])

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(Path(place).name)

    def lines(self) -> list[str]:
        """One readable line a reason or note."""
        left_out = [
            f"{rows_text(count)} left out: {reason} (such as {', '.join(self.examples[reason])})"
            for reason, count in sorted(self.dropped.items())
        ]
        return left_out + self.notes
