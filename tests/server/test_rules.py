"""LoRA rules: what is trained, and in which sense the average is exact."""

from __future__ import annotations

import pytest
import torch

from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.config import AggregationConfig
from hushtune.common.errors import FederationError
from hushtune.common.lora_rules import FEDIT, FFA, RULES, LoraRule, trainable_keys
from hushtune.server.aggregation.aggregator import make_aggregator

from .fake_grid import SPEC, state
from .test_estimates import update

HEAD = ("head.bias", "head.weight")


@pytest.mark.parametrize("rule", RULES.values(), ids=RULES)
def test_the_warm_up_trains_the_head_alone(rule: LoraRule) -> None:
    assert trainable_keys(rule, SPEC, turn=None) == HEAD


def test_ffa_trains_b_and_fedit_both() -> None:
    assert trainable_keys(FFA, SPEC, turn=0) == (*HEAD, "layer.q.lora_B")
    both = (*HEAD, "layer.q.lora_A", "layer.q.lora_B")
    assert trainable_keys(FEDIT, SPEC, turn=0) == both


def test_every_configurable_rule_exists() -> None:
    names = AggregationConfig.model_fields["rule"].annotation
    assert set(RULES) == set(names.__args__)  # type: ignore[union-attr]
    assert all(name == rule.name for name, rule in RULES.items())


def test_a_rule_with_nothing_to_train_says_so() -> None:
    bare = AdapterSpec("", rank=1, alpha=1.0, rslora=False, targets=("q",), head=())
    assert trainable_keys(FFA, bare, turn=0) == ("q.lora_B",)
    with pytest.raises(FederationError, match="nothing to train"):
        trainable_keys(FFA, bare, turn=None)


def product(adapter: AdapterState) -> torch.Tensor:
    a, b = adapter.factors("layer.q")
    return b.double() @ a.double()


def joined_and_exact(rule: LoraRule, *, same_a: bool) -> tuple[torch.Tensor, torch.Tensor]:
    """B A after one round, and ``sum_k p_k B_k A_k``; weights 3 to 1."""
    start, aggregator = state(0), make_aggregator(AggregationConfig())
    keys = trainable_keys(rule, SPEC, turn=0)
    deltas = [state(1, keys), state(2, keys)]
    if same_a and "layer.q.lora_A" in keys:
        deltas[1] = deltas[1].merge(deltas[0].select(["layer.q.lora_A"]))
    updates = [update("a", deltas[0], 30), update("b", deltas[1], 10)]
    _, end = aggregator.apply(aggregator.init(start), start, updates)
    models = [start.merge(start.select(keys) + delta) for delta in deltas]
    return product(end), 0.75 * product(models[0]) + 0.25 * product(models[1])


def test_ffa_is_exact() -> None:
    got, exact = joined_and_exact(FFA, same_a=False)
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)


def test_fedit_is_exact_when_all_a_are_equal_and_only_then() -> None:
    got, exact = joined_and_exact(FEDIT, same_a=True)
    torch.testing.assert_close(got, exact, rtol=1e-5, atol=1e-5)
    got, exact = joined_and_exact(FEDIT, same_a=False)
    assert float((got - exact).norm() / exact.norm()) > 0.05
