"""The targets of a run: well formed; of classes enough of each, none at one site alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Sequence
from difflib import get_close_matches
from itertools import pairwise

import numpy as np

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import BadValueError, LabelError
from hushtune.common.kinds import Targets
from hushtune.common.tasks.rows import RawRow
from hushtune.common.tasks.units import Rows

BINS = 5
"""Strata of numbers: equal parts of their public range."""


def check_targets(rows: Iterable[RawRow], task: TaskConfig, *, column: str) -> None:
    """BadValueError for a number that is none or outside the public range, LabelError for a text
    that has not one tag for each word."""
    targets = task.of.targets
    for row in rows:
        if targets is Targets.NUMBER:
            _check_number(row, task.bounds, column)
        elif targets is Targets.TAGS:
            words, tags = len(str(row.text).split(" ")), len(str(row.label).split(" "))
            if words != tags:
                raise LabelError(
                    "a text has another number of tags than of words",
                    given=f"{words} words, {tags} tags at {row.place}",
                    expected="a tag for each word, both parted by single spaces",
                )


def _check_number(row: RawRow, bounds: tuple[float, float], column: str) -> None:
    try:
        value = float(str(row.label))
    except ValueError:
        value = math.nan
    low, high = bounds
    if not low <= value <= high:
        file, _, number = row.place.rpartition(":")
        raise BadValueError(
            "the target is no number within task.range",
            file=file,
            row=int(number) if number.isdecimal() else None,
            column=column,
            given=str(row.label)[:80],
            expected=f"{low:g} to {high:g}",
            remedy="mend the row, or set task.range to what can be",
        )


def names_of(answer: str) -> list[str]:
    """The labels of an example that has several.

    >>> names_of("comedy|drama"), names_of("|")
    (['comedy', 'drama'], [])
    """
    return [name.strip() for name in answer.split("|") if name.strip()]


def stratified(
    rows: Sequence[RawRow], names: Sequence[str], task: TaskConfig
) -> tuple[tuple[str, ...], Rows]:
    """By what rows are split and dealt: the names of the strata, and each row's, ``(n,)``.

    A class is one. Numbers are parted into equal bins of their public range, of several labels the
    first counts, and texts with tags or answers are all alike.
    """
    targets, strata = task.of.targets, tuple(names)
    if targets is Targets.CLASS:
        place = {name: index for index, name in enumerate(strata)}
        return strata, np.array([place[str(row.label)] for row in rows], dtype=np.int64)
    if targets is Targets.CLASSES:
        strata = (*strata, "none of them")
        place = {name: index for index, name in enumerate(strata)}
        firsts = [min(names_of(str(row.label)), default=strata[-1]) for row in rows]
        return strata, np.array([place[name] for name in firsts], dtype=np.int64)
    if targets is Targets.NUMBER:
        low, high = task.bounds
        edges = np.linspace(low, high, BINS + 1)
        values = np.array([float(str(row.label)) for row in rows])
        bins = np.clip(np.searchsorted(edges, values, side="right") - 1, 0, BINS - 1)
        named = tuple(f"{a:g} to {b:g}" for a, b in pairwise(edges.tolist()))
        return named, bins.astype(np.int64)
    return ("texts",), np.zeros(len(rows), dtype=np.int64)


def label_names(rows: Sequence[RawRow], config: DataConfig, task: TaskConfig) -> tuple[str, ...]:
    """All classes, labels or tags: those that are declared, or else those of the rows, sorted.

    None for numbers and answers. Raises LabelError where a row has one that is not declared. Where
    none is, unless there are two classes, each occurs twice and, where the data say who holds what
    and there are more sites than one, at two sites.
    """
    targets = task.of.targets
    if targets in (Targets.NUMBER, Targets.ANSWER):
        return ()
    if targets is Targets.CLASSES or targets is Targets.TAGS:
        parted = names_of if targets is Targets.CLASSES else str.split
        each = ((name, row.place) for row in rows for name in parted(str(row.label)))
    else:
        each = ((str(row.label), row.place) for row in rows)
    if config.labels is not None:
        return _declared(each, config.labels, column=config.label)
    if targets is Targets.CLASS:
        return _checked(rows, config, sampled=None)
    names = tuple(sorted({name for name, _ in each}))
    if len(names) < 2:
        raise _error(
            "the data have fewer than two labels, so there is nothing to learn",
            ", ".join(names) or "none",
            "two labels or more",
            "check data.label",
            None,
        )
    return names


def check_sample(
    rows: Sequence[RawRow],
    names: Sequence[str],
    config: DataConfig,
    task: TaskConfig,
    *,
    by: str,
) -> None:
    """LabelError unless the rows that a subsample leaves have every label, as `label_names` wants.

    ``by``: the setting that leaves them, or several.
    """
    if config.labels is not None or not task.of.has_classes:
        return  # a site may lack a label that others have
    left = {row.label for row in rows}
    for name in names:
        if name not in left:
            raise _error(
                f"label {name!r} has no row left", "0 rows", "rows of each label", None, by
            )
    _checked(rows, config, sampled=by)


def _declared(
    each: Iterable[tuple[str, str]], labels: tuple[str, ...], *, column: str
) -> tuple[str, ...]:
    """The declared labels, in their order; LabelError for a row that has another.

    ``each``: labels and where they stand.
    """
    known = frozenset(labels)
    for label, place in each:
        if label not in known:
            near = get_close_matches(label, labels, n=1)
            raise LabelError(
                "a row has a label that data.labels does not have",
                given=f"{label!r} at {place}",
                expected=", ".join(labels),
                remedy=(f"did you mean {near[0]!r}? " if near else "")
                + f"Mend the row, or see whether column {column!r} is the label",
            )
    return labels


def _checked(rows: Sequence[RawRow], config: DataConfig, *, sampled: str | None) -> tuple[str, ...]:
    counts = Counter(str(row.label) for row in rows)
    if len(counts) < 2:
        raise _error(
            "the data have one label only, so there is nothing to learn",
            next(iter(counts)),
            "two labels or more",
            "check data.label",
            sampled,
        )
    for label, count in sorted(counts.items()):
        if count == 1:
            raise _error(
                f"label {label!r} occurs once only, so it cannot be both trained and tested",
                next(row.place for row in rows if row.label == label),
                "each label at least twice",
                f"is column {config.label!r} the label? Join rare labels, or remove the row",
                sampled,
            )
    sites = {row.site for row in rows}
    if config.partition == "natural" and len(sites) > 1:
        for label in sorted(counts):
            places = {row.site for row in rows if row.label == label}
            if len(places) == 1:
                raise _error(
                    f"label {label!r} occurs at site {next(iter(places))!r} only: the model could "
                    "tell the site in its place, and every update about it is that site's",
                    f"{counts[label]} rows",
                    "each label at two sites or more",
                    "join rare labels, or check that the sites spell labels alike",
                    sampled,
                )
    return tuple(sorted(counts))


def _error(
    what: str, given: str, expected: str, remedy: str | None, sampled: str | None
) -> LabelError:
    if sampled is None:
        return LabelError(what, given=given, expected=expected, remedy=remedy)
    return LabelError(
        what,
        given=f"{given}, of the rows left by {sampled}",
        expected=expected,
        remedy=f"raise {sampled}, or join rare labels",
    )
