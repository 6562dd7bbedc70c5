"""From raw rows to a labelled table, cleaned and split, each row at one site only."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from hushtune.common.config import DataConfig
from hushtune.common.errors import BadValueError, EmptyDataError, LabelError, TooFewRowsError
from hushtune.common.seeds import rng
from hushtune.common.tasks.base import Rows
from hushtune.common.tasks.partition import partition
from hushtune.common.tasks.readers import RawRow, read_dataset, read_demo, read_file

_EXAMPLES = 3


@dataclass(frozen=True, slots=True)
class Split:
    """One site's rows by use; indices into the table, each in one part only."""

    train: Rows
    validation: Rows
    test: Rows


@dataclass
class DataReport:
    """What was read and what was left out, with places as ``file:row`` and no folder."""

    read: int = 0
    dropped: Counter[str] = field(default_factory=Counter[str])
    examples: dict[str, list[str]] = field(default_factory=dict[str, list[str]])

    def drop(self, reason: str, place: str) -> None:
        """Count a row that is left out."""
        self.dropped[reason] += 1
        shown = self.examples.setdefault(reason, [])
        if len(shown) < _EXAMPLES:
            shown.append(Path(place).name)

    def lines(self) -> list[str]:
        """One readable line a reason."""
        return [
            f"{count} rows left out: {reason} (such as {', '.join(self.examples[reason])})"
            for reason, count in sorted(self.dropped.items())
        ]


@dataclass(frozen=True)
class LabelledText:
    """All sites' texts with labels; ``sites`` are sorted by name."""

    texts: tuple[str, ...]
    labels: Rows  # (n,), indices into label_names
    label_names: tuple[str, ...]
    sites: Mapping[str, Split]
    report: DataReport

    def fingerprint(self, site: str) -> str:
        """sha256 of a site's training rows, whatever their order: what a ledger knows them by."""
        rows = sorted((self.texts[i], int(self.labels[i])) for i in self.sites[site].train)
        return hashlib.sha256(json.dumps(rows).encode()).hexdigest()


def load_data(config: DataConfig, *, seed: int) -> LabelledText:
    """Read, clean, deal to sites and split; the same for the same seed. Raises DataErrors."""
    report = DataReport()
    # By site, so that a text of two sites stays at the first by name, however the file is ordered.
    complete = sorted(_complete(_read(config, report), report), key=lambda row: row.site or "")
    rows = _distinct(complete, config.inconsistent, report)
    if not rows:
        raise EmptyDataError("no row has both a text and a label", given=_where(config))
    if config.partition == "natural":
        _check_sites(complete, rows, config, report)
    names = _label_names(rows, config)
    labels = np.array([names.index(str(row.label)) for row in rows], dtype=np.int64)
    sites = {
        site: _subsample(indices, labels, config.max_rows_per_site, seed, site)
        for site, indices in _deal(rows, labels, config, seed).items()
    }
    return LabelledText(
        texts=tuple(str(row.text) for row in rows),
        labels=labels,
        label_names=names,
        sites={
            site: split_rows(
                indices,
                labels,
                validation=config.validation_fraction,
                test=config.test_fraction,
                random=rng(seed, "split", site),
                site=site,
            )
            for site, indices in sorted(sites.items())
        },
        report=report,
    )


def _where(config: DataConfig) -> str:
    named = config.file or config.dataset or config.source
    return str(named or ", ".join(str(path) for path in (config.files or {}).values()))


def _read(config: DataConfig, report: DataReport) -> Iterator[RawRow]:
    for row in _sources(config):
        report.read += 1
        yield row


def _sources(config: DataConfig) -> Iterator[RawRow]:
    if config.source is not None:
        yield from read_demo()
    elif config.files is not None:
        for site, path in sorted(config.files.items()):
            for row in read_file(path, text=config.text, label=config.label, site=None):
                yield RawRow(row.text, row.label, site, row.place)
    elif config.file is not None:
        site = config.site if config.partition == "natural" else None
        yield from read_file(config.file, text=config.text, label=config.label, site=site)
    else:
        site = config.site if config.partition == "natural" else None
        name = str(config.dataset)
        yield from read_dataset(name, text=config.text, label=config.label, site=site)


def _complete(rows: Iterable[RawRow], report: DataReport) -> Iterator[RawRow]:
    for row in rows:
        if row.text is None or row.label is None:
            report.drop(f"no {'text' if row.text is None else 'label'}", row.place)
        else:
            yield row


