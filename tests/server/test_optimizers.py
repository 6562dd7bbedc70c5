"""Server optimisers against the formulas of their papers."""

from __future__ import annotations

import math

import pytest
import torch

from hushtune.common.config import AggregationConfig
from hushtune.common.errors import ConfigError
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.aggregation.optimizers import adam, sgd

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
    with pytest.raises(ConfigError, match="learning_rate"):
        sgd(rate)
    with pytest.raises(ConfigError, match="learning_rate"):
        adam(rate)


def test_betas_and_epsilon_that_cannot_be_used() -> None:
    with pytest.raises(ConfigError, match="betas"):
        adam(1.0, betas=(1.0, 0.9))
    with pytest.raises(ConfigError, match="epsilon"):
        adam(1.0, epsilon=0.0)


@pytest.mark.parametrize(("weighting", "share"), [("size", 0.75), ("uniform", 0.5)])
def test_the_configured_weighting_is_used(weighting: str, share: float) -> None:
    config = AggregationConfig.model_validate({"weighting": weighting})
    aggregator, start = make_aggregator(config), state(0)
    updates = [update("a", state(1), 30), update("b", state(2), 10)]
    _, end = aggregator.apply(aggregator.init(start), start, updates)
    expected = start + share * state(1) + (1 - share) * state(2)
    assert (end - expected).norm() < 1e-5


def test_the_configured_optimizer_is_used() -> None:
    adaptive = make_aggregator(AggregationConfig(optimizer="adam", learning_rate=0.1))
    memory, _ = adaptive.apply(adaptive.init(state(0)), state(0), [update("a", state(1))])
    assert set(memory.moments) == {"first", "second"}
