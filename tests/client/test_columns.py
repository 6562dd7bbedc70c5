"""A network on columns under DP-SGD: an example's gradient is its own, and no cell moves more."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from torch import Tensor

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.columns import Column
from hushtune.common.columns_model import columns_model
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.errors import TargetModuleError
from hushtune.common.lora_rules import FEDIT, FEDSGD, FFA, trainable_keys
from hushtune.common.model import Level
from hushtune.common.tasks.column_rows import ColumnEncoder
from hushtune.common.tasks.objectives import Classification, Objective, Regression
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.targets import DenseTargets
from hushtune.common.tasks.units import Units

from .families import flat, moved, summed

COLUMNS = (Column("age", (0.0, 120.0)), Column("job", values=("clerk", "nurse", "pilot")))
JOBS = ("clerk", "nurse", "pilot", "diver", None)
COUNT, WIDTH = 11, 5
TARGETS = ("classes", "number")
HIDDEN, OUTPUT = "head.hidden.weight", "head.output.weight"
every_target = pytest.mark.parametrize("target", TARGETS)


def rows() -> list[dict[str, object]]:
    return [{"age": 7 * row, "job": JOBS[row % len(JOBS)]} for row in range(COUNT)]


def columns_task(
    target: str, table: list[dict[str, object]] | None = None, *, megabytes: int = 0
) -> Supervised:
    inputs, _ = ColumnEncoder(COLUMNS).rows([json.dumps(row) for row in table or rows()])
    made: dict[str, tuple[Objective, Tensor]] = {
        "classes": (Classification(torch.tensor([0.5, 1.0, 4.0])), torch.arange(COUNT) % 3),
        "number": (Regression(0.0, 10.0), torch.arange(COUNT) * 0.9),
    }
    objective, targets = made[target]
    model = columns_model(
        COLUMNS,
        model=ModelConfig(name="columns", width=WIDTH),
        adapter=AdapterConfig(),
        num_outputs=objective.num_outputs,
        seed=3,
    )
    return Supervised(model, inputs, DenseTargets(targets), objective, cache_megabytes=megabytes)


def alone(task: Supervised, row: int, state: AdapterState) -> Tensor:
    """The gradient of one example by plain autograd, in a batch of its own."""
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, state.keys)
    (loss,) = task.example_losses(task.batch(np.array([row]), Level.FEATURES))
    found = torch.autograd.grad(loss, list(trained.values()))
    return flat(dict(zip(trained, found, strict=True)))


@every_target
@pytest.mark.parametrize("level", [Level.FEATURES, Level.TOKENS])
def test_the_clipped_sum_is_that_of_each_example_by_itself(target: str, level: Level) -> None:
    task = columns_task(target)
    state = moved(task.model)
    gradients = [alone(task, row, state) for row in range(COUNT)]
    clip = float(torch.stack([g.norm() for g in gradients]).median())
    expected = torch.stack([g / max(1.0, float(g.norm()) / clip) for g in gradients]).sum(0)
    for microbatch in (2, 100):
        found = summed(
            task, range(COUNT), state=state, clip_norm=clip, microbatch=microbatch, level=level
        )
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_target
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(target: str) -> None:
    task = columns_task(target)
    state = moved(task.model)
    clip = 1e-3  # every gradient is longer
    whole = summed(task, range(COUNT), state=state, clip_norm=clip)
    for gone in range(COUNT):
        rest = [row for row in range(COUNT) if row != gone]
        share = whole - summed(task, rest, state=state, clip_norm=clip)
        assert float(share.norm()) == pytest.approx(clip, rel=1e-3)


@every_target
@pytest.mark.parametrize("cell", [{"age": 1e9}, {"age": None}, {"job": "pilot"}, {"job": "x"}])
def test_one_cell_changes_what_is_computed_of_its_row_alone(
    target: str, cell: dict[str, object]
) -> None:
    """A scale taken from the rows, such as a mean or a largest value, would change all others."""
    table = rows()
    table[4] = {**table[4], **cell}
    before, after = columns_task(target), columns_task(target, table)
    state = moved(before.model)
    others = np.array([row for row in range(COUNT) if row != 4])
    assert torch.equal(before.figures(state, others), after.figures(state, others))
    clip = 0.05
    sums = [
        summed(task, rest, state=state, clip_norm=clip)
        for task in (before, after)
        for rest in (others, range(COUNT))
    ]
    assert torch.equal(sums[0], sums[2])
    assert float((sums[1] - sums[3]).norm()) <= 2 * clip * (1 + 1e-6)


def test_a_unit_s_rows_are_clipped_as_one() -> None:
    task = columns_task("classes")
    state = moved(task.model)
    units = Units.by_code(np.arange(COUNT), np.arange(COUNT) % 3)
    clip = 1e-3
    whole = summed(task, units, state=state, clip_norm=clip)
    for gone in range(3):
        rest = units.take(np.array([place for place in range(3) if place != gone]))
        share = whole - summed(task, rest, state=state, clip_norm=clip)
        assert float(share.norm()) <= clip * (1 + 1e-3)


@every_target
def test_every_level_and_a_kept_table_give_the_same(target: str) -> None:
    kept, anew = columns_task(target, megabytes=1), columns_task(target)
    state = moved(kept.model)
    assert kept.level(state) is Level.FEATURES
    assert kept.level(state, tuple(state.keys)) is Level.FEATURES
    places = np.arange(COUNT)
    assert torch.equal(kept.figures(state, places), anew.figures(state, places))


def test_the_first_weights_follow_from_the_seed_and_can_be_learnt_from() -> None:
    model = columns_task("classes").model
    first, again = (lora.initial_state(model, seed=5) for _ in range(2))
    assert first.digest() == again.digest()
    assert first.digest() != lora.initial_state(model, seed=6).digest()
    assert first.tensors[HIDDEN].abs().min() > 0
    assert 0.1 < float(first.tensors[HIDDEN].std()) < 1
    assert not first.tensors[OUTPUT].any()


def test_all_is_head_whatever_the_rule_and_the_round() -> None:
    spec = lora.spec(columns_task("classes").model)
    assert spec.targets == ()
    for rule in (FEDIT, FFA, FEDSGD):
        for turn in (None, 0, 1):
            assert trainable_keys(rule, spec, turn=turn) == spec.all_keys()


def test_a_network_for_other_columns_is_another_base() -> None:
    ours = columns_task("classes").model
    other = columns_model(
        (Column("age", (0.0, 100.0)), COLUMNS[1]),
        model=ModelConfig(name="columns", width=WIDTH),
        adapter=AdapterConfig(),
        num_outputs=3,
        seed=3,
    )
    with pytest.raises(TargetModuleError):
        lora.install(ours, lora.initial_state(other, seed=3))
