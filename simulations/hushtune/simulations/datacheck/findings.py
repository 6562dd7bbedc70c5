"""What a check found: where, how bad, and what to do. Texts may be private and are never part of
it; labels are, cut short."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from enum import StrEnum
from pathlib import Path

EXAMPLES = 3
_LONGEST_LABEL = 40


class Level(StrEnum):
    """How bad a finding is."""

    PROBLEM = "problem"  # a run stops, or is refused
    WARNING = "warning"
    NOTE = "note"


ORDER = (Level.PROBLEM, Level.WARNING, Level.NOTE)


@dataclass(frozen=True, slots=True)
class Finding:
    """One finding; ``places``: some of the rows, as ``file:row``."""

    what: str
    level: Level
    text: str
    remedy: str = ""
    places: tuple[str, ...] = ()


def places(found: Iterable[str]) -> tuple[str, ...]:
    """Some places without their folders.

    >>> places(["/a/b.csv:3"])
    ('b.csv:3',)
    """
    return tuple(name for name, _ in zip(map(_name, found), range(EXAMPLES), strict=False))


def _name(place: str) -> str:
    return Path(place).name


def quoted(label: str) -> str:
    """A label in quotes, cut short.

    >>> quoted("good")
    "'good'"
    """
    short = label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 3] + "..."
    return repr(short)


def share(part: int, whole: int) -> str:
    """A part of a whole, in words.

    >>> share(1, 8), share(0, 0)
    ('1 of 8 rows (12.5%)', '0 of 0 rows')
    """
    percent = f" ({100 * part / whole:.3g}%)" if whole else ""
    return f"{part} of {whole} row{'' if whole == 1 else 's'}{percent}"


def in_order(found: Sequence[Finding]) -> list[Finding]:
    """The worst first, else as they are."""
    return sorted(found, key=lambda finding: ORDER.index(finding.level))
