"""A round of local training: coverage, noise, optimisers, schedules, and plain SGD when off."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from hushtune.client.train import train_locally
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import PrivacyError
from hushtune.common.messages import RoundOrder
from hushtune.common.model import Level
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units

from .families import (
    CASES,
    NUM_ROWS,
    TensorTask,
    flat,
    kept_task,
    make_order,
    make_task,
    moved,
    plan_off,
    private_plan,
    reference_sum,
    tensor_task,
)

ALL = np.arange(NUM_ROWS, dtype=np.int64)
NONE = ALL[:0]


def trained(
    task: Any,
    order: RoundOrder,
    *,
    rows: np.ndarray = ALL,
    noise: NoiseSource | None = None,
    draw: int = 0,
) -> AdapterState:
    return train_locally(
        order,
        task=task,
        units=Units.single(rows),
        noise=noise or NoiseSource.insecure(1),
        random=rng(draw, "batches"),
    )


def p_value(values: Tensor, scale: float) -> float:
    return float(stats.kstest(values.double().numpy(), stats.norm(scale=scale).cdf).pvalue)


# ----------------------------------------------------------------------------- coverage ----


@pytest.mark.parametrize(("family", "head"), CASES)
def test_what_is_noised_is_what_requires_gradients_and_what_is_sent(family: str, head: str) -> None:
    """With next to no signal each tensor's change is N(0, (rate sigma C / denominator)^2)."""
    task = make_task(family, head)
    state = moved(task.model)
    before = {name: p.detach().clone() for name, p in task.model.named_parameters()}
    plan = private_plan(noise_multiplier=300.0, clip_norm=1e-6, sampling_probability=1.0)
    rate = 1e3
    noise = NoiseSource.insecure(2)
    chosen = [key for key in state.keys if not key.endswith(".lora_A")]
    deltas = [trained(task, make_order(state, plan, learning_rate=rate), noise=noise)]
    # Empty batches are cheap: the small tensors need many draws to show their scale.
    deltas += [
        trained(task, make_order(state, plan, learning_rate=rate), rows=NONE, noise=noise)
        for _ in range(40)
    ]
    assert all(delta.keys == state.keys == tuple(lora.parameters(task.model)) for delta in deltas)
    right = rate * 300.0 * 1e-6 / plan.denominator
    for key in state.keys:
        values = torch.cat([delta.tensors[key].flatten() for delta in deltas])
        assert p_value(values, right) > 1e-4, key
        spread = float(values.double().square().sum()) / right**2
        for wrong in (2 / 3, 3 / 2):
            level = stats.chi2.cdf(spread / wrong**2, len(values))
            assert min(level, 1 - level) < 1e-6, key
    partial = trained(task, make_order(state, plan, trainable=tuple(chosen)))
    assert partial.keys == tuple(chosen)
    lora.install(task.model, state)
    mine = {id(p) for p in lora.parameters(task.model).values()}
    for name, parameter in task.model.named_parameters():
        assert not parameter.requires_grad
        assert id(parameter) in mine or torch.equal(parameter, before[name]), name


def test_exactly_the_trainable_tensors_require_gradients_and_change() -> None:
    task = tensor_task()
    state = moved(task.model)
    chosen = tuple(key for key in state.keys if not key.endswith(".lora_A"))
    delta = trained(task, make_order(state, private_plan(), trainable=chosen, local_steps=2))
    assert task.trained
    assert all(seen == set(chosen) for seen in task.trained)
    assert delta.keys == chosen
    after = lora.extract(task.model)
    for key in state.keys:
        changed = not torch.equal(after.tensors[key], state.tensors[key])
        assert changed == (key in chosen)
        if changed:
            assert torch.equal(delta.tensors[key], after.tensors[key] - state.tensors[key])


def test_a_parameter_that_moves_beside_the_adapter_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    task = tensor_task()
    state = moved(task.model)
    chosen = lora.set_trainable

    def leaky(model: Any, keys: Any) -> Any:
        found = chosen(model, keys)
        next(p for p in model.parameters() if not p.requires_grad).requires_grad_(True)
        return found

    monkeypatch.setattr(lora, "set_trainable", leaky)
    with pytest.raises(PrivacyError, match="not the same"):
        trained(task, make_order(state, private_plan()))


def test_what_is_sent_is_what_was_noised(monkeypatch: pytest.MonkeyPatch) -> None:
    task = tensor_task()
    state = moved(task.model)
    monkeypatch.setattr(lora, "extract", lambda model, keys=None: state)
    order = make_order(state, private_plan(), trainable=("head.bias", "head.weight"))
    monkeypatch.setattr(AdapterState, "select", lambda state, keys: state)
    with pytest.raises(PrivacyError, match="not what was noised"):
        trained(task, order)


