"""From raw rows to a table of examples, cleaned and split, each row at one site only."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import EmptyDataError, LabelError
from hushtune.common.kinds import KINDS, Kind
from hushtune.common.seeds import rng
from hushtune.common.tasks.few_shot import few_shot
from hushtune.common.tasks.folds import fold_units, take_out
from hushtune.common.tasks.guess import text_remedy
from hushtune.common.tasks.image_folder import read_image_folder
from hushtune.common.tasks.labels import check_sample, check_targets, label_names, stratified
from hushtune.common.tasks.missing import complete_rows
from hushtune.common.tasks.partition import partition
from hushtune.common.tasks.readers import RawRow, read_dataset, read_file
from hushtune.common.tasks.report import DataReport
from hushtune.common.tasks.rows import columns_of
from hushtune.common.tasks.sources import read_named
from hushtune.common.tasks.splits import Split, split_sites, split_units, subsample
from hushtune.common.tasks.units import Rows, Units

_LONG = 100


@dataclass(frozen=True)
class LabelledRows:
    """All sites' examples; ``sites`` are sorted by name.

    ``texts`` and ``answers`` are canonical inputs and targets (``hushtune.common.kinds``).
    ``labels``: the *stratum* of each row, by which rows are split and dealt: its class where it has
    one, else see ``labels.strata``. ``label_names``: the classes, labels or tags that a model tells
    apart; none for numbers and answers.

    ``groups (n,)``: the patient or user of each row, numbered over all sites; None where each row
    stands for itself. ``blocks (n,)``: what no split parts, by `data.split_by`; else None.
    ``fingerprints``: what a ledger knows each site's data by, the sha256 of all texts and labels as
    they were read. No other seed, subsample or unit begins with a new budget; where one data set is
    dealt to the sites it stands for each of them, as any row may come to any. ``left_out``: rows of
    a site that takes no part in training.
    """

    texts: tuple[str, ...]
    labels: Rows  # (n,), indices into strata
    label_names: tuple[str, ...]
    sites: Mapping[str, Split]
    report: DataReport
    fingerprints: Mapping[str, str]
    groups: Rows | None = None
    blocks: Rows | None = None
    answers: tuple[str, ...] = ()
    strata: tuple[str, ...] = ()
    left_out: Rows = field(default_factory=lambda: np.empty(0, dtype=np.int64))
    kind: Kind = KINDS["text-classification"]

    def used(self, site: str) -> str:
        """sha256 of the rows of a site that a run uses, by group, however they are split."""
        split = self.sites[site]
        rows = np.concatenate([split.train, split.validation, split.test])
        groups = np.zeros_like(rows) if self.groups is None else self.groups[rows]
        texts = [(self.kind.content(self.texts[i]), self.answers[i]) for i in rows]
        return _digest((*text, int(group)) for text, group in zip(texts, groups, strict=True))

    def units(self, rows: Rows) -> Units:
        """Some rows, by the unit that a guarantee speaks of."""
        return _units(rows, self.groups)

    def without_unused(self) -> LabelledRows:
        """The same without the rows that no part of any site has, as where a sample is taken of
        many: nothing else need be made of them. The order stays."""
        splits = self.sites.values()
        parts = [part for s in splits for part in (s.train, s.validation, s.test)]
        kept = np.unique(np.concatenate([*parts, self.left_out]))

        def moved(rows: Rows) -> Rows:
            return np.searchsorted(kept, rows).astype(np.int64)

        sites = {
            site: Split(moved(s.train), moved(s.validation), moved(s.test))
            for site, s in self.sites.items()
        }
        return replace(
            self,
            texts=tuple(self.texts[row] for row in kept),
            answers=tuple(self.answers[row] for row in kept),
            labels=self.labels[kept],
            groups=None if self.groups is None else self.groups[kept],
            blocks=None if self.blocks is None else self.blocks[kept],
            sites=sites,
            left_out=moved(self.left_out),
        )


def load_data(
    config: DataConfig,
    task: TaskConfig | None = None,
    *,
    seed: int,
    records_per_group: int | None = None,
) -> LabelledRows:
    """Read, clean, deal to sites and split; the same for the same seed. Raises DataErrors.

    ``task``: text classification unless it says otherwise.

    With `data.group`, whole groups are dealt and split, each with ``records_per_group`` rows at
    most.
    """
    report, task = DataReport(), task or TaskConfig()
    # By site, so that a text of two sites stays at the first by name, however the file is ordered.
    read = complete_rows(_read(config, task, report), config, report, kind=task.of)
    complete = sorted(read, key=lambda row: row.site or "")
    check_targets(complete, task, config)
    rows = (
        complete if task.of.repeats else _distinct(complete, config.inconsistent, task.of, report)
    )
    if not rows:
        if complete:
            raise EmptyDataError(
                "no rows are left after cleaning",
                given="; ".join(report.lines()),
                remedy=text_remedy(complete, config) or "see whether data.label is the label",
            )
        raise EmptyDataError(
            "no row has all that it needs",
            given="; ".join((_where(config), *report.lines())),
            remedy="see whether data.text and data.label are the columns that are meant",
        )
    if config.partition == "natural":
        _check_sites(complete, rows, config, report)
    names = label_names(rows, config, task)
    strata, labels = stratified(rows, names, task)
    groups = _groups(rows, config)
    blocks = groups if config.split_by is None else _blocks(rows)
    sites: dict[str, Units] = {}
    dealt = _deal(_units(np.arange(len(rows)), blocks), rows, labels, config, seed)
    for site, indices in dealt.items():
        whole = _units(subsample(indices, config.max_rows_per_site, seed, site), blocks)
        limit = records_per_group if groups is not None else None
        sites[site] = whole.at_most(limit or len(rows), rng(seed, "group", site))
        for row in sorted(set(whole.rows.tolist()) - set(sites[site].rows.tolist())):
            report.drop("more than privacy.records_per_group of one group", rows[row].place)
    used = [rows[row] for found in sites.values() for row in found.rows]
    if len(used) < len(rows):
        limits = {
            "data.max_rows_per_site": config.max_rows_per_site,
            "privacy.records_per_group": records_per_group if config.group else None,
        }
        by = " and ".join(name for name, limit in limits.items() if limit is not None)
        check_sample(used, names, config, task, by=by)
    fingerprints = _fingerprints(complete, sites, task.of, natural=config.partition == "natural")
    apart = None if config.split_by is None else blocks
    left_out = take_out(sites, config.left_out, apart, report)
    splits = split_sites(
        sites, lambda site, found: _split(found, labels, config, seed, site), blocks=apart
    )
    if config.shots is not None:
        drawn: dict[str, Any] = {"shots": config.shots, "names": names, "seed": seed}
        splits = {
            site: few_shot(split, _units(split.train, groups), labels, **drawn, site=site)
            for site, split in splits.items()
        }
        each = "example" if groups is None else "group"
        report.notes.append(
            f"few-shot: {config.shots} training {each}{'s' * (config.shots != 1)} of each of "
            f"{len(names)} labels at each site, drawn with the seed; validation and test are whole"
        )
    return LabelledRows(
        texts=tuple(str(row.text) for row in rows),
        labels=labels,
        label_names=names,
        sites=splits,
        report=report,
        fingerprints=fingerprints,
        groups=groups,
        blocks=apart,
        answers=tuple(str(row.label) for row in rows),
        strata=strata,
        left_out=left_out,
        kind=task.of,
    )


def _units(rows: Rows, codes: Rows | None) -> Units:
    return Units.single(rows) if codes is None else Units.by_code(rows, codes)


def _split(units: Units, labels: Rows, config: DataConfig, seed: int, site: str) -> Split:
    shares: dict[str, Any] = {"validation": config.validation_fraction, "site": site}
    if config.folds is not None and config.fold is not None:
        random = rng(seed, "folds", config.folds, site)
        return fold_units(
            units, labels, fold=config.fold, folds=config.folds, random=random, **shares
        )
    random = rng(seed, "split", site)
    return split_units(units, labels, test=config.test_fraction, random=random, **shares)


def _fingerprints(
    complete: Sequence[RawRow], sites: Iterable[str], kind: Kind, *, natural: bool
) -> Mapping[str, str]:
    pairs = [(kind.content(str(row.text)), str(row.label)) for row in complete]
    if not natural:
        return dict.fromkeys(sites, _digest(pairs))
    read: dict[str, list[tuple[str, str]]] = {site: [] for site in sites}
    for row, pair in zip(complete, pairs, strict=True):
        read[str(row.site)].append(pair)
    return {site: _digest(rows) for site, rows in read.items()}


def _digest(rows: Iterable[tuple[str | int, ...]]) -> str:
    """sha256 of rows in any order: of their sorted list as JSON, which is never whole in memory."""
    found = hashlib.sha256(b"[")
    for place, row in enumerate(sorted(rows)):
        found.update(((", " if place else "") + json.dumps(row)).encode())
    found.update(b"]")
    return found.hexdigest()


def _groups(rows: Sequence[RawRow], config: DataConfig) -> Rows | None:
    """A number for each row's group; a group is one site's, as sites cannot compare names."""
    if config.group is None:
        return None
    numbers: dict[tuple[str | None, str], int] = {}
    found: list[int] = []
    for row in rows:
        found.append(numbers.setdefault((row.site, str(row.group)), len(numbers)))
    return np.array(found, dtype=np.int64)


def _blocks(rows: Sequence[RawRow]) -> Rows:
    """A number for each row's block, of all sites alike: what no split may part."""
    numbers: dict[str, int] = {}
    found = (numbers.setdefault(str(row.block), len(numbers)) for row in rows)
    return np.fromiter(found, dtype=np.int64, count=len(rows))


