"""Per-example gradients, clipping and noise, on every family, against slow references."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor

from hushtune.client import dp
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import PrivacyError
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.schedules import learning_rate
from hushtune.common.seeds import rng
from hushtune.common.tasks.base import Batch
from hushtune.common.tasks.units import Units

from .families import (
    CASES,
    NUM_ROWS,
    TEXT_CASES,
    adapted,
    flat,
    kept_task,
    make_task,
    moved,
    one_gradient,
    plan_off,
    private_plan,
    reference_sum,
    summed,
    tensor_task,
)

every_case = pytest.mark.parametrize(("family", "head"), CASES)
every_text = pytest.mark.parametrize(("family", "head"), TEXT_CASES)
ROUNDING = 1e-6
"""Gradients are float32: in a batch of another size the last bits of an image's may differ."""


def median_norm(task: Any, state: AdapterState) -> float:
    """The middle of the examples' norms: half of the examples are clipped at it."""
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, state.keys)
    task.model.frozen_mode()
    norms = [float(one_gradient(task, row, trained).norm()) for row in range(NUM_ROWS)]
    assert max(norms) > 1.5 * min(norms)
    return float(np.median(norms))


@every_case
@pytest.mark.parametrize("microbatch", [4, 100])
def test_equals_one_example_at_a_time(family: str, head: str, microbatch: int) -> None:
    task = kept_task(family, head)
    state = moved(task.model)
    clip = median_norm(task, state)
    for bound in (clip, 1e-3 * clip, 1e3 * clip):
        reference = reference_sum(task, range(NUM_ROWS), state=state, clip_norm=bound)
        found = summed(task, range(NUM_ROWS), state=state, clip_norm=bound, microbatch=microbatch)
        assert torch.linalg.norm(found - reference) <= 1e-5 * min(bound, clip)


@every_case
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(family: str, head: str) -> None:
    """With class weights of 0.5 to 4, and in one batch, where examples could meet."""
    task = kept_task(family, head)
    state = moved(task.model)
    for clip in (1e-2, median_norm(task, state)):
        whole = summed(task, range(NUM_ROWS), state=state, clip_norm=clip)
        for row in range(NUM_ROWS):
            rest = [other for other in range(NUM_ROWS) if other != row]
            moved_by = whole - summed(task, rest, state=state, clip_norm=clip)
            assert moved_by.norm() <= clip * (1 + ROUNDING)
        if clip == 1e-2:  # all are clipped: the bound is reached, so it is no accident
            assert moved_by.norm() >= clip * (1 - 1e-4)


def test_a_gradient_whose_squares_vanish_in_float32_is_clipped_all_the_same() -> None:
    """A server may scale A so that the gradients of B are as small as it likes."""
    task = kept_task("bert", "mean")
    state = moved(task.model)
    keys = [key for key in state.keys if "lora_B" in key]
    small = AdapterState(
        state.spec,
        {
            key: tensor * (1e-23 if "lora_A" in key else 1.0)
            for key, tensor in state.tensors.items()
        },
    )
    for clip in (1e-30, 1e-27):
        for row in range(NUM_ROWS):
            alone = summed(task, [row], state=small, clip_norm=clip, keys=keys)
            assert 0 < alone.norm() <= clip * (1 + ROUNDING)


def test_one_of_thousands_that_pull_the_same_way_moves_the_sum_by_no_more() -> None:
    """A float32 sum is off by 1e-5 of the clip norm there, which no secure sum accounts for."""
    task = tensor_task()
    state = moved(task.model)
    clip, count = 1e-3, 2000
    whole = summed(task, [0] * count, state=state, clip_norm=clip)
    without = summed(task, [0] * (count - 1), state=state, clip_norm=clip)
    assert float(whole.norm()) == pytest.approx(count * clip, rel=1e-6)
    assert float((whole - without).norm()) == pytest.approx(clip, rel=1e-9)


@every_case
def test_an_example_s_share_does_not_depend_on_the_others(family: str, head: str) -> None:
    task = kept_task(family, head)
    state = moved(task.model)
    clip = median_norm(task, state)
    for row in range(3):
        alone = summed(task, [row], state=state, clip_norm=clip)
        for others in ([3, 4], [5, 6, 7, 8], [(row + 1) % 3]):
            together = summed(task, [row, *others], state=state, clip_norm=clip)
            share = together - summed(task, others, state=state, clip_norm=clip)
            assert torch.linalg.norm(share - alone) <= 1e-5 * clip


