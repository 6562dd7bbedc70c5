"""What cleaning left out, counted by reason."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field
from pathlib import Path

from hushtune.common.tasks.cells import holds_entities
from hushtune.common.tasks.rows import RawRow

_EXAMPLES = 3
_MANY = 0.01
"""Share of the rows with HTML entities, from which on it is said."""
ENTITIES = "HTML entities, such as &amp;"


def rows_text(count: int) -> str:
    """So many rows, in words.

    >>> rows_text(1), rows_text(2)
    ('1 row', '2 rows')
    """
    return "1 row" if count == 1 else f"{count} rows"


@dataclass
class DataReport:
    """What was read and what was left out, with places as ``file:row`` and no folder.

    ``notes``: what else was decided about the rows, a sentence each. ``sites``: that rows name,
    those that are left out included.
    """

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])
    notes: list[str] = field(default_factory=list[str])
    remarked: Counter[str] = field(default_factory=Counter[str])
    sites: set[str] = field(default_factory=set[str])

    def hear(self, row: RawRow) -> None:
        """Count a row that was read, and what is to be said of it."""
        self.read += 1
        for remark in row.remarks:
            self._count(self.remarked, remark, row.place)
        if any("&" in cell and holds_entities(cell) for cell in (row.text, row.label) if cell):
            self._count(self.remarked, ENTITIES, row.place)

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out."""
        self._count(self.dropped, reason, place)

    def _count(self, counter: Counter[str], reason: str, place: str) -> None:
        counter[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(Path(place).name)

    def lines(self) -> list[str]:
        """One readable line a reason or note."""
        left_out = [
            f"{rows_text(count)} left out: {reason} (such as {', '.join(self.examples[reason])})"
            for reason, count in sorted(self.dropped.items())
        ]
        remarks = [
            f"{rows_text(count)}: {_REMEDIED.get(reason, reason)} "
            f"(such as {', '.join(self.examples[reason])})"
            for reason, count in sorted(self.remarked.items())
            if reason != ENTITIES or count >= _MANY * self.read
        ]
        return left_out + remarks + self.notes


_REMEDIED = {ENTITIES: f"{ENTITIES}; data.unescape_html = true makes characters of them"}
