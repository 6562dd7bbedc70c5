"""Adapters of any rank, with R and with changes of weights, put into a model and read out."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch

from hushtune.common import lora
from hushtune.common.adapter import AdapterState, a_key, b_key, base_keys, r_key
from hushtune.common.errors import TargetModuleError
from hushtune.common.model import AdaptedModel

from ..client.families import adapted, at_rank, moved, tiny_base, with_change
from .test_lora import inputs, logits

CASES = [("bert", "mean"), ("gpt2", "own"), ("llama", "mean")]
every_case = pytest.mark.parametrize(("family", "head"), CASES)
inner_or_not = pytest.mark.parametrize("inner", [False, True])


def reference(model: AdaptedModel, family: str, state: AdapterState) -> torch.Tensor:
    """Logits of a base whose weights were changed by hand, ``W0 + base_B base_A + s B R A``."""
    base = tiny_base(family, "mean" if model.head is not None else "own")
    with torch.no_grad():
        for module in state.spec.targets:
            a, b = state.tensors[a_key(module)], state.tensors[b_key(module)]
            middle = state.tensors[r_key(module)] if state.spec.inner else torch.eye(len(a))
            change = (
                state.spec.alpha
                / (state.spec.rank**0.5 if state.spec.rslora else state.spec.rank)
                * (b @ middle @ a)
            )
            of_base = [state.tensors[key] for key in base_keys(module) if key in state.tensors]
            if of_base:
                change = change + of_base[1] @ of_base[0]
            weight = base.get_submodule(module).weight
            weight += change.T if family == "gpt2" else change
        for name in () if model.head is not None else state.spec.head:
            base.get_parameter(name).copy_(state.tensors[f"head.{name}"])
        output = base(**inputs(family))
        if model.head is None:
            return output.logits
        features = model._pool(output.last_hidden_state, inputs(family))
        return features @ state.tensors["head.weight"].T + state.tensors["head.bias"]


@every_case
@inner_or_not
@pytest.mark.parametrize("rslora", [False, True])
def test_a_model_takes_any_rank_up_and_down_and_any_change(
    family: str, head: str, inner: bool, rslora: bool
) -> None:
    model = adapted(family, head, inner=inner, rslora=rslora)
    first = moved(model)
    for rank, n in ((5, 0), (1, 3), (5, 50), (2, 0), (7, 1), (2, 2)):
        state = at_rank(model, rank, seed=rank + n)
        state = with_change(state, n) if n else state
        lora.install(model, state)
        assert lora.spec(model) == state.spec
        assert lora.extract(model).to_bytes() == state.to_bytes()
        torch.testing.assert_close(
            logits(model, family), reference(model, family, state), rtol=1e-4, atol=1e-5
        )
        assert not any(p.requires_grad for p in model.parameters())
        assert not any(module.training for module in model.modules())
    lora.install(model, first)
    other = adapted(family, head, inner=inner, rslora=rslora)
    lora.install(other, first)
    assert torch.equal(logits(model, family), logits(other, family))


def test_a_resized_model_has_new_parameters_and_each_once() -> None:
    model = adapted("bert", inner=True)
    before = lora.parameters(model)
    lora.install(model, at_rank(model, 5))
    after = lora.parameters(model)
    assert tuple(after) == tuple(before)
    for key, parameter in after.items():
        assert (parameter is before[key]) == key.startswith("head.")
    everything = list(model.parameters())
    assert len({id(p) for p in everything}) == len(everything)
    trained = lora.set_trainable(model, [key for key in after if key.endswith("lora_A")])
    moving = {id(p) for p in model.parameters() if p.requires_grad}
    assert moving == {id(p) for p in trained.values()}
    assert {tuple(p.shape) for p in trained.values()} == {(5, 32)}
    lora.install(model, at_rank(model, 5, seed=2))  # of the same rank: the same parameters
    assert all(p is after[key] for key, p in lora.parameters(model).items())


def test_a_change_is_of_the_base_as_it_was_at_first_and_is_cleared() -> None:
    model = adapted("bert")
    state = moved(model)
    lora.install(model, state)
    plain = logits(model, "bert")
    changed = with_change(state, 2)
    for _ in range(2):  # and not added up
        lora.install(model, changed)
        twice = logits(model, "bert")
    assert (twice - plain).abs().max() > 1e-3
    torch.testing.assert_close(twice, reference(model, "bert", changed), rtol=1e-4, atol=1e-5)
    lora.install(model, state)
    assert torch.equal(logits(model, "bert"), plain)
    assert lora.extract(model).keys == state.keys


def test_a_change_of_some_modules_leaves_the_others() -> None:
    model = adapted("bert")
    whole = with_change(moved(model), 2)
    module = whole.spec.targets[0]
    part = whole.select(
        key for key in whole.keys if ".base_" not in key or key in base_keys(module)
    )
    lora.install(model, whole)
    lora.install(model, part)
    assert set(model.base_change) == {module}
    assert lora.extract(model).keys == part.keys
    torch.testing.assert_close(
        logits(model, "bert"), reference(model, "bert", part), rtol=1e-4, atol=1e-5
    )


def test_what_is_read_out_is_a_copy() -> None:
    model = adapted("bert", inner=True)
    state = with_change(moved(model), 2)
    lora.install(model, state)
    out = lora.extract(model)
    lora.install(model, lora.initial_state(model, seed=3))
    assert out.to_bytes() == state.to_bytes()
    assert lora.extract(model, ["head.bias"]).keys == ("head.bias",)  # and no change of weights


def wrong(state: AdapterState, key: str, shape: tuple[int, ...]) -> AdapterState:
    return AdapterState(state.spec, {**state.tensors, key: torch.zeros(shape)})


# the end of a key -> shapes that do not fit; modules are (32, 32), rank 2, changes of rank 3
UNFIT: dict[str, list[tuple[int, ...]]] = {
    "lora_A": [(3, 32), (2, 31), (32, 2), (2,), ()],
    "lora_B": [(32, 3), (31, 2), (2, 32), (32,), ()],
    "lora_R": [(3, 2), (2, 3), (3, 3), (2,), ()],
    "base_A": [(3, 31), (2, 32), (32, 3), (32,), (3,), (), (0, 32), (3, 32, 1)],
    "base_B": [(31, 3), (32, 2), (3, 32), (32,), (), (32, 0), (32, 3, 1)],
}


@pytest.mark.parametrize("ending", UNFIT)
def test_a_tensor_of_another_shape_is_refused_by_its_name(ending: str) -> None:
    model = adapted("bert", inner=True)
    state = with_change(moved(model), 3)
    key = f"{state.spec.targets[1]}.{ending}"
    for shape in UNFIT[ending]:
        with pytest.raises(TargetModuleError, match="wrong shape") as caught:
            lora.install(model, wrong(state, key, shape))
        # Of a change whose factors do not fit each other either may be named.
        named = key.removesuffix("_A").removesuffix("_B") if ".base_" in key else key
        assert named in caught.value.message, shape


@pytest.mark.parametrize("ending", ["base_A", "base_B"])
def test_no_order_may_carry_a_change_that_does_not_fit(ending: str) -> None:
    """``is_whole`` is what messages go by, before anything is installed or charged."""
    model = adapted("bert")
    state = with_change(moved(model), 3)
    assert state.is_whole()
    key = f"{state.spec.targets[1]}.{ending}"
    for shape in UNFIT[ending]:
        assert not wrong(state, key, shape).is_whole(), shape
    assert not state.select(k for k in state.keys if k != key).is_whole()
    assert with_change(moved(model), 32).is_whole()
    assert not with_change(moved(model), 33).is_whole()  # wider than the weight itself


@pytest.mark.parametrize(
    ("change", "named"),
    [({"inner": True}, "inner"), ({"alpha": 5.0}, "alpha"), ({"rslora": True}, "rslora")],
)
def test_another_kind_of_adapter_is_refused_at_any_rank(change: dict[str, Any], named: str) -> None:
    model = adapted("bert")
    for state in (moved(model), at_rank(model, 4)):
        with pytest.raises(TargetModuleError) as caught:
            lora.install(model, AdapterState(replace(state.spec, **change), state.tensors))
        assert str(caught.value.given).startswith(named)
    assert lora.spec(model).rank == 2  # and nothing was resized


def test_an_inner_adapter_begins_at_the_base_with_orthonormal_factors() -> None:
    model = adapted("bert", inner=True)
    state = lora.initial_state(model, seed=3)
    assert not state.has_effect()
    for module in state.spec.targets:
        a, b = state.tensors[a_key(module)], state.tensors[b_key(module)]
        torch.testing.assert_close(a @ a.T, torch.eye(2), rtol=0, atol=1e-5)
        torch.testing.assert_close(b.T @ b, torch.eye(2), rtol=0, atol=1e-5)
        assert not state.tensors[r_key(module)].any()
    assert state.to_bytes() == lora.initial_state(model, seed=3).to_bytes()
    assert moved(model).has_effect()
    assert with_change(state, 1).has_effect()