def test_a_noised_tensor_that_does_not_move_is_refused() -> None:
    """Epsilon would be spent on tensors that the model does not use."""
    task = tensor_task()
    order = make_order(moved(task.model), private_plan(), learning_rate=1e-30)
    with pytest.raises(PrivacyError, match="did not move"):
        trained(task, order)


# -------------------------------------------------------------------------------- noise ----


def test_noise_is_added_once_a_logical_batch_whatever_the_microbatch() -> None:
    task = tensor_task()
    state = moved(task.model)
    plan = private_plan(sampling_probability=1.0)
    deltas = [
        trained(task, make_order(state, plan, local_steps=3, microbatch=size))
        for size in (1, 2, NUM_ROWS, 1000)
    ]
    for other in deltas[1:]:
        # Equal seeded noise: one draw more or less in any step would show at its full size.
        torch.testing.assert_close(flat(other.tensors), flat(deltas[0].tensors), rtol=0, atol=1e-4)


def test_an_empty_batch_steps_by_exactly_the_noise_over_the_public_denominator() -> None:
    task = tensor_task()
    state = moved(task.model)
    plan = private_plan(noise_multiplier=1.3, clip_norm=0.7, denominator=5.0)
    delta = trained(task, make_order(state, plan, learning_rate=0.5), rows=NONE)
    source = NoiseSource.insecure(1)
    for key in state.keys:
        noise = source.noised(torch.zeros_like(state.tensors[key]), std=1.3 * 0.7)
        torch.testing.assert_close(delta.tensors[key], -0.5 * noise / 5.0, rtol=1e-4, atol=1e-6)


def test_the_denominator_is_the_plan_s_and_not_the_batch_s() -> None:
    """n and n + 1 rows: the noise is divided by one and the same number."""
    task = tensor_task(20)
    state = moved(task.model)
    plan = private_plan(sampling_probability=1.0, noise_multiplier=100.0, denominator=12.0)
    for count in (7, 12, 19):
        fewer, more = (
            trained(task, make_order(state, plan), rows=np.arange(size))
            for size in (count, count + 1)
        )
        assert (more - fewer).norm() <= plan.clip_norm / plan.denominator * (1 + 1e-3)


def test_no_seed_reproduces_the_noise_of_another_round_or_site() -> None:
    task = tensor_task()
    state = moved(task.model)
    plan = private_plan(noise_multiplier=50.0)
    source = NoiseSource()

    def again(noise: NoiseSource) -> AdapterState:
        torch.manual_seed(0)
        np.random.seed(0)
        return trained(task, make_order(state, plan), rows=NONE, noise=noise)

    deltas = [again(source), again(source), again(NoiseSource()), again(NoiseSource())]
    scale = 50.0 / 4.0
    for left in range(len(deltas)):
        for right in range(left):
            difference = flat((deltas[left] - deltas[right]).tensors)
            # Independent draws differ with std sqrt(2); shared ones with 0. By chance: 1e-9.
            assert p_value(difference, scale * math.sqrt(2)) > 1e-9
    repeated = [again(NoiseSource.insecure(4)) for _ in range(2)]
    assert torch.equal(flat(repeated[0].tensors), flat(repeated[1].tensors))


# ------------------------------------------------------------------------------ batches ----


def test_every_step_draws_its_own_poisson_batch_from_the_site_s_randomness() -> None:
    count, steps, rate = 24, 400, 0.3  # neither rate x count nor 1 / rate is a whole number
    task = tensor_task(count)
    state = moved(task.model)
    rows = np.arange(count, dtype=np.int64)
    plan = private_plan(sampling_probability=rate, steps=steps)
    heads = ("head.bias",)
    task.example_losses = lambda batch: (  # pyright: ignore[reportAttributeAccessIssue]
        task.model.head(torch.ones(len(batch.targets), 32)).sum(1)
    )
    order = make_order(state, plan, trainable=heads, local_steps=steps, microbatch=count)
    trained(task, order, rows=rows)
    drawn = np.zeros((steps, count))
    random = rng(0, "batches")
    expected = [rows[random.random(count) < rate] for _ in range(steps)]
    given = list(task.asked)
    for step, batch in enumerate(expected):
        if len(batch):
            assert list(given.pop(0)) == list(batch)
        drawn[step, batch] = 1
    assert not given
    spread = float(((drawn.sum(1) - count * rate) ** 2).sum() / (count * rate * (1 - rate)))
    assert 1e-3 < stats.chi2.cdf(spread, steps) < 1 - 1e-3