def _where(config: DataConfig) -> str:
    named = config.file or config.folder or config.dataset or config.source
    return str(named or ", ".join(str(path) for path in (config.files or {}).values()))


def _read(config: DataConfig, task: TaskConfig, report: DataReport) -> Iterator[RawRow]:
    for row in read_rows(config, task):
        report.hear(row)
        yield row


def read_rows(config: DataConfig, task: TaskConfig) -> Iterator[RawRow]:
    """All rows that the settings name, as they are read, with their sites."""
    columns = columns_of(config, task)
    if config.source is not None:
        yield from read_named(config.source)
    elif config.folder is not None:
        yield from read_image_folder(config.folder, sites=config.partition == "natural")
    elif config.files is not None:
        for site, path in sorted(config.files.items()):
            for row in read_file(path, columns):
                yield replace(row, site=site)
    elif config.file is not None:
        yield from read_file(config.file, columns)
    else:
        yield from read_dataset(str(config.dataset), columns)


def _distinct(
    rows: Iterable[RawRow], inconsistent: str, kind: Kind, report: DataReport
) -> list[RawRow]:
    """Each input once, over all sites: a test row of one site must not train at another.

    Texts are equal if they differ in white space only. The first row stays; texts with different
    labels are dropped, kept (the first), or an error.
    """
    kept: dict[str | bytes, RawRow] = {}
    contradicted: set[str | bytes] = set()
    for row in rows:
        text = _key(kind, row)
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


