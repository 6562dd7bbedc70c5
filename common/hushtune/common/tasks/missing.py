"""Rows that lack a value: left out and counted, or an error (docs/decisions/0009).

Whether a word such as NaN is a number that is missing, or a name like any other, only the whole
column tells. So readers hand it on, and it is decided here, over all rows of a run.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from hushtune.common.config import DataConfig
from hushtune.common.errors import BadValueError
from hushtune.common.kinds import Kind, Targets
from hushtune.common.tasks.report import DataReport, rows_text
from hushtune.common.tasks.rows import RawRow

NAN, ABSENT = "NaN", "no value"

_KNOWN = 1000
"""Different values that are remembered, so that a column of classes is judged once each."""

# What programs write for a number that is missing; among names "NA" and "none" are names.
_NOT_A_NUMBER = frozenset({"nan", "na", "n/a", "#n/a", "<na>", "null", "none"})


def complete_rows(
    rows: Iterable[RawRow],
    config: DataConfig,
    report: DataReport,
    *,
    kind: Kind | None = None,
    refused: Callable[[BadValueError], None] | None = None,
) -> Sequence[RawRow]:
    """The rows that have all that a run needs; the others are counted in ``report``.

    A row without a text or a label is left out. One with NaN in a column of numbers, or without the
    site or group that the settings ask for, is left out with `data.missing = "drop"`; else it
    raises BadValueError with file, row and column; ``refused`` hears such errors, which are not
    raised then. Names that may have been meant as no value are noted in ``report``, and the sites
    that rows name. What a model is to answer is no name and no number, whatever it says.
    """
    found = list(rows)
    answers = kind is not None and kind.targets is Targets.ANSWER
    columns = {r: c for r, c in columns_read(config).items() if not (answers and r == "label")}
    numbers = columns_of_numbers(found, columns)
    kept: list[RawRow] = []
    for row in found:
        lacks = lacking(row, numbers, columns)
        if answers and row.label is None:
            lacks = {**lacks, "answer": ABSENT}
        if row.site is not None and "site" not in lacks:
            report.sites.add(row.site)
        if not lacks:
            kept.append(row)
            continue
        error = refusal(row, lacks, columns, dropped=config.missing == "drop")
        if error is None:
            report.drop(f"no {lacked(row, next(iter(lacks)))}", row.place)
        elif refused is None:
            raise error
        else:
            refused(error)
    for role in columns:
        _note_names(kept, role, report)
    return kept


def _note_names(rows: Sequence[RawRow], role: str, report: DataReport) -> None:
    names = (str(getattr(row, role)) for row in rows)
    counts = Counter(name for name in names if name.casefold() in _NOT_A_NUMBER)
    for name, count in sorted(counts.items()):
        report.notes.append(f"{name!r} ({rows_text(count)}) is taken as the name of a {role}")


def columns_read(config: DataConfig) -> Mapping[str, str]:
    """Which columns hold names or numbers of labels, sites and groups, of those that are read."""
    columns = {"label": config.label}
    one_table = config.file is not None or config.dataset is not None
    if config.site is not None and one_table and config.partition == "natural":
        columns["site"] = config.site
    if config.group is not None:
        columns["group"] = config.group
    if config.split_by is not None:
        columns["block"] = config.split_by
    return columns


def columns_of_numbers(rows: Sequence[RawRow], roles: Iterable[str]) -> frozenset[str]:
    """Those of the roles whose values are all numbers, or words such as NaN and NA that stand for
    one that is missing; a column of NaN alone is one."""
    return frozenset(role for role in roles if _is_of_numbers(rows, role))


def _is_of_numbers(rows: Sequence[RawRow], role: str) -> bool:
    some = has_nan = False
    known: set[str] = set()
    for row in rows:
        value: str | None = getattr(row, role)
        if value is None:
            has_nan = has_nan or role in row.nan
        elif value not in known:
            folded = value.casefold()
            has_nan = has_nan or folded == "nan"
            if folded not in _NOT_A_NUMBER:
                if not _is_number(value):
                    return False
                some = True
            if len(known) < _KNOWN:
                known.add(value)
    return some or has_nan


def lacking(row: RawRow, numbers: frozenset[str], roles: Iterable[str]) -> Mapping[str, str]:
    """What a row has no value for: its text or some roles, each with NAN or ABSENT; NaN first.

    Among names the word NaN is a name like any other, but for labels: there it is no label.
    """
    values: dict[str, str | None] = {role: getattr(row, role) for role in ("text", *roles)}
    if not numbers and None not in values.values() and (row.label or "").casefold() != "nan":
        return {}
    nan = {
        role
        for role in numbers.intersection(values)
        if role in row.nan or (values[role] or "").casefold() in _NOT_A_NUMBER
    }
    if "label" not in nan and (values.get("label") or "").casefold() == "nan":
        values["label"] = None
    lacks = {role: NAN for role in values if role in nan}
    return lacks | {r: ABSENT for r, value in values.items() if value is None and r not in nan}


def lacked(row: RawRow, role: str) -> str:
    """What a row has none of, in words: a role, and of a pair which of its texts."""
    if role != "text" or not row.absent:
        return role
    return f"text in {' and '.join(map(repr, row.absent))}"


def refusal(
    row: RawRow, lacks: Mapping[str, str], columns: Mapping[str, str], *, dropped: bool
) -> BadValueError | None:
    """The error that a row is for what it lacks; None where it is left out.

    ``columns``: those that ``columns_read`` gives. ``dropped``: `data.missing = "drop"`.
    """
    if dropped or not lacks:
        return None
    role, why = next(iter(lacks.items()))
    if why != NAN and role not in ("site", "group", "block"):
        return None
    return _error(role, why, row, columns[role])


def _error(role: str, why: str, row: RawRow, column: str) -> BadValueError:
    file, number = row.where
    shown = getattr(row, role) or (NAN if why == NAN or role in row.nan else "an empty cell")
    named = NAN if shown.casefold() == "nan" else repr(shown)
    return BadValueError(
        f"{named} stands among numbers" if why == NAN else f"a row names no {role}",
        file=file,
        row=number,
        column=column,
        given=shown,
        expected="a number" if why == NAN else f"the name of a {role}",
        remedy='mend the row; or data.missing = "drop" leaves such rows out, and counts them'
        + (f"; a {role} of that name needs another name" if why == NAN else ""),
    )


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