@every_case
def test_the_sum_is_the_same_for_any_microbatch(family: str, head: str) -> None:
    task = kept_task(family, head)
    state = moved(task.model)
    clip = median_norm(task, state)
    sums = [
        summed(task, range(NUM_ROWS), state=state, clip_norm=clip, microbatch=size)
        for size in (1, 2, NUM_ROWS - 1, NUM_ROWS, 1000)
    ]
    for other in sums[1:]:
        assert torch.linalg.norm(other - sums[0]) <= 1e-5 * clip


def test_class_weights_scale_an_example_s_own_gradient_only() -> None:
    plain = make_task("bert", "mean", class_weights=(1.0, 1.0, 1.0))
    weighted = make_task("bert", "mean", class_weights=(0.5, 1.0, 4.0), model=plain.model)
    state = moved(plain.model)
    for row, weight in enumerate((0.5, 1.0, 4.0)):
        one = summed(plain, [row], state=state, clip_norm=1e6)
        torch.testing.assert_close(
            summed(weighted, [row], state=state, clip_norm=1e6), weight * one, rtol=1e-5, atol=1e-9
        )


def test_the_norm_is_taken_over_all_tensors_together() -> None:
    """Clipping each tensor by itself would let k tensors carry a norm of C sqrt(k)."""
    task = kept_task("bert", "mean")
    state = moved(task.model)
    assert summed(task, [2], state=state, clip_norm=1e-3).norm() == pytest.approx(1e-3, rel=1e-5)
    only_head = [key for key in state.keys if key.startswith("head.")]
    head = summed(task, [2], state=state, clip_norm=1e-3, keys=only_head)
    assert head.norm() == pytest.approx(1e-3, rel=1e-5)


def test_no_rows_give_zero_and_small_gradients_are_left_alone() -> None:
    task = kept_task("bert", "mean")
    state = moved(task.model)
    assert not summed(task, [], state=state, clip_norm=1.0).any()
    one = summed(task, [0], state=state, clip_norm=math.inf)
    assert 0 < one.norm() < 1e3
    torch.testing.assert_close(one, summed(task, [0], state=state, clip_norm=1e3))


@every_text
def test_bfloat16_products_keep_the_bound_and_nearly_the_losses(family: str, head: str) -> None:
    exact = kept_task(family, head)
    model = adapted(family, head, model={"precision": "bfloat16"})
    short = make_task(family, head, model=model)
    state = moved(model)
    for clip in (1e-3, 0.3):
        whole = summed(short, range(NUM_ROWS), state=state, clip_norm=clip)
        for row in range(NUM_ROWS):
            assert summed(short, [row], state=state, clip_norm=clip).norm() <= clip * (1 + ROUNDING)
        assert whole.norm() <= NUM_ROWS * clip * (1 + ROUNDING)
    losses = []
    for task in (exact, short):
        lora.install(task.model, state)
        task.model.frozen_mode()
        with torch.no_grad():
            batch = task.batch(np.arange(NUM_ROWS), task.level(state))
            losses.append(task.example_losses(batch))
        assert losses[-1].dtype == torch.float32
    torch.testing.assert_close(losses[1], losses[0], rtol=0.05, atol=0.05)
    assert not torch.equal(losses[1], losses[0])
    trained = lora.set_trainable(model, state.keys)
    assert {parameter.dtype for parameter in trained.values()} == {torch.float32}


@pytest.mark.parametrize("fault", ["batch axis lost", "tensor unused"])
def test_gradients_that_are_not_one_an_example_are_refused(fault: str) -> None:
    task = tensor_task()
    model, state = task.model, moved(task.model)

    def pooled(batch: Batch) -> Tensor:
        return model.head(batch.targets.new_ones(1, 32).float()).sum(1)

    def frozen(batch: Batch) -> Tensor:
        return task.model.head.bias.sum() * torch.ones(len(batch.targets))

    task.example_losses = pooled if fault == "batch axis lost" else frozen  # pyright: ignore
    heads = [key for key in state.keys if key.startswith("head.")]
    with pytest.raises(PrivacyError, match="example by example"):
        summed(task, range(3), state=state, clip_norm=1.0, keys=heads)


