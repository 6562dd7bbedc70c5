"""Rows that are judged: each in shapes of its own where its figures are told, side by side where
only their mean is looked at."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common.adapter import AdapterState
from hushtune.common.model import Level
from hushtune.common.tasks.activations import (
    Padding,
    TokenRows,
    padded_alike,
    padded_to_beside,
    side_by_side,
)
from hushtune.common.tasks.units import Rows, Units

from .families import NUM_LABELS, NUM_ROWS, TEXT_CASES, make_task, moved

ALL = np.arange(NUM_ROWS, dtype=np.int64)


def shapes_of(
    task: Any, rows: Any, monkeypatch: pytest.MonkeyPatch, *, apart: bool
) -> dict[int, Any]:
    """In what shape of inputs each row is judged."""
    found: dict[int, Any] = {}
    batch = task._batch

    def seen(inputs: Any, targets: Any, which: Any, level: Level, **more: Any) -> Any:
        made = batch(inputs, targets, which, level, **more)
        found.update({int(row): tuple(made.inputs["input_ids"].shape) for row in which})
        return made

    with monkeypatch.context() as patch:
        patch.setattr(task, "_batch", seen)
        task.figures(moved(task.model), rows, apart=apart)
    return found


@pytest.mark.parametrize(("family", "head"), TEXT_CASES)
@pytest.mark.parametrize("megabytes", [0, 8])
def test_side_by_side_the_figures_are_the_same_but_for_rounding(
    family: str, head: str, megabytes: int
) -> None:
    task = make_task(family, head, cache_megabytes=megabytes)
    state = moved(task.model)
    rows = ALL[::-1].copy()
    apart = task.figures(state, rows)
    assert apart.std() > 0
    torch.testing.assert_close(task.figures(state, rows, apart=False), apart, rtol=1e-5, atol=1e-5)


@contextmanager
def through_the_lowest_block(task: Any) -> Iterator[list[int]]:
    """How many rows go through the lowest block, pass by pass."""
    found: list[int] = []
    block = task.model.blocks[0]
    hook = block.register_forward_pre_hook(lambda _module, args: found.append(len(args[0])))
    yield found
    hook.remove()


def without_effect(task: Any) -> AdapterState:
    """An adapter whose every B is zero."""
    return moved(task.model).map(lambda tensor: 0 * tensor)


@pytest.mark.parametrize("kept", [True, False])
@pytest.mark.parametrize("level", [Level.HIDDEN, Level.FEATURES])
def test_a_look_computes_frozen_blocks_of_each_row_once_or_not_at_all(
    level: Level, kept: bool
) -> None:
    task = make_task("bert", "mean", cache_megabytes=8 if kept else 0)
    state = moved(task.model) if level is Level.HIDDEN else without_effect(task)
    assert task.level(state) is level
    task.fill(features=level is Level.FEATURES)
    with through_the_lowest_block(task) as passed:
        task.figures(state, ALL, apart=False)
    assert sum(passed) == (0 if kept else NUM_ROWS)


def test_a_look_with_a_head_on_a_lower_layer_reads_that_layer() -> None:
    task = make_task("bert", "mean", cache_megabytes=0)
    state = moved(task.model)
    state = state.map(lambda tensor: tensor if len(tensor) == NUM_LABELS else 0 * tensor)
    whole = task.figures(state, ALL)
    with task.reading(1):
        apart = task.figures(state, ALL)
        assert not torch.allclose(apart, whole)
        found = task.figures(state, ALL, apart=False)
    torch.testing.assert_close(found, apart, rtol=1e-5, atol=1e-5)


def test_how_wide_rows_are_is_found_once_for_all_of_them(monkeypatch: pytest.MonkeyPatch) -> None:
    """And not for every piece, which would take the square of their number."""
    count = 300
    task = make_task("bert", "mean", count=count, cache_megabytes=8)
    padded, whole = TokenRows._padded, list[Padding]()

    def seen(self: TokenRows, lengths: Rows) -> Rows:
        if len(lengths) == count:
            whole.append(self.padding)
        return padded(self, lengths)

    monkeypatch.setattr(TokenRows, "_padded", seen)
    everyone = np.arange(count, dtype=np.int64)
    for apart in (True, False):
        task.figures(moved(task.model), everyone, apart=apart)
    for piece in task.microbatches(Units.single(everyone), 4, Level.HIDDEN):
        task.batch(piece.rows, Level.HIDDEN)
    assert sorted(whole) == [Padding.BESIDE, Padding.OWN]


def test_a_row_whose_figures_are_told_is_judged_in_a_shape_of_its_own(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = make_task("bert", "mean", cache_megabytes=0)
    whole = shapes_of(task, ALL, monkeypatch, apart=True)
    for row in ALL:
        rest = np.delete(ALL, row)
        assert shapes_of(task, rest, monkeypatch, apart=True).items() <= whole.items()
    assert shapes_of(task, ALL, monkeypatch, apart=False) != whole  # which no look alone needs


def test_what_sites_tell_of_rows_is_judged_apart_and_a_researcher_s_look_is_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = make_task("bert", "mean")
    state, asked = moved(task.model), list[bool]()
    figures = task.figures

    def seen(*given: Any, apart: bool = True) -> Any:
        asked.append(apart)
        return figures(*given, apart=apart)

    monkeypatch.setattr(task, "figures", seen)
    task.row_figures(state, ALL)
    task.metrics_by_group(state, {"all": ALL})
    task.metrics_of_models({"own": (state, ALL)}, together="all")
    assert asked == [True, False, False]


@pytest.mark.parametrize("size", [1, 2, 5, 64])
def test_side_by_side_every_row_is_there_once_and_little_is_padded(size: int) -> None:
    inputs = make_task("bert", "mean").inputs
    beside = padded_to_beside(inputs)
    pieces = side_by_side(beside, ALL, size)
    assert sorted(np.concatenate([piece.rows for piece in pieces])) == ALL.tolist()
    for piece in pieces:
        assert piece.units.rows.tolist() == piece.rows.tolist()
        shape = beside.inputs(piece.rows)["input_ids"].shape
        assert tuple(shape) == (len(piece.rows), max(inputs.lengths[piece.rows]))
        assert len(piece.rows) <= 2 * size
    widest = [int(beside.widths[piece.rows].max()) for piece in pieces]
    assert widest == sorted(widest, reverse=True)


def test_what_is_padded_alike_stays_so() -> None:
    alike = padded_alike(make_task("bert", "mean").inputs)
    assert padded_to_beside(alike).padding is Padding.ALIKE
    for piece in side_by_side(alike, ALL, 2):
        assert alike.inputs(piece.rows)["input_ids"].shape[1] == alike.max_tokens
