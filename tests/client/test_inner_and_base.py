"""Levels and gradients with R, with changed weights, and after a model took another rank."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from hushtune.client.train import train_locally
from hushtune.common import lora
from hushtune.common.adapter import AdapterState, r_key
from hushtune.common.lora_rules import FEDIT, FEDSB, trainable_keys
from hushtune.common.model import Level
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units

from .families import (
    NUM_ROWS,
    adapted,
    at_rank,
    make_order,
    make_task,
    moved,
    plan_off,
    reference_sum,
    summed,
    with_change,
)
from .test_levels import logits

ALL = np.arange(NUM_ROWS, dtype=np.int64)
FAMILIES = [("bert", "mean"), ("gpt2", "own"), ("llama", "mean"), ("vit", "own")]
HEADS = ("head.bias", "head.weight")
KINDS = {
    "R": (True, moved),
    "R at another rank": (True, lambda model: at_rank(model, 5)),
    "a change of weights": (False, lambda model: with_change(moved(model), 3)),
    "a change and another rank": (False, lambda model: with_change(at_rank(model, 3), 40)),
}
every_kind = pytest.mark.parametrize("kind", KINDS)
every_family = pytest.mark.parametrize(("family", "head"), FAMILIES)
texts = pytest.mark.parametrize(("family", "head"), FAMILIES[:3])


def made(family: str, head: str, kind: str) -> tuple[Any, AdapterState, tuple[str, ...]]:
    """A task that was at another rank before, a state, and what its rule trains."""
    inner, make = KINDS[kind]
    model = adapted(family, head, inner=inner)
    task = make_task(family, head, model=model)
    lora.install(model, at_rank(model, 7))
    summed(task, [0, 1], state=at_rank(model, 7), clip_norm=1.0)
    state = make(model) if "another rank" in kind else make(at_first(model))
    return task, state, trainable_keys(FEDSB if inner else FEDIT, state.spec, turn=0)


def at_first(model: Any) -> Any:
    """The model at rank 2 again."""
    lora.install(model, at_rank(model, 2))
    return model


@texts
@every_kind
def test_hidden_states_give_the_logits_and_sums_of_tokens(
    family: str, head: str, kind: str
) -> None:
    task, state, keys = made(family, head, kind)
    assert task.level(state, keys) is Level.HIDDEN
    whole = logits(task, Level.TOKENS, state)
    assert whole.std() > 0.005
    torch.testing.assert_close(logits(task, Level.HIDDEN, state), whole, rtol=1e-5, atol=1e-5)
    one, other = (
        summed(task, ALL, state=state, clip_norm=0.05, level=level, microbatch=4, keys=keys)
        for level in (Level.TOKENS, Level.HIDDEN)
    )
    assert torch.linalg.norm(one - other) <= 1e-5


@pytest.mark.parametrize("megabytes", [0, 64])
def test_features_stand_in_only_where_nothing_changes_the_base(megabytes: int) -> None:
    for inner in (False, True):
        model = adapted("bert", inner=inner)
        task = make_task("bert", "mean", model=model, cache_megabytes=megabytes)
        start = lora.initial_state(model, seed=0)
        assert task.level(start, HEADS) is Level.FEATURES
        assert task.level(with_change(start, 1), HEADS) is Level.HIDDEN
        module = start.spec.targets[-1]
        part = with_change(start, 1)
        keep = {key for key in part.keys if ".base_" not in key or key.startswith(module)}
        assert task.level(part.select(keep), HEADS) is Level.HIDDEN
        # Of two ranks, one after the other, the features are the same.
        features = [
            logits(task, Level.FEATURES, at_rank_without_effect(model, rank)) for rank in (2, 4, 2)
        ]
        assert torch.equal(features[0], features[1])
        assert torch.equal(features[0], features[2])
        if inner:
            key = r_key(module)
            one = start.tensors[key].clone()
            one[0, -1] = 1e-30
            touched = AdapterState(start.spec, {**start.tensors, key: one})
            assert task.level(touched, HEADS) is Level.HIDDEN
            assert task.level(start, (*HEADS, key)) is Level.HIDDEN


def at_rank_without_effect(model: Any, rank: int) -> AdapterState:
    lora.install(model, at_rank(model, rank))
    return lora.initial_state(model, seed=0)


def test_kept_features_are_of_the_base_before_any_change() -> None:
    """Whatever is installed when they are first computed, which stays installed."""
    model = adapted("bert")
    fresh = make_task("bert", "mean", model=adapted("bert"), cache_megabytes=64)
    task = make_task("bert", "mean", model=model, cache_megabytes=64)
    changed = with_change(at_rank(model, 5), 3)
    lora.install(model, changed)
    task.level(changed)
    assert lora.extract(model).to_bytes() == changed.to_bytes()
    zero = lora.initial_state(fresh.model, seed=0)
    head = {key: torch.randn(t.shape) for key, t in zero.tensors.items() if key in HEADS}
    zero = zero.merge(AdapterState(zero.spec, head))
    expected = logits(fresh, Level.TOKENS, zero)
    torch.testing.assert_close(logits(task, Level.FEATURES, zero), expected, rtol=1e-5, atol=1e-5)


@every_family
@every_kind
def test_gradients_equal_those_of_one_example_at_a_time(family: str, head: str, kind: str) -> None:
    task, state, keys = made(family, head, kind)
    loose = reference_sum(task, ALL, state=state, clip_norm=1e6, keys=keys)
    assert loose.norm() > 1e-3
    for clip in (1e-3, 0.05, 1e6):
        expected = reference_sum(task, ALL, state=state, clip_norm=clip, keys=keys)
        for size in (4, 100):
            found = summed(task, ALL, state=state, clip_norm=clip, microbatch=size, keys=keys)
            bound = min(clip, float(loose.norm()))
            assert torch.linalg.norm(found - expected) <= 2e-5 * bound


@every_family
@every_kind
def test_one_record_moves_the_sum_by_the_clip_norm_at_most(
    family: str, head: str, kind: str
) -> None:
    task, state, keys = made(family, head, kind)
    clip = 1e-2
    whole = summed(task, ALL, state=state, clip_norm=clip, keys=keys)
    for row in (0, 4, NUM_ROWS - 1):
        rest = np.delete(ALL, row)
        moved_by = whole - summed(task, rest, state=state, clip_norm=clip, keys=keys)
        assert 0.99 * clip <= moved_by.norm() <= clip * (1 + 1e-5)


@every_kind
def test_a_round_trains_what_its_rule_does_and_nothing_else(kind: str) -> None:
    """At any rank, the change of weights being as it was; the update has the order's shapes."""
    task, state, keys = made("bert", "mean", kind)
    rule = "fedsb" if KINDS[kind][0] else "fedex"
    order = make_order(
        state, plan_off(), trainable=keys, rule=rule, local_steps=2, learning_rate=0.1
    )
    delta = train_locally(
        order,
        task=task,
        units=Units.single(ALL),
        noise=NoiseSource.insecure(1),
        random=rng(0, "batches"),
    )
    assert delta.keys == keys
    after = lora.extract(task.model)
    assert after.keys == state.keys
    for key, tensor in state.tensors.items():
        assert torch.equal(after.tensors[key], tensor) == (key not in keys)
    for key in keys:
        assert delta.tensors[key].shape == state.tensors[key].shape
        assert delta.tensors[key].any()


def test_hooks_of_the_adapter_stay_and_those_of_training_go() -> None:
    model = adapted("bert", inner=True)
    task = make_task("bert", "mean", model=model)
    names = {name for name, module in model.named_modules() if module._forward_hooks}
    assert {name.rpartition(".")[2] for name in names} == {"base_layer", "default"}
    counts = [len(module._forward_hooks) for module in model.modules()]
    for rank in (5, 2):
        state = at_rank(model, rank)
        summed(
            task, [0, 1], state=state, clip_norm=1.0, keys=trainable_keys(FEDSB, state.spec, turn=0)
        )
        assert [len(module._forward_hooks) for module in model.modules()] == counts
        assert all(getattr(p, "grad_sample", None) is None for p in model.parameters())
