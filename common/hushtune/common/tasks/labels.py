"""The targets of a run: well formed; of classes enough of each, none at one site alone."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from difflib import get_close_matches
from itertools import pairwise
from typing import Any

import numpy as np

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import BadValueError, LabelError
from hushtune.common.kinds import Targets
from hushtune.common.tasks.rows import RawRow
from hushtune.common.tasks.units import Rows

BINS = 5
"""Strata of numbers: equal parts of their public range."""


def check_targets(rows: Iterable[RawRow], task: TaskConfig, config: DataConfig) -> None:
    """Raise the first of ``bad_targets``."""
    for error in bad_targets(rows, task, config):
        raise error


def bad_targets(
    rows: Iterable[RawRow], task: TaskConfig, config: DataConfig
) -> Iterator[BadValueError | LabelError]:
    """An error for each row that a run refuses for its target: see ``target_error``."""
    targets, bounds, column = task.of.targets, task.range, config.label
    for row in rows:
        error = target_error(row, targets, bounds=bounds, labels=config.labels, column=column)
        if error is not None:
            yield error


def target_error(
    row: RawRow,
    targets: Targets,
    *,
    bounds: tuple[float, float] | None,
    labels: tuple[str, ...] | None,
    column: str,
) -> BadValueError | LabelError | None:
    """What is wrong with a row's target, which is there; None where nothing is.

    BadValueError for a number that is none or outside ``bounds``; LabelError for a text that has
    not one tag for each word, and for a label that is not one of ``labels``. None for either of
    these: any will do.
    """
    file, number = row.where
    where: dict[str, Any] = {"file": file, "row": number, "column": column}
    if targets is Targets.NUMBER:
        low, high = bounds or (-math.inf, math.inf)
        if _is_within(str(row.label), low, high):
            return None
        return BadValueError(
            "the target is no number" + (" within task.range" if bounds else ""),
            given=str(row.label)[:80],
            expected=f"{low:g} to {high:g}" if bounds else "a number",
            remedy="mend the row, or set task.range to what can be",
            **where,
        )
    if targets is Targets.TAGS:
        words, tags = len(str(row.text).split(" ")), len(str(row.label).split(" "))
        if words != tags:
            return LabelError(
                "a text has another number of tags than of words",
                given=f"{words} words, {tags} tags",
                expected="a tag for each word, both parted by single spaces",
                remedy="mend the row; where a word holds a space, write both columns as lists",
                **where,
            )
    if labels is None or targets is Targets.ANSWER:
        return None
    unknown = next((n for n in _names_in(str(row.label), targets) if n not in labels), None)
    if unknown is None:
        return None
    near = get_close_matches(unknown, labels, n=1)
    return LabelError(
        "a row has a label that data.labels does not have",
        given=repr(unknown),
        expected=", ".join(labels),
        remedy=(f"did you mean {near[0]!r}? " if near else "")
        + f"Mend the row, or see whether column {column!r} is the label",
        **where,
    )


def _is_within(text: str, low: float, high: float) -> bool:
    try:
        value = float(text)
    except ValueError:
        return False
    return math.isfinite(value) and low <= value <= high


def _names_in(target: str, targets: Targets) -> list[str]:
    """The classes, labels or tags of a canonical target."""
    if targets is Targets.CLASSES:
        return names_of(target)
    return target.split() if targets is Targets.TAGS else [target]


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
    first counts, and sentences with tags, or answers, are all alike.
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
    alike = "sentences" if targets is Targets.TAGS else "answers"
    return (alike,), np.zeros(len(rows), dtype=np.int64)


def label_names(rows: Sequence[RawRow], config: DataConfig, task: TaskConfig) -> tuple[str, ...]:
    """All classes, labels or tags: those that are declared, or else those of the rows, sorted.

    None for numbers and answers. Where none is declared, raises LabelError unless there are two
    classes, each occurs twice and, where the data say who holds what and there are more sites than
    one, at two sites.
    """
    targets = task.of.targets
    if targets in (Targets.NUMBER, Targets.ANSWER):
        return ()
    if config.labels is not None:
        return config.labels
    if targets is Targets.CLASS:
        return _checked(rows, config, sampled=None)
    names = tuple(sorted({name for row in rows for name in _names_in(str(row.label), targets)}))
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
