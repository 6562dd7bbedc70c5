"""Rows that are judged: each in shapes of its own where its figures are told, side by side where
only their mean is looked at."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common.model import Level
from hushtune.common.tasks.activations import Padding, padded_alike, padded_to_beside, side_by_side

from .families import NUM_ROWS, TEXT_CASES, make_task, moved

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
