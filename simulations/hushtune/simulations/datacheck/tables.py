"""Rows of tables that are equal in all their input columns: copies, contradictions, and leaks.

A run keeps them, as two persons of one age are two; so it is said, and people judge.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from hushtune.common.kinds import Kind
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.rows import RawRow
from hushtune.common.tasks.units import Rows
from hushtune.simulations.datacheck.findings import Finding, Level, places, share

_TELLING = 0.5
"""Of all rows: where fewer are distinct, equal ones are what such columns give, and no warning."""
_FEW = "; so many are equal that these columns alone do not tell rows apart"
_KEPT = "a run keeps them all, as they may be different examples"


def repeated_rows(rows: Sequence[RawRow], kind: Kind) -> Iterator[Finding]:
    """Rows of equal columns: with one target, at one site and at several; and with other targets.

    Rows are compared by all the columns that a model reads, and by nothing else.
    """
    first: dict[str, dict[str, RawRow]] = {}  # by columns and target
    within: list[str] = []
    across: list[str] = []
    for row in rows:
        alike = first.setdefault(kind.identity(str(row.text), str(row.label)), {})
        known = alike.setdefault(str(row.label), row)
        if known is not row:
            (within if known.site == row.site else across).append(row.place)
    other = [row.place for alike in first.values() if len(alike) > 1 for row in alike.values()]
    level, few = _level(len(first), len(rows))
    if within:
        yield Finding(
            "duplicates",
            level,
            f"{share(len(within), len(rows))} equal another of the same site in all columns and in "
            f"the target; {_KEPT}{few}",
            "see whether a file was joined to itself, and remove copies: each is protected as if "
            "it were somebody else",
            places(within),
        )
    if across:
        yield Finding(
            "duplicates across sites",
            level,
            f"{share(len(across), len(rows))} equal one of another site in all columns and in the "
            f"target; {_KEPT}{few}",
            "see whether the sites took their rows from one source: who is at two sites is "
            "protected by both their epsilons added up",
            places(across),
        )
    if other:
        rows_of = sum(len(alike) > 1 for alike in first.values())
        yield Finding(
            "inconsistent labels",
            level,
            f"{rows_of} distinct row{'s' * (rows_of != 1)} of columns (of {len(first)}) have more "
            f"than one target; {_KEPT}{few}",
            "mend the targets, or add a column that tells these rows apart",
            places(other),
        )


def leaked_rows(data: LabelledRows, train: Rows, test: Rows, kind: Kind) -> Iterator[Finding]:
    """Test rows that equal a training row, of whatever site, in all columns."""
    keys = [kind.identity(text, "") for text in data.texts]
    learnt = {keys[row] for row in train}
    leaked = sum(keys[row] in learnt for row in test)
    level, few = _level(len({*learnt, *(keys[row] for row in test)}), len(train) + len(test))
    if leaked:
        yield Finding(
            "leakage",
            level,
            f"{leaked} of {len(test)} test rows equal a training row in all columns: their scores "
            f"are partly what was learnt by heart{few}",
            "remove copies, or keep rows of one source in one part: data.split_by = "
            '"the column that names it"',
        )


def _level(distinct: int, rows: int) -> tuple[Level, str]:
    """How bad equal rows are, and the reason where they are not."""
    return (Level.WARNING, "") if distinct >= _TELLING * rows else (Level.NOTE, _FEW)