def _distinct(rows: Iterable[RawRow], inconsistent: str, report: DataReport) -> list[RawRow]:
    """Each text once, over all sites: a test row of one site must not train at another.

    Texts are equal if they differ in white space only. The first row stays; texts with different
    labels are dropped, kept (the first), or an error.
    """
    kept: dict[str, RawRow] = {}
    contradicted: set[str] = set()
    for row in rows:
        text = " ".join(str(row.text).split())
        first = kept.setdefault(text, row)
        if first is row:
            continue
        if first.label == row.label:
            where = "repeated" if first.site == row.site else "repeated at another site"
            report.drop(where, row.place)
            continue
        if inconsistent == "error":
            raise LabelError(
                "one text has two labels",
                given=f"{first.label!r} at {first.place}, {row.label!r} at {row.place}",
                remedy='mend the data, or set data.inconsistent = "drop"',
            )
        report.drop("the same text with another label", row.place)
        if inconsistent == "drop":
            contradicted.add(text)
    for text in contradicted:
        report.drop("the same text with another label", kept[text].place)
    return [row for text, row in kept.items() if text not in contradicted]


def _check_sites(
    complete: Sequence[RawRow], rows: Sequence[RawRow], config: DataConfig, report: DataReport
) -> None:
    """A row must name its site, and a site that has nothing left must not vanish unsaid."""
    for row in complete:
        if row.site is None:
            raise BadValueError(
                "a row names no site", column=config.site, given=row.place, remedy="fill it in"
            )
    named = {row.site for row in complete} | set(config.files or {})
    for site in sorted(str(site) for site in named - {row.site for row in rows}):
        raise EmptyDataError(
            f"site {site!r} has no rows left after cleaning",
            given="; ".join(report.lines()),
            remedy="remove the site, or see whether its rows are copies of another site's",
        )


def _label_names(rows: Sequence[RawRow], config: DataConfig) -> tuple[str, ...]:
    counts = Counter(str(row.label) for row in rows)
    if len(counts) < 2:
        raise LabelError(
            "the data have one label only, so there is nothing to learn",
            given=next(iter(counts)),
            expected="two labels or more",
            remedy="check data.label",
        )
    for label, count in sorted(counts.items()):
        if count == 1:
            place = next(row.place for row in rows if row.label == label)
            raise LabelError(
                f"label {label!r} occurs once only, so it cannot be both trained and tested",
                given=place,
                expected="each label at least twice",
                remedy=f"is column {config.label!r} the label? Join rare labels, or remove the row",
            )
    sites = {row.site for row in rows}
    if config.partition == "natural" and len(sites) > 1:
        for label in sorted(counts):
            places = {row.site for row in rows if row.label == label}
            if len(places) == 1:
                raise LabelError(
                    f"label {label!r} occurs at site {next(iter(places))!r} only: the model could "
                    "tell the site in its place, and every update about it is that site's",
                    given=f"{counts[label]} rows",
                    expected="each label at two sites or more",
                    remedy="join rare labels, or check that the sites spell labels alike",
                )
    return tuple(sorted(counts))


def _deal(
    rows: Sequence[RawRow], labels: Rows, config: DataConfig, seed: int
) -> Mapping[str, Rows]:
    if config.partition != "natural":
        parts = partition(
            labels,
            how=config.partition,
            sites=config.sites or 1,
            alpha=config.alpha,
            shards_per_site=config.shards_per_site,
            seed=seed,
        )
        width = len(str(len(parts) - 1))
        return {f"site-{index:0{width}d}": part for index, part in enumerate(parts)}
    dealt: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        dealt.setdefault(str(row.site), []).append(index)  # none is missing: checked above
    return {site: np.array(indices, dtype=np.int64) for site, indices in dealt.items()}


def _subsample(indices: Rows, labels: Rows, limit: int | None, seed: int, site: str) -> Rows:
    if limit is None or len(indices) <= limit:
        return indices
    chosen = rng(seed, "subsample", site).permutation(indices)[:limit]
    return np.sort(chosen)


def split_rows(
    indices: Rows,
    labels: Rows,
    *,
    validation: float,
    test: float,
    random: np.random.Generator,
    site: str = "",
) -> Split:
    """Split label by label, so that each part has the labels in the same shares.

    A label's test rows come first, then its validation rows; a label with two rows or more always
    keeps one to train on. Raises TooFewRowsError if nothing is left to train on or to test.
    """
    parts: dict[str, list[Rows]] = {"train": [], "validation": [], "test": []}
    # Counts are rounded cumulatively, so that many rare labels still add up to the fractions.
    owed_test = owed_validation = 0.0
    for label in np.unique(labels[indices]):
        mine = random.permutation(indices[labels[indices] == label])
        owed_test += test * len(mine)
        owed_validation += validation * len(mine)
        for_test = min(round(owed_test), len(mine) - 1)
        for_validation = min(round(owed_validation), len(mine) - 1 - for_test)
        owed_test -= for_test
        owed_validation -= for_validation
        parts["test"].append(mine[:for_test])
        parts["validation"].append(mine[for_test : for_test + for_validation])
        parts["train"].append(mine[for_test + for_validation :])
    joined = {part: np.sort(np.concatenate(rows)) for part, rows in parts.items()}
    for part in ("train", "test"):
        if not len(joined[part]):
            raise TooFewRowsError(
                f"site {site!r} has too few rows to train and to test on",
                given=f"{len(indices)} rows after cleaning",
                remedy="remove the site, join it with another, or change data.test_fraction",
            )
    return Split(**joined)