def test_hooks_leave_nothing_behind() -> None:
    task = tensor_task()
    state = moved(task.model)

    def hooks() -> dict[str, tuple[int, int]]:
        """Those of the model itself, which add a change of frozen weights, are there before."""
        return {
            name: (len(module._forward_hooks), len(module._backward_hooks))
            for name, module in task.model.named_modules()
        }

    before = hooks()
    summed(task, [0, 1], state=state, clip_norm=1.0)
    assert hooks() == before
    assert not any(getattr(m, "activations", None) for m in task.model.modules())
    assert all(getattr(p, "grad_sample", None) is None for p in task.model.parameters())


# ------------------------------------------------------------------------------ Poisson ----


def test_inclusion_is_binomial_and_independent() -> None:
    rows, rate, draws = Units.single(np.arange(100, 160)), 0.3, 3000
    random = rng(0, "poisson test")
    drawn = np.zeros((draws, len(rows)))
    for draw in drawn:
        chosen = dp.poisson_batch(rows, rate, random).rows
        assert len(np.unique(chosen)) == len(chosen)
        draw[chosen - 100] = 1
    counts = drawn.sum(0)
    variance = rate * (1 - rate)
    statistic = float(((counts - draws * rate) ** 2).sum() / (draws * variance))
    assert 1e-3 < stats.chi2.cdf(statistic, len(rows)) < 1 - 1e-3
    sizes = drawn.sum(1)
    spread = float(((sizes - len(rows) * rate) ** 2).sum() / (len(rows) * variance))
    assert 1e-3 < stats.chi2.cdf(spread, draws) < 1 - 1e-3
    # A fixed size would tie two rows to one another: covariance -q(1-q)/(n-1).
    pairs = np.corrcoef(drawn.T)[np.triu_indices(len(rows), 1)]
    assert abs(pairs.mean()) < 1e-2 / 3


def test_a_rate_of_one_takes_every_row_and_no_rows_give_none() -> None:
    rows = np.arange(7)
    assert list(dp.poisson_batch(Units.single(rows), 1.0, rng(0)).rows) == list(rows)
    assert len(dp.poisson_batch(Units.single(rows[:0]), 0.5, rng(0))) == 0


# -------------------------------------------------------------------------------- noise ----


def test_noise_has_the_plan_s_scale_over_the_plan_s_denominator() -> None:
    plan = private_plan(noise_multiplier=1.5, clip_norm=0.2, denominator=8.0)
    total = {"a": torch.full((200, 50), 3.0), "b": torch.zeros(10_000)}
    found = dp.noisy_mean(total, plan, NoiseSource.insecure(3))
    right = 1.5 * 0.2 / 8.0
    for key, tensor in total.items():
        noise = (found[key] - tensor / 8.0).flatten().double().numpy()
        for factor, accepted in ((1.0, True), (2 / 3, False), (3 / 2, False)):
            p_value = float(stats.kstest(noise, stats.norm(scale=factor * right).cdf).pvalue)
            assert (p_value > 1e-3) if accepted else (p_value < 1e-9)


def test_no_bit_below_the_plan_s_grid_is_released() -> None:
    plan = private_plan(noise_multiplier=1.5, clip_norm=0.2, denominator=8.0)
    grid = 2.0 ** (math.floor(math.log2(1.5 * 0.2)) - 20)
    found = dp.noisy_mean({"a": torch.rand(1000) / 3}, plan, NoiseSource())["a"] * 8.0
    assert torch.equal(found, (found / grid).round() * grid)


def test_a_plan_that_is_off_adds_nothing() -> None:
    total = {"a": torch.ones(5)}
    found = dp.noisy_mean(total, plan_off(denominator=4.0), NoiseSource())
    assert torch.equal(flat(found), torch.full((5,), 0.25, dtype=torch.float64))


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", [0.1, 0.1, 0.1, 0.1, 0.1]),
        ("linear", [0.1, 0.075, 0.05, 0.025, 0.0]),
        ("cosine", [0.1, 0.0853553, 0.05, 0.0146447, 0.0]),
    ],
)
def test_schedules(schedule: str, expected: list[float]) -> None:
    found = [learning_rate(0.1, schedule, step, 4) for step in range(5)]
    assert found == pytest.approx(expected, abs=1e-6)