def _key(kind: Kind, row: RawRow) -> str | bytes:
    """What a row is equal by: of a long text a digest, else the row's own text where it can be, so
    that no second copy of the texts is held."""
    identity = kind.identity(str(row.text), str(row.label))
    if len(identity) > _LONG:
        return hashlib.blake2b(identity.encode(), digest_size=24).digest()
    return str(row.text) if identity == row.text else identity


def _check_sites(
    complete: Sequence[RawRow], rows: Sequence[RawRow], config: DataConfig, report: DataReport
) -> None:
    """A site that has nothing left must not vanish unsaid."""
    named = report.sites | set(config.files or {})
    for site in sorted(named - {str(row.site) for row in rows}):
        raise EmptyDataError(
            f"site {site!r} has no rows left after cleaning",
            given="; ".join(report.lines()),
            remedy=text_remedy(complete, config)
            or "remove the site, or see whether its rows are copies of another site's",
        )


def _deal(
    units: Units, rows: Sequence[RawRow], labels: Rows, config: DataConfig, seed: int
) -> Mapping[str, Rows]:
    if config.partition != "natural":
        parts = partition(
            units.majority(labels),
            how=config.partition,
            sites=config.sites or 1,
            alpha=config.alpha,
            shards_per_site=config.shards_per_site,
            seed=seed,
        )
        width = len(str(len(parts) - 1))
        return {
            f"site-{index:0{width}d}": np.sort(units.take(part).rows)
            for index, part in enumerate(parts)
        }
    dealt: dict[str, list[int]] = {}
    for index, row in enumerate(rows):
        dealt.setdefault(str(row.site), []).append(index)  # none is missing: see complete_rows
    return {site: np.array(indices, dtype=np.int64) for site, indices in dealt.items()}
