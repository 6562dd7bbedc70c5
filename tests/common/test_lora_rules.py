"""What each rule trains, keeps and sends."""

from __future__ import annotations

import pytest

from hushtune.common.adapter import AdapterSpec
from hushtune.common.compatibility import RULES as KNOWN
from hushtune.common.config import AggregationConfig
from hushtune.common.errors import FederationError
from hushtune.common.lora_rules import (
    RULES,
    LoraRule,
    all_trainable,
    kept_keys,
    sent_keys,
    trainable_keys,
)
from hushtune.server.aggregation.lora_rules import SERVER_RULES

HEAD = ("head.bias", "head.weight")
every_rule = pytest.mark.parametrize("rule", RULES.values(), ids=RULES)

# For each rule the letters of the factors that are trained in turns 0 to 3, and of those kept.
TURNS = {
    "fedit": ("AB", "AB", "AB", "AB", ""),
    "ffa": ("B", "B", "B", "B", ""),
    "fedsvd": ("B", "B", "B", "B", ""),
    "rolora": ("B", "A", "B", "A", ""),
    "fedex": ("AB", "AB", "AB", "AB", ""),
    "flora": ("AB", "AB", "AB", "AB", ""),
    "flexlora": ("AB", "AB", "AB", "AB", ""),
    "hetlora": ("AB", "AB", "AB", "AB", ""),
    "fedsa": ("AB", "AB", "AB", "AB", "B"),
    "fedsb": ("R", "R", "R", "R", ""),
    "fedsgd": ("AB", "AB", "AB", "AB", ""),
}


def spec(rule: LoraRule, *, head: bool = True) -> AdapterSpec:
    return AdapterSpec(
        base="f" * 64,
        rank=2,
        alpha=2.0,
        rslora=False,
        targets=("a.v", "b.q"),
        head=("bias", "weight") if head else (),
        inner=rule.inner,
    )


def keys_of(letters: str) -> tuple[str, ...]:
    return tuple(f"{module}.lora_{letter}" for module in ("a.v", "b.q") for letter in letters)


def test_every_name_has_a_rule_on_both_sides_and_in_the_configuration() -> None:
    names = AggregationConfig.model_fields["rule"].annotation
    assert set(RULES) == set(names.__args__) == set(SERVER_RULES) == set(TURNS)  # type: ignore[union-attr]
    assert set(KNOWN) == set(RULES)
    assert all(name == rule.name for name, rule in RULES.items())


@every_rule
@pytest.mark.parametrize("head", [True, False])
def test_each_turn_trains_its_factors_and_the_head(rule: LoraRule, head: bool) -> None:
    *turns, kept = TURNS[rule.name]
    made = spec(rule, head=head)
    for turn, letters in enumerate(turns):
        found = trainable_keys(rule, made, turn=turn)
        assert found == tuple(sorted((*(HEAD if head else ()), *keys_of(letters))))
        assert set(found) <= set(made.all_keys())
        stays = set(keys_of(kept)) & set(found)
        assert sent_keys(rule, made, found) == tuple(key for key in found if key not in stays)
    assert kept_keys(rule, made) == set(keys_of(kept))


@every_rule
def test_the_warm_up_trains_and_sends_the_head_alone(rule: LoraRule) -> None:
    assert trainable_keys(rule, spec(rule), turn=None) == HEAD
    assert sent_keys(rule, spec(rule), HEAD) == HEAD
    with pytest.raises(FederationError, match="nothing to train") as caught:
        trainable_keys(rule, spec(rule, head=False), turn=None)
    assert "warmup_rounds = 0" in str(caught.value.remedy)


@every_rule
@pytest.mark.parametrize("head", [True, False])
def test_all_that_is_trained_is_that_of_some_round(rule: LoraRule, head: bool) -> None:
    """What a site's policy goes by: nothing of a rule is left out, and nothing else is in it."""
    made = spec(rule, head=head)
    letters = {letter for turn in TURNS[rule.name][:4] for letter in turn}
    expected = set(keys_of("".join(sorted(letters)))) | set(HEAD if head else ())
    assert all_trainable(rule, made) == expected
    assert not any(".base_" in key for key in all_trainable(rule, made))


def test_an_adapter_of_nothing_is_refused() -> None:
    empty = AdapterSpec("", rank=1, alpha=1.0, rslora=False, targets=(), head=())
    with pytest.raises(FederationError, match="nothing to train") as caught:
        trainable_keys(RULES["ffa"], empty, turn=0)
    assert caught.value.given == "an empty adapter"
