"""What training and test rows have in common after the split that a run would make."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np

from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError
from hushtune.common.kinds import Inputs
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.units import Rows
from hushtune.simulations.datacheck.findings import Finding, Level
from hushtune.simulations.datacheck.near import ALIKE, MOST_ROWS, near_pairs, sampled
from hushtune.simulations.datacheck.tables import leaked_rows


def leakage(data: LabelledRows, config: RunConfig, column: str | None) -> Iterator[Finding]:
    """Texts and groups of which some rows train and others test, at whatever sites.

    ``column``: of patients, users or the like; None where none is known.
    """
    train = np.concatenate([split.train for split in data.sites.values()])
    test = np.concatenate([split.test for split in data.sites.values()])
    kind = config.task.of
    if kind.repeats:
        yield from leaked_rows(data, train, test, kind)
    else:
        same = {_same(data, config, i) for i in train} & {_same(data, config, i) for i in test}
        if same:
            yield Finding(
                "leakage", Level.PROBLEM, f"{len(same)} texts are in training and in test rows"
            )
        if kind.inputs is not Inputs.IMAGE:
            yield from _near(data, train, test)
    if column is not None:
        yield from _groups(config, column, train, test, rows=len(data.texts))


def _same(data: LabelledRows, config: RunConfig, row: int) -> str:
    return config.task.of.identity(data.texts[row], data.answers[row])


def _near(data: LabelledRows, train: Rows, test: Rows) -> Iterator[Finding]:
    part = np.zeros(len(data.texts), dtype=np.int8)
    part[train], part[test] = 1, 2
    rows = np.flatnonzero(part)
    rows = rows[sampled(len(rows), MOST_ROWS)]
    texts = [f"{data.texts[i]} {data.answers[i]}" for i in rows]
    if data.label_names:  # two texts are alike whatever their labels
        texts = [data.texts[i] for i in rows]
    leaked = {
        int(rows[a] if part[rows[a]] == 2 else rows[b])
        for a, b in near_pairs(texts)
        if part[rows[a]] != part[rows[b]]
    }
    if leaked:
        tested = int((part[rows] == 2).sum())
        yield Finding(
            "leakage",
            Level.WARNING,
            f"{len(leaked)} of {tested} test rows are nearly equal to a training row (at least "
            f"{ALIKE:.0%} of their three-word sequences): their scores are partly what was learnt "
            "by heart",
            "remove near copies, or keep those of one source in one part: data.split_by = "
            '"the column that names it"',
        )


def _groups(
    config: RunConfig, column: str, train: Rows, test: Rows, *, rows: int
) -> Iterator[Finding]:
    data = config.data
    if column in (data.group, data.split_by):
        setting = "data.group" if data.group == column else "data.split_by"
        yield Finding(
            "leakage", Level.NOTE, f"rows of one {column!r} are in one part only ({setting})"
        )
        return
    if data.group is not None or data.split_by is not None:
        return
    try:
        blocks = load_data(
            data.model_copy(update={"split_by": column}), config.task, seed=config.seed
        ).blocks
    except HushtuneError:  # rows that name none: there is no telling
        return
    if blocks is None or len(blocks) != rows:
        return
    both = set(blocks[train].tolist()) & set(blocks[test].tolist())
    if both:
        tested = int(np.isin(blocks[test], list(both)).sum())
        yield Finding(
            "leakage",
            Level.WARNING,
            f"{len(both)} values of {column!r} have training rows and test rows; {tested} of "
            f"{len(test)} test rows are theirs",
            f'data.split_by = "{column}" keeps them together; privacy.unit = "group" with '
            f'data.group = "{column}" also promises privacy for all rows of one',
        )
