"""Server optimisers against the formulas of their papers."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common.adapter import AdapterState
from hushtune.common.config import AggregationConfig
from hushtune.common.errors import ConfigError
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.aggregation.optimizers import (
    ServerOptimizer,
    adagrad,
    adam,
    momentum,
    sgd,
    yogi,
)

from .fake_grid import SHAPES, state
from .test_estimates import update

HEAD = ("head.bias", "head.weight")


def test_sgd_with_rate_one_is_plain_averaging() -> None:
    optimizer, start = sgd(1.0), state(0)
    memory, end = optimizer.apply(optimizer.init(start), start, state(1))
    assert end.digest() == (start + state(1)).digest()
    assert (memory.step, dict(memory.moments)) == (1, {})


def test_sgd_leaves_what_was_not_trained_as_it_is() -> None:
    optimizer, start = sgd(0.5), state(0)
    _, end = optimizer.apply(optimizer.init(start), start, state(1, HEAD))
    assert torch.equal(end.tensors["layer.q.lora_A"], start.tensors["layer.q.lora_A"])
    expected = start.tensors["head.bias"] + 0.5 * state(1).tensors["head.bias"]
    assert torch.equal(end.tensors["head.bias"], expected)


def test_adam_follows_the_paper_number_by_number() -> None:
    rate, (b1, b2), tau = 0.3, (0.8, 0.95), 1e-2
    optimizer, now = adam(rate, betas=(b1, b2), epsilon=tau), state(0)
    memory = optimizer.init(now)
    x, m, v = float(now.tensors["head.bias"][1]), 0.0, tau**2
    for seed in range(1, 5):
        delta = state(seed)
        memory, now = optimizer.apply(memory, now, delta)
        d = float(delta.tensors["head.bias"][1])
        m, v = b1 * m + (1 - b1) * d, b2 * v + (1 - b2) * d * d
        x += rate * m / (math.sqrt(v) + tau)
        assert float(now.tensors["head.bias"][1]) == pytest.approx(x, rel=1e-5)
    assert memory.step == 4


def paths(optimizer: ServerOptimizer, *, steps: int = 6) -> tuple[np.ndarray, np.ndarray]:
    """The deltas of some steps, and where they led from the first state on, flat."""

    def flat(adapter: AdapterState) -> np.ndarray:
        return np.concatenate([t.double().numpy().ravel() for t in adapter.tensors.values()])

    now = state(0)
    memory, places, deltas = optimizer.init(now), [flat(now)], list[np.ndarray]()
    for seed in range(1, steps + 1):
        delta = 0.3**seed * state(seed)  # the size changes, so that Yogi's signs do
        memory, now = optimizer.apply(memory, now, delta)
        deltas.append(flat(delta))
        places.append(flat(now))
    assert memory.step == steps
    return np.array(deltas), np.array(places)


def test_momentum_is_fedavgm() -> None:
    deltas, places = paths(momentum(0.7, beta=0.8))
    for t in range(1, len(places)):
        velocity = sum(0.8 ** (t - 1 - i) * deltas[i] for i in range(t))
        np.testing.assert_allclose(places[t] - places[t - 1], 0.7 * velocity, atol=2e-6)


def test_momentum_zero_is_plain_averaging() -> None:
    start = state(0)
    optimizer = momentum(0.5, beta=0.0)
    for seed in (1, 2):
        _, end = optimizer.apply(optimizer.init(start), start, state(seed))
        assert (end - (start + 0.5 * state(seed))).norm() < 1e-6


SQUARES = {
    "adam": (adam, lambda v, d: 0.99 * v + 0.01 * d**2),
    "yogi": (yogi, lambda v, d: v - 0.01 * d**2 * np.sign(v - d**2)),
    "adagrad": (adagrad, lambda v, d: v + d**2),
}


@pytest.mark.parametrize("name", SQUARES)
def test_the_adaptive_ones_follow_algorithm_2(name: str) -> None:
    make, squares = SQUARES[name]
    deltas, places = paths(make(0.3, epsilon=1e-2))
    x, m, v = places[0], np.zeros_like(places[0]), np.full_like(places[0], 1e-4)
    for delta, place in zip(deltas, places[1:], strict=True):
        m, v = 0.9 * m + 0.1 * delta, squares(v, delta)
        x = x + 0.3 * m / (np.sqrt(v) + 1e-2)
        np.testing.assert_allclose(place, x, rtol=1e-5, atol=1e-6)


def test_the_three_adaptive_ones_differ_on_the_same_deltas() -> None:
    ends = [paths(make(0.3, epsilon=1e-2))[1][-1] for make, _ in SQUARES.values()]
    for one, other in itertools.combinations(ends, 2):
        assert np.abs(one - other).max() > 1e-3


@pytest.mark.parametrize("make", [momentum, adam, yogi, adagrad])
def test_moments_of_tensors_that_rest_are_kept(make: Any) -> None:
    optimizer, start = make(0.1), state(0)
    memory, now = optimizer.apply(optimizer.init(start), start, state(1))
    after, end = optimizer.apply(memory, now, state(2, HEAD))
    rested = "layer.q.lora_B"
    for name, moment in memory.moments.items():
        assert torch.equal(after.moments[name].tensors[rested], moment.tensors[rested])
    assert torch.equal(end.tensors[rested], now.tensors[rested])


def test_adam_begins_a_moment_when_its_tensor_first_appears() -> None:
    optimizer, start = adam(0.1), state(0)
    memory, warm = optimizer.apply(optimizer.init(start), start, state(1, HEAD))
    assert memory.moments["first"].keys == HEAD
    assert torch.equal(warm.tensors["layer.q.lora_B"], start.tensors["layer.q.lora_B"])
    memory, _ = optimizer.apply(memory, warm, state(2))
    assert memory.moments["first"].keys == tuple(SHAPES)
    fresh, _ = optimizer.apply(optimizer.init(start), start, state(2))
    for name in ("first", "second"):
        late, new = memory.moments[name].tensors, fresh.moments[name].tensors
        assert torch.equal(late["layer.q.lora_B"], new["layer.q.lora_B"])
        assert not torch.equal(late["head.bias"], new["head.bias"])


def test_adam_keeps_the_moments_of_tensors_that_rest() -> None:
    optimizer, start = adam(0.1), state(0)
    memory, now = optimizer.apply(optimizer.init(start), start, state(1))
    after, _ = optimizer.apply(memory, now, state(2, HEAD))
    rested = "layer.q.lora_B"
    before = memory.moments["second"].tensors[rested]
    assert torch.equal(after.moments["second"].tensors[rested], before)


def test_apply_changes_none_of_its_arguments() -> None:
    optimizer, start, delta = adam(0.1), state(0), state(1)
    memory = optimizer.init(start)
    memory, _ = optimizer.apply(memory, start, delta)
    kept = memory.moments["first"].digest()
    optimizer.apply(memory, start, delta)
    assert (start.digest(), delta.digest()) == (state(0).digest(), state(1).digest())
    assert memory.moments["first"].digest() == kept


@pytest.mark.parametrize("rate", [0.0, -1.0, math.nan, math.inf])
def test_rates_that_cannot_be_used(rate: float) -> None:
    for make in (sgd, momentum, adam, yogi, adagrad):
        with pytest.raises(ConfigError, match="learning_rate"):
            make(rate)


def test_betas_and_epsilon_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match="betas"):
        adam(1.0, betas=(1.0, 0.9))
    with pytest.raises(ConfigError, match="epsilon"):
        adam(1.0, epsilon=0.0)
    with pytest.raises(ConfigError, match="betas"):
        yogi(1.0, betas=(0.9, -0.1))
    with pytest.raises(ConfigError, match="beta"):
        adagrad(1.0, beta=1.0)
    with pytest.raises(ConfigError, match="momentum"):
        momentum(1.0, beta=1.0)


@pytest.mark.parametrize(("weighting", "share"), [("size", 0.75), ("uniform", 0.5)])
def test_the_configured_weighting_is_used(weighting: str, share: float) -> None:
    config = AggregationConfig.model_validate({"weighting": weighting})
    aggregator, start = make_aggregator(config), state(0)
    updates = [update("a", state(1), 30), update("b", state(2), 10)]
    _, end = aggregator.apply(aggregator.init(start), start, updates)
    expected = start + share * state(1) + (1 - share) * state(2)
    assert (end - expected).norm() < 1e-5


@pytest.mark.parametrize(
    ("name", "rate"),
    [("sgd", 1.0), ("momentum", 0.1), ("adam", 0.01), ("yogi", 0.01), ("adagrad", 0.03)],
)
def test_the_rate_that_follows_from_the_optimiser_is_used(name: str, rate: float) -> None:
    """And one that is set stays: 1 of an adaptive optimiser would throw every number about."""
    left_out = AggregationConfig.model_validate({"optimizer": name})
    explicit = AggregationConfig.model_validate({"optimizer": name, "learning_rate": rate})
    assert left_out.learning_rate is None
    assert left_out.server_rate == explicit.server_rate == rate
    assert AggregationConfig.model_validate(
        {"optimizer": name, "learning_rate": 0.5}
    ).server_rate == pytest.approx(0.5)
    digests = set[str]()
    for config in (left_out, explicit):
        made = make_aggregator(config)
        digests.add(made.apply(made.init(state(0)), state(0), [update("a", state(1))])[1].digest())
    assert len(digests) == 1


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({"optimizer": "sgd"}, sgd(0.1)),
        ({"optimizer": "momentum"}, momentum(0.1, beta=0.9)),
        ({"optimizer": "momentum", "momentum": 0.5}, momentum(0.1, beta=0.5)),
        ({"optimizer": "adam"}, adam(0.1)),
        ({"optimizer": "yogi"}, yogi(0.1)),
        ({"optimizer": "adagrad"}, adagrad(0.1)),
    ],
)
def test_the_configured_optimizer_is_used(
    settings: dict[str, Any], expected: ServerOptimizer
) -> None:
    asked = make_aggregator(AggregationConfig(learning_rate=0.1, **settings))
    now = then = state(0)
    memory, kept = asked.init(now), expected.init(then)
    for seed in (1, 2):
        memory, now = asked.apply(memory, now, [update("a", state(seed))])
        kept, then = expected.apply(kept, then, state(seed))
    assert now.digest() == then.digest()
    assert set(memory.moments) == set(kept.moments)
