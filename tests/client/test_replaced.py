"""Sensitivity where an example's target is smoothed, and where one example takes another's place.

Under ``privacy.relation = "replace_one"`` neighbours have equally many records, and differ in one:
the sum moves by what the old one gave and by what the new one gives, which is 2 C at most. That is
what the accountant charges for (``test_accountant.py``: as removing at half the noise).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.model import Level
from hushtune.common.tasks.targets import DenseTargets

from .families import CLASS_WEIGHTS, NUM_ROWS, flat, make_task, moved, summed
from .test_kinds import CASES as KIND_CASES
from .test_kinds import kind_task
from .words import words_task

ROUNDING = 1e-6
SMOOTHING = 0.4
SMOOTHED = pytest.mark.parametrize(
    ("family", "head"), [("bert", "mean"), ("bert", "own"), ("gpt2", "own"), ("llama", "mean")]
)


def smoothed(family: str, head: str) -> tuple[Any, AdapterState]:
    task = make_task(family, head, smoothing=SMOOTHING)
    return task, moved(task.model)


def smoothed_gradient(task: Any, row: int, state: AdapterState) -> torch.Tensor:
    """Of one example by plain autograd, its loss written out: each label gets an even part."""
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, state.keys)
    task.model.frozen_mode()
    batch = task.batch(np.array([row]), Level.TOKENS)
    label, chances = int(batch.targets[0]), task.model(batch.inputs)[0].log_softmax(0)
    loss = -(1 - SMOOTHING) * chances[label] - SMOOTHING * chances.mean()
    loss = CLASS_WEIGHTS[label] * loss
    found = torch.autograd.grad(loss, list(trained.values()))
    return flat(dict(zip(trained, found, strict=True)))


@SMOOTHED
def test_with_smoothed_labels_the_sum_is_that_of_each_example_alone(family: str, head: str) -> None:
    """Clipped, and where nothing is."""
    task, state = smoothed(family, head)
    gradients = [smoothed_gradient(task, row, state) for row in range(NUM_ROWS)]
    middle = float(torch.stack([one.norm() for one in gradients]).median())
    for clip in (middle, 1e6):
        expected = sum(one / max(1.0, float(one.norm()) / clip) for one in gradients)
        found = summed(task, range(NUM_ROWS), state=state, clip_norm=clip, microbatch=4)
        assert torch.linalg.norm(found - expected) <= 1e-5 * min(clip, middle) * NUM_ROWS


@SMOOTHED
def test_with_smoothed_labels_one_record_moves_the_sum_by_at_most_the_clip_norm(
    family: str, head: str
) -> None:
    task, state = smoothed(family, head)
    clip = 1e-2
    whole = summed(task, range(NUM_ROWS), state=state, clip_norm=clip)
    for gone in range(NUM_ROWS):
        rest = [row for row in range(NUM_ROWS) if row != gone]
        moved_by = float((whole - summed(task, rest, state=state, clip_norm=clip)).norm())
        assert clip * (1 - 1e-4) <= moved_by <= clip * (1 + ROUNDING)  # all are clipped


def moves(task: Any, state: AdapterState, rows: Sequence[int], clip: float) -> list[float]:
    """How far the sum of ``rows`` moves where any of them is replaced by any that is not there."""
    whole = summed(task, rows, state=state, clip_norm=clip)
    others = [row for row in range(NUM_ROWS) if row not in rows]
    found: list[float] = []
    for place in range(len(rows)):
        for other in others:
            swapped = [*rows[:place], other, *rows[place + 1 :]]
            found.append(float((whole - summed(task, swapped, state=state, clip_norm=clip)).norm()))
    return found


@pytest.mark.parametrize(
    ("kind", "family"), [*KIND_CASES, ("classes", "bert"), ("words", "llama"), ("words", "t5")]
)
def test_a_replaced_record_moves_the_sum_by_at_most_twice_the_clip_norm(
    kind: str, family: str
) -> None:
    task: Any = (
        smoothed(family, "mean")[0]
        if kind == "classes"
        else words_task(family)
        if kind == "words"
        else kind_task(kind, family)
    )
    state = moved(task.model)
    clip = 1e-3  # every gradient is longer
    found = moves(task, state, range(NUM_ROWS - 1), clip)
    assert max(found) <= 2 * clip * (1 + ROUNDING)
    assert max(found) > 0.5 * clip  # and examples differ


@pytest.mark.parametrize("kind", ["regression", "pairs"])
def test_twice_the_clip_norm_is_reached_so_that_removing_does_not_cover_replacing(
    kind: str,
) -> None:
    """One input whose target is the least that there can be, or the largest: the gradients are
    opposite, and neither is taken for the other's."""
    task = kind_task(kind, "bert")
    targets = torch.tensor([-2.0, 10.0]).repeat(NUM_ROWS)[:NUM_ROWS]
    tokens: Any = task.inputs
    size = int(tokens.lengths[0])
    ids = tokens.ids[:size].repeat(NUM_ROWS)
    same = type(tokens)(ids, np.arange(NUM_ROWS + 1) * size, tokens.pad_id, tokens.max_tokens)
    alike = type(task)(task.model, same, DenseTargets(targets), task.objective)
    state, clip = moved(task.model), 1e-3
    rows = [0, 2, 4]  # of the least
    found = moves(alike, state, rows, clip)
    assert max(found) == pytest.approx(2 * clip, rel=1e-4)
    assert min(found) == pytest.approx(0.0, abs=1e-4 * clip)  # by its like: nothing changes
