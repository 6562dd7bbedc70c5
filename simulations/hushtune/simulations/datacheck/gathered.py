"""All rows that a check looks at, by site, as they are read; files that cannot be read are findings
of their own, and do not keep the others from being looked at."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from hushtune.common.config import RunConfig
from hushtune.common.errors import (
    DataError,
    EmptyDataError,
    HushtuneError,
    LabelError,
    MissingColumnError,
)
from hushtune.common.tasks.data import read_rows
from hushtune.common.tasks.guess import propose_columns
from hushtune.common.tasks.labels import bad_targets
from hushtune.common.tasks.missing import complete_rows
from hushtune.common.tasks.report import ENTITIES, DataReport
from hushtune.common.tasks.rows import RawRow
from hushtune.simulations.datacheck.findings import Finding, Level, places, share

_TOLD = (LabelError, MissingColumnError)
"""Errors that give labels or names of columns, and no text."""
MOST_REFUSED = 20
"""Rows that a run refuses for one reason of which the place is told."""
_ALL = "all rows"


@dataclass(frozen=True)
class Gathered:
    """``rows``: those with text and label, by site; ``read``: how many there were. A site of which
    nothing can be used has no rows, and is there all the same."""

    rows: Mapping[str, Sequence[RawRow]]
    read: Mapping[str, int]
    findings: tuple[Finding, ...]

    @property
    def all(self) -> list[RawRow]:
        """The rows of all sites, by site."""
        return [row for site in sorted(self.rows) for row in self.rows[site]]


def gather(config: RunConfig) -> Gathered:
    """Read all that can be read."""
    rows: dict[str, list[RawRow]] = {site: [] for site in config.data.files or ()}
    read = Counter(dict.fromkeys(rows, 0))
    findings: list[Finding] = []
    for part in _parts(config):
        report, lacking, targets = DataReport(), _Refused(), _Refused()
        try:
            complete = complete_rows(
                _heard(part, report, read),
                part.data,
                report,
                kind=part.task.of,
                refused=lacking.hear,
            )
        except HushtuneError as error:
            findings.append(of_error("file", error))
            continue
        for site in report.sites:
            rows.setdefault(site, [])
        for row in complete:
            rows.setdefault(row.site or _ALL, []).append(row)
        findings += _of_report(report)
        for error in bad_targets(complete, part.task, part.data):
            targets.hear(error)
        findings += lacking.findings("missing values", report.read)
        findings += targets.findings("targets", report.read)
        findings += [_nothing_left(name) for name in sorted(report.sites) if not rows[name]]
    return Gathered(rows, {site: read[site] for site in rows}, tuple(findings))


@dataclass
class _Refused:
    """Errors of single rows, alike ones together: how many, and the first of them."""

    counts: Counter[tuple[str, str | None]] = field(default_factory=Counter[tuple[str, str | None]])
    first: dict[tuple[str, str | None], list[DataError]] = field(
        default_factory=dict[tuple[str, str | None], list[DataError]]
    )

    def hear(self, error: DataError) -> None:
        alike = (error.message, error.column)
        self.counts[alike] += 1
        kept = self.first.setdefault(alike, [])
        if len(kept) < MOST_REFUSED:
            kept.append(error)

    def findings(self, what: str, whole: int) -> Iterator[Finding]:
        """A finding for each thing that a run refuses, with where the first rows stand."""
        for (message, column), count in self.counts.items():
            errors = self.first[message, column]
            told = of_error(what, errors[0])
            names = [f"{Path(str(error.file)).name}:{error.row}" for error in errors]
            if count > len(names):
                names.append(f"and {count - len(names)} more")
            text = f"in {column!r}, {share(count, whole)}: {told.text}"
            yield replace(told, text=text, places=tuple(names))


def _nothing_left(site: str) -> Finding:
    error = EmptyDataError(
        f"site {site!r} has no rows left after cleaning",
        remedy="fill the cells, see whether the right columns are named, or remove the site",
    )
    return of_error("site", error)


def _parts(config: RunConfig) -> Iterator[RunConfig]:
    """A configuration a file, so that one that is broken does not hide the others."""
    for site, path in sorted((config.data.files or {}).items()):
        data = config.data.model_copy(update={"files": {site: path}})
        yield config.model_copy(update={"data": data})
    if config.data.files is None:
        yield config


def _heard(config: RunConfig, report: DataReport, read: Counter[str]) -> Iterator[RawRow]:
    for row in read_rows(config.data, config.task):
        report.hear(row)
        read[row.site or _ALL] += 1
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