# --------------------------------------------------------------------------- optimisers ----


def plain_descent(task: TensorTask, state: AdapterState, *, steps: int, rate: float) -> Tensor:
    """Gradient descent by autograd on the same Poisson batches, over the public denominator."""
    lora.install(task.model, state)
    found = lora.set_trainable(task.model, state.keys)
    task.model.frozen_mode()
    random = rng(0, "batches")
    for _ in range(steps):
        rows = ALL[random.random(NUM_ROWS) < 0.5]
        batch = task.batch(rows, Level.TOKENS)
        loss = nn.functional.cross_entropy(task.model(batch.inputs), batch.targets, reduction="sum")
        gradients = torch.autograd.grad(loss / 4.0, list(found.values()))
        with torch.no_grad():
            for parameter, gradient in zip(found.values(), gradients, strict=True):
                parameter.sub_(rate * gradient)
    return flat((lora.extract(task.model) - state).tensors)


def test_off_is_plain_gradient_descent_on_the_same_batches() -> None:
    task = tensor_task()
    state = moved(task.model)
    order = make_order(state, plan_off(), learning_rate=0.05, local_steps=3)
    found = flat(trained(task, order).tensors)
    reference = plain_descent(task, state, steps=3, rate=0.05)
    assert reference.norm() > 0.05
    assert torch.linalg.norm(found - reference) <= 1e-5


def test_one_private_sgd_step_is_the_formula() -> None:
    task = kept_task("bert", "mean")
    state = moved(task.model)
    plan = private_plan(clip_norm=0.05, sampling_probability=1.0, denominator=6.0)
    found = flat(trained(task, make_order(state, plan, learning_rate=2.0)).tensors)
    total = reference_sum(task, ALL, state=state, clip_norm=0.05)
    source = NoiseSource.insecure(1)
    noise = {key: source.noised(torch.zeros_like(t), std=0.1) for key, t in state.tensors.items()}
    expected = -2.0 * (total + flat(noise)) / 6.0
    assert torch.linalg.norm(found - expected) <= 1e-5


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
def test_weight_decay_is_decoupled(optimizer: str) -> None:
    """Without a gradient a tensor shrinks by rate x decay of itself, and no optimiser scales it."""
    task = tensor_task()
    state = moved(task.model)
    how = {"optimizer": optimizer, "learning_rate": 0.1, "weight_decay": 0.3}
    delta = trained(task, make_order(state, plan_off(), **how), rows=NONE)
    torch.testing.assert_close(
        flat(delta.tensors), flat((-0.03 * state).tensors), rtol=1e-4, atol=1e-7
    )


def test_adamw_s_first_step_is_the_sign_of_the_gradient() -> None:
    """A new optimiser each round: with m = (1-b1) g, v = (1-b2) g^2 the step is rate x sign(g)."""
    task = tensor_task()
    state = moved(task.model)
    plan = private_plan(noise_multiplier=5.0)
    sgd, adamw = (
        trained(task, make_order(state, plan, optimizer=name, learning_rate=0.1))
        for name in ("sgd", "adamw")
    )
    expected = 0.1 * torch.sign(flat(sgd.tensors))
    torch.testing.assert_close(flat(adamw.tensors), expected, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("schedule", ["constant", "linear", "cosine"])
def test_the_schedule_goes_on_where_the_last_round_ended(schedule: str) -> None:
    task = tensor_task()
    state = moved(task.model)
    how = {"schedule": schedule, "first_step": 4, "schedule_steps": 10, "weight_decay": 0.5}
    order = make_order(state, plan_off(), local_steps=3, learning_rate=0.1, **how)
    delta = trained(task, order, rows=NONE)
    falls = {
        "constant": lambda _: 1.0,
        "linear": lambda step: 1 - step / 10,
        "cosine": lambda step: (1 + math.cos(math.pi * step / 10)) / 2,
    }[schedule]
    left = math.prod(1 - 0.5 * 0.1 * falls(step) for step in (4, 5, 6))
    torch.testing.assert_close(
        flat(delta.tensors), flat(((left - 1) * state).tensors), rtol=1e-4, atol=1e-6
    )


def test_a_round_starts_from_the_order_and_not_from_the_round_before() -> None:
    task = tensor_task()
    state = moved(task.model)
    first = trained(task, make_order(state, plan_off(), learning_rate=0.5))
    again = trained(task, make_order(state, plan_off(), learning_rate=0.5))
    assert torch.equal(flat(first.tensors), flat(again.tensors))
