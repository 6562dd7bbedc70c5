"""All rows that a check looks at, by site, as they are read; files that cannot be read are findings
of their own, and do not keep the others from being looked at."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from hushtune.common.config import RunConfig
from hushtune.common.errors import DataError, HushtuneError, LabelError, MissingColumnError
from hushtune.common.tasks.data import read_rows
from hushtune.common.tasks.guess import propose_columns
from hushtune.common.tasks.missing import complete_rows
from hushtune.common.tasks.report import ENTITIES, DataReport
from hushtune.common.tasks.rows import RawRow
from hushtune.simulations.datacheck.findings import Finding, Level, places, share

_TOLD = (LabelError, MissingColumnError)
"""Errors that give labels or names of columns, and no text."""


@dataclass(frozen=True)
class Gathered:
    """``rows``: those with text and label, by site; ``read``: how many there were."""

    rows: Mapping[str, Sequence[RawRow]]
    read: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def all(self) -> list[RawRow]:
        """The rows of all sites, by site."""
        return [row for site in sorted(self.rows) for row in self.rows[site]]


def gather(config: RunConfig) -> Gathered:
    """Read all that can be read."""
    rows: dict[str, list[RawRow]] = {}
    read: dict[str, int] = {}
    findings: list[Finding] = []
    for part in _parts(config):
        report = DataReport()
        try:
            found = complete_rows(
                _heard(part, report),
                part.data.model_copy(update={"missing": "drop"}),
                report,
                kind=part.task.of,
            )
        except HushtuneError as error:
            findings.append(of_error("file", error))
            continue
        for row in found:
            rows.setdefault(row.site or "all rows", []).append(row)
        for site in {row.site or "all rows" for row in found}:
            whole = len(part.data.files or ()) == 1
            read[site] = report.read if whole else len(rows[site])
        findings += _of_report(report)
    return Gathered(rows, read, tuple(findings))


def _parts(config: RunConfig) -> Iterator[RunConfig]:
    """A configuration a file, so that one that is broken does not hide the others."""
    for site, path in sorted((config.data.files or {}).items()):
        data = config.data.model_copy(update={"files": {site: path}})
        yield config.model_copy(update={"data": data})
    if config.data.files is None:
        yield config


def _heard(config: RunConfig, report: DataReport) -> Iterator[RawRow]:
    for row in read_rows(config.data, config.task):
        report.hear(row)
        yield row


def _of_report(report: DataReport) -> Iterator[Finding]:
    for reason, count in sorted(report.dropped.items()):
        yield Finding(
            "missing values",
            Level.WARNING,
            f"{share(count, report.read)} lack a value ({reason}) and are left out",
            "fill the cells, or see whether the right columns are named",
            places(report.examples[reason]),
        )
    for reason, count in sorted(report.remarked.items()):
        if reason != ENTITIES:
            text, remedy = f"{share(count, report.read)}: {reason}", ""
        elif count * 100 >= report.read:
            text = f"{share(count, report.read)} hold {reason}"
            remedy = "data.unescape_html = true makes characters of them"
        else:
            continue
        level = Level.WARNING if reason == ENTITIES else Level.NOTE
        yield Finding("texts", level, text, remedy, places(report.examples[reason]))
    for note in report.notes:
        yield Finding("missing values", Level.NOTE, note)


def of_error(what: str, error: HushtuneError) -> Finding:
    """What stops a run. What the error was given may be a text, and is left out unless it is
    labels or columns."""
    given = f" (given: {error.given[:120]})" if isinstance(error, _TOLD) and error.given else ""
    where: tuple[str, ...] = ()
    if isinstance(error, DataError) and error.file is not None:
        row = "" if error.row is None else f":{error.row}"
        column = "" if error.column is None else f", column {error.column!r}"
        where = (f"{Path(error.file).name}{row}{column}",)
    expected = f"; expected: {error.expected[:120]}" if error.expected else ""
    text = f"{error.code}: {error.message}{given}{expected}"
    return Finding(what, Level.PROBLEM, text, error.remedy or "", where)


def group_column(config: RunConfig, given: str | None) -> str | None:
    """The column of patients or users whose rows a split might part: as given, or by its name."""
    data = config.data
    if given is not None or data.group is not None or data.split_by is not None:
        return given or data.group or data.split_by
    paths = [data.file, *(data.files or {}).values()]
    found: set[str | None] = set()
    for path in paths:
        try:
            found.add(None if path is None else propose_columns(path).group)
        except HushtuneError:  # told where the file is read
            continue
    found.discard(None)
    return found.pop() if len(found) == 1 else None
