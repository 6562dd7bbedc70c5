"""Sites whose steps are computed at once do what each would do alone."""

from __future__ import annotations

import threading
import time
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.client import cohort
from hushtune.client.site_products import LinearOfSites, LoraOfSites, Where
from hushtune.client.together import Asked, in_turns, is_together
from hushtune.client.train import descent, train_locally
from hushtune.common.adapter import AdapterState
from hushtune.common.messages import RoundOrder
from hushtune.common.model import Level
from hushtune.common.packing import Packing
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import Unit
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units
from hushtune.common.tuning import GradientMethod

from .families import (
    CASES,
    NUM_ROWS,
    adapted,
    flat,
    make_order,
    make_task,
    moved,
    plan_off,
    private_plan,
    summed,
)

ROWS = {
    "north": Units(np.array([0, 3], dtype=np.int64), np.array([0, 1, 2], dtype=np.int64)),
    "south": Units(np.array([1, 4, 6], dtype=np.int64), np.array([0, 1, 3], dtype=np.int64)),
    "west": Units.single(np.array([2, 5, 7, 8], dtype=np.int64)),
}


def orders(state: AdapterState, **changed: Any) -> Mapping[str, RoundOrder]:
    """One for each site; their clip norms and rates differ from what changes nothing."""
    plan = private_plan(sampling_probability=0.8, clip_norm=0.2)
    return {site: make_order(state, plan, local_steps=3, **changed) for site in ROWS}


def trained(
    task: Any, order: RoundOrder, site: str, *, control: AdapterState | None = None
) -> AdapterState:
    seed = sorted(ROWS).index(site)
    return train_locally(
        order,
        task=task,
        units=ROWS[site],
        noise=NoiseSource.insecure(seed),
        random=rng(seed, "batches"),
        control=control,
    )


def both(task: Any, asked: Mapping[str, RoundOrder]) -> list[dict[str, AdapterState]]:
    """What the sites train alone, and together."""
    alone = {site: trained(task, order, site) for site, order in asked.items()}
    calls = [partial(trained, task, order, site) for site, order in asked.items()]
    found = in_turns(calls, cohort.clipped_sums)
    return [alone, dict(zip(asked, found, strict=True))]


@pytest.mark.parametrize(("family", "head"), [*CASES, ("resnet", "own")])
@pytest.mark.parametrize("keys", ["all", "without A"])
def test_together_each_site_trains_what_it_trains_alone(
    family: str, head: str, keys: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(family, head)
    task, state = make_task(family, head, model=model), moved(model)
    chosen = tuple(key for key in state.keys if keys == "all" or "lora_A" not in key)
    sizes: list[int] = []
    compute = cohort.clipped_sums

    def counted(asked: Any) -> Any:
        sizes.append(len(asked))
        return compute(asked)

    monkeypatch.setattr(cohort, "clipped_sums", counted)
    alone, found = both(task, orders(state, trainable=chosen))
    assert sizes == [3, 3, 3]  # every step of all of them at once
    for site, delta in alone.items():
        assert delta.keys == found[site].keys == tuple(sorted(chosen))
        for key in delta.keys:
            assert float(delta.tensors[key].norm()) > 0
            torch.testing.assert_close(
                found[site].tensors[key], delta.tensors[key], rtol=1e-5, atol=1e-5
            )


@pytest.mark.parametrize("level", [Level.FEATURES, Level.HIDDEN])
def test_from_what_is_kept_too(level: Level) -> None:
    model = adapted("bert", "mean")
    task = make_task("bert", "mean", model=model, cache_megabytes=8)
    state = moved(model)
    if level is Level.FEATURES:
        zero = {k: torch.zeros_like(t) if "lora_B" in k else t for k, t in state.tensors.items()}
        state = AdapterState(state.spec, zero)
    heads = tuple(key for key in state.keys if key.startswith("head."))
    keys = heads if level is Level.FEATURES else state.keys
    assert task.level(state, keys) is level
    alone, found = both(task, orders(state, trainable=keys))
    for site, delta in alone.items():
        difference = (found[site] - delta).tensors.values()
        assert max(float(each.abs().max()) for each in difference) <= 1e-5


def ask(task: Any, state: AdapterState, units: Units) -> Asked:
    own = {key: torch.nn.Parameter(state.tensors[key].clone()) for key in state.keys}
    return Asked(
        task=task,
        units=units,
        begin=state,
        trained=own,
        clip_norm=0.05,
        microbatch=2,
        level=Level.TOKENS,
    )


def test_a_record_moves_its_own_site_s_sum_by_at_most_the_clip_norm_and_no_other() -> None:
    model = adapted("bert", "mean")
    task = make_task("bert", "mean", model=model)
    # Each site stands elsewhere, as it does after its first step.
    states = {site: moved(model, seed=place, by=0.3) for place, site in enumerate(ROWS)}
    whole = cohort.clipped_sums([ask(task, states[site], units) for site, units in ROWS.items()])
    for place, (site, units) in enumerate(ROWS.items()):
        alone = summed(
            task, units, state=states[site], clip_norm=0.05, microbatch=2, level=Level.TOKENS
        )
        torch.testing.assert_close(flat(whole[place]), alone, rtol=1e-5, atol=1e-6)
        for gone in range(len(units)):
            fewer = units.take(np.delete(np.arange(len(units)), gone))
            again = cohort.clipped_sums(
                [
                    ask(task, states[other], fewer if other == site else ROWS[other])
                    for other in ROWS
                ]
            )
            for at, other in enumerate(ROWS):
                moved_by = float(torch.linalg.norm(flat(whole[at]) - flat(again[at])))
                assert moved_by <= (0.05 * (1 + 1e-6) if other == site else 1e-9)
                assert other != site or moved_by > 0.01


def test_sites_that_differ_in_what_is_frozen_are_not_computed_with_one_another() -> None:
    """Their own A stays at each site: where it is not trained, rows of the two need two passes."""
    model = adapted("bert", "mean")
    task, one = make_task("bert", "mean", model=model), moved(model)
    other = moved(model, seed=5)
    keys = tuple(key for key in one.keys if "lora_A" not in key)
    asked = {
        "north": make_order(one, plan_off(), local_steps=2, trainable=keys),
        "south": make_order(other, plan_off(), local_steps=2, trainable=keys),
    }
    alone, found = both(task, asked)
    for site, delta in alone.items():
        difference = (found[site] - delta).tensors.values()
        assert max(float(each.abs().max()) for each in difference) <= 1e-5


@pytest.mark.parametrize("how", ["dropout", "inner", "embedding", "bias alone"])
def test_what_it_does_not_know_is_trained_alone(how: str) -> None:
    settings: dict[str, Any] = {
        "dropout": {"dropout": 0.5},
        "embedding": {"targets": ("word_embeddings", "value"), "layers": 0},
    }.get(how, {})
    model = adapted("bert", inner=how == "inner", **settings)
    task, state = make_task("bert", "mean", model=model), moved(model)
    left = {"inner": ("lora_A", "lora_B"), "bias alone": ("head.weight",)}.get(how, ())
    keys = tuple(key for key in state.keys if not key.endswith(left))
    known = cohort.knows(task, keys)
    assert known is (how == "inner")  # R is the weight of a linear layer
    assert not any(parameter.requires_grad for parameter in model.parameters())
    alone, found = both(task, orders(state, trainable=keys))
    for site, delta in alone.items():
        difference = (found[site] - delta).tensors.values()
        assert max(float(each.abs().max()) for each in difference) <= 1e-5


def test_a_site_that_fails_stops_no_other_and_what_stops_all_is_raised() -> None:
    done: list[str] = []

    def good() -> str:
        assert is_together()
        done.append("good")
        return "good"

    def bad() -> str:
        raise ValueError("this one alone")

    with pytest.raises(ValueError, match="this one alone"):
        in_turns([bad, good], cohort.clipped_sums)
    assert done == ["good"]
    assert not is_together()

    model = adapted("bert", "mean")
    task, state = make_task("bert", "mean", model=model), moved(model)

    def stopped(asked: Any) -> Any:
        del asked
        raise KeyboardInterrupt

    before = threading.active_count()
    calls = [partial(trained, task, order, site) for site, order in orders(state).items()]
    with pytest.raises(KeyboardInterrupt):
        in_turns(calls, stopped)
    assert threading.active_count() == before


@pytest.mark.parametrize("way", ["scaffold", "proximal", "clients", "nobody drawn", "descent"])
def test_whatever_a_step_is_made_of(way: str) -> None:
    model = adapted("bert", "mean")
    task, state = make_task("bert", "mean", model=model), moved(model)
    control = 0.1 * state if way == "scaffold" else None
    changed: dict[str, Any] = {"proximal": 0.5} if way == "proximal" else {}
    plan = private_plan(sampling_probability=1e-9 if way == "nobody drawn" else 0.8)
    if way == "clients":
        plan = private_plan(unit=Unit.CLIENT)
    asked = {site: make_order(state, plan, local_steps=3, **changed) for site in ROWS}

    def call(site: str) -> AdapterState:
        if way == "descent":
            seed = sorted(ROWS).index(site)
            how: dict[str, Any] = {"noise": NoiseSource.insecure(seed), "random": rng(seed, "b")}
            return descent(asked[site], task=task, units=ROWS[site], **how)
        return trained(task, asked[site], site, control=control)

    alone = [call(site) for site in ROWS]
    together = in_turns([partial(call, site) for site in ROWS], cohort.clipped_sums)
    for one, other in zip(alone, together, strict=True):
        assert float(flat(one.tensors).norm()) > 0.01
        assert float((flat(one.tensors) - flat(other.tensors)).abs().max()) <= 1e-5


def test_in_bfloat16_a_head_of_the_model_s_own_has_the_type_that_it_has_alone() -> None:
    model = adapted("bert", "own", model={"precision": "bfloat16"})
    task, state = make_task("bert", "own", model=model), moved(model)
    found = cohort.clipped_sums([ask(task, state, units) for units in ROWS.values()])
    for sums, units in zip(found, ROWS.values(), strict=True):
        alone = summed(task, units, state=state, clip_norm=0.05, microbatch=2)
        assert float((flat(sums) - alone).norm()) <= 0.05 * float(alone.norm())


def test_a_sum_that_fails_fails_its_own_site_alone() -> None:
    model = adapted("bert", "mean")
    task, state = make_task("bert", "mean", model=model), moved(model)
    asked = orders(state)

    def some(waiting: Any) -> Any:
        if any(one.units.rows.tolist() == [2] or 2 in one.units.rows for one in waiting):
            raise MemoryError("west's rows are too long")
        return cohort.clipped_sums(waiting)

    ended: dict[str, Any] = {}

    def call(site: str) -> None:
        try:
            ended[site] = trained(task, asked[site], site)
        except MemoryError as error:
            ended[site] = error

    in_turns([partial(call, site) for site in ROWS], some)
    assert isinstance(ended["west"], MemoryError)
    for site in ("north", "south"):
        alone = trained(task, asked[site], site)
        assert float((flat(alone.tensors) - flat(ended[site].tensors)).abs().max()) <= 1e-5


def test_an_interrupt_while_a_site_runs_leaves_no_site_behind(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It reaches the thread that waits for the site, which must not go on by itself."""
    model = adapted("bert", "mean")
    task, state = make_task("bert", "mean", model=model), moved(model)
    acquire, calls = threading.Semaphore.acquire, [0]

    def interrupted(self: Any, *args: Any, **named: Any) -> Any:
        if threading.current_thread() is threading.main_thread():
            calls[0] += 1
            if calls[0] == 5:  # in the middle of the second step
                raise KeyboardInterrupt
        return acquire(self, *args, **named)

    monkeypatch.setattr(threading.Semaphore, "acquire", interrupted)
    before = threading.active_count()
    sites = [partial(trained, task, order, site) for site, order in orders(state).items()]
    with pytest.raises(KeyboardInterrupt):
        in_turns(sites, cohort.clipped_sums)
    for _ in range(100):
        if threading.active_count() == before:
            break
        time.sleep(0.05)
    assert threading.active_count() == before
    assert not any("forward" in vars(module) for module in model.modules())


def test_rows_that_two_sites_poison_at_once_are_as_they_were_when_both_are_done() -> None:
    """They end in the order in which they began, not one within the other."""
    task = make_task("bert", "mean", model=adapted("bert", "mean"))
    everyone = np.arange(NUM_ROWS, dtype=np.int64)

    def targets() -> list[int]:
        return task.batch(everyone, Level.TOKENS).targets.tolist()

    before, wrong = targets(), np.zeros(2, dtype=np.int64)
    first = task.relabelled(np.array([1, 2], dtype=np.int64), wrong)
    second = task.relabelled(np.array([4, 5], dtype=np.int64), wrong)
    first.__enter__()
    second.__enter__()
    assert [targets()[row] for row in (1, 2, 4, 5)] == [0, 0, 0, 0] != [before[1], before[2]]
    first.__exit__(None, None, None)
    second.__exit__(None, None, None)
    assert targets() == before


def test_rows_of_all_sites_fill_the_same_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is what this is for: fewer passes than one site after the other takes."""
    model = adapted("bert", "mean")
    task, state = make_task("bert", "mean", model=model), moved(model)
    passes: list[int] = []
    losses = type(task).example_losses

    def counted(self: Any, batch: Any) -> Any:
        passes.append(len(batch.targets.of) if hasattr(batch.targets, "of") else 1)
        return losses(self, batch)

    monkeypatch.setattr(type(task), "example_losses", counted)
    asked = [ask(task, state, Units.single(np.array([row]))) for row in range(NUM_ROWS)]
    cohort.clipped_sums(asked)
    together = len(passes)
    passes.clear()
    for one in asked:
        cohort.clipped_sums([one])
    assert together < len(passes) == NUM_ROWS


@pytest.mark.parametrize("sites", [1, 2, 3, 9])
@pytest.mark.parametrize(("out", "wide"), [(2, 24), (24, 2), (7, 8), (5, 5)])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("packed", [False, True])
def test_a_row_is_multiplied_by_its_own_site_s_weights(
    sites: int, out: int, wide: int, precision: str, packed: bool
) -> None:
    """Whether those of all are one matrix, by outputs or by inputs, or each row has its own; and so
    are its gradients, of which those of the other sites are zero."""
    random = torch.Generator().manual_seed(0)
    type_, near = getattr(torch, precision), 1e-5 if precision == "float32" else 0.02
    rows = torch.randn(11, 3, wide, generator=random).to(type_).requires_grad_()
    shared = torch.nn.Linear(wide, out)
    own = {
        parameter: torch.randn(sites, *parameter.shape, generator=random)
        for parameter in shared.parameters()
    }
    owners = torch.randint(sites, (11,), generator=random)
    apply = LinearOfSites.apply
    # Eleven rows of three places, as they are or one after the other with places to spare.
    packing = Packing(((4, 3), (7, 3)), 180) if packed else None
    given = packing.joined([rows[:4], rows[4:]]).unsqueeze(0) if packing else rows
    where = Where(owners, packing)
    found = apply(given, shared.weight, shared.bias, own, where)
    assert found.dtype == type_
    if packing:
        assert found.shape == (1, 180, out)
        found = torch.cat(packing.split(found[0]))
    onto = torch.randn(11, 3, out, generator=random).to(type_)
    found.backward(onto)
    for place, owner in enumerate(owners):
        row = rows[place].detach().float().requires_grad_()
        leaves = [tensor[owner].clone().requires_grad_() for tensor in own.values()]
        alone = torch.nn.functional.linear(row, *leaves)
        alone.backward(onto[place].float())
        pairs = [
            (found[place], alone),
            (rows.grad[place], row.grad),
            (shared.weight.grad_sample[place], leaves[0].grad),
            (shared.bias.grad_sample[place], leaves[1].grad),
        ]
        for one, other in pairs:
            assert one.dtype == type_ or packed  # of which gradients are taken in float32
            assert (one.float() - other).norm() <= near * other.norm()


BEYOND = 3.4e38
"""A float32 number that bfloat16 has none for but infinity."""


@pytest.mark.parametrize("worst", [float("nan"), float("-inf"), BEYOND])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_site_whose_adapter_is_no_number_spoils_no_other(worst: float, precision: str) -> None:
    """Its weights times the zeros of other sites' rows would be no zeros."""
    model = adapted("bert", "mean", model={"precision": precision})
    task, state = make_task("bert", "mean", model=model), moved(model)

    def asked(site: str, begin: AdapterState = state) -> Asked:
        own = {key: torch.nn.Parameter(tensor) for key, tensor in begin.tensors.items()}
        how: dict[str, Any] = {"clip_norm": 0.2, "microbatch": 4, "level": Level.TOKENS}
        return Asked(task=task, units=ROWS[site], begin=state, trained=own, **how)

    alone = cohort.clipped_sums([asked("west")])[0]
    bad = state.map(lambda tensor: torch.full_like(tensor, worst))
    sums = cohort.clipped_sums([asked("north", bad), asked("west")])
    assert not any(tensor.any() for tensor in sums[0].values())  # and is counted as nothing
    for key, tensor in alone.items():
        torch.testing.assert_close(sums[1][key], tensor, rtol=1e-5, atol=1e-6)
        assert tensor.any() or "lora_A" in key


@pytest.mark.parametrize("factor", ["lora_A", "lora_B"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize("pack", [False, True])
def test_nor_does_one_whose_numbers_grow_too_large_on_the_way(
    factor: str, precision: str, pack: bool
) -> None:
    """Both factors of all sites are multiplied at once, and what is another site's left out."""
    model = adapted("bert", "mean", model={"precision": precision})
    model.gradients, model.pack = GradientMethod.FUSED, pack
    task, state = make_task("bert", "mean", model=model), moved(model)
    large = AdapterState(
        state.spec,
        {
            key: torch.full_like(tensor, 1e38) if factor in key else tensor
            for key, tensor in state.tensors.items()
        },
    )
    how: dict[str, Any] = {"clip_norm": 0.2, "microbatch": 4, "level": Level.TOKENS}
    asked = [
        Asked(
            task=task,
            units=ROWS[site],
            begin=state,
            trained={key: torch.nn.Parameter(own.tensors[key]) for key in own.keys},
            **how,
        )
        for site, own in (("north", large), ("west", state))
    ]
    passes = [0]
    apply = LoraOfSites.apply

    def counted(*given: Any) -> Any:
        passes[0] += 1
        return apply(*given)

    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(LoraOfSites, "apply", counted)
        _, found = cohort.clipped_sums(asked)
    assert passes[0]  # it is what was looked at
    alone = cohort.clipped_sums(asked[1:])[0]
    near = 1e-5 if precision == "float32" else 0.02
    for key, tensor in alone.items():
        assert tensor.any()
        assert torch.linalg.norm(found[key] - tensor) <= near * torch.linalg.norm(tensor)


def test_whether_an_adapter_is_finite_is_looked_at_once_and_only_where_sites_fit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    model = adapted("bert", "mean")
    task, state = make_task("bert", "mean", model=model), moved(model)
    is_finite, looked = cohort._is_finite, list[Asked]()  # pyright: ignore[reportPrivateUsage]

    def seen(one: Asked) -> bool:
        looked.append(one)
        return is_finite(one)

    monkeypatch.setattr(cohort, "_is_finite", seen)
    asked = [ask(task, state, units) for units in ROWS.values()]
    cohort.clipped_sums(asked)
    assert len(looked) == 3 == len({id(one) for one in looked})
    looked.clear()
    cohort.clipped_sums([replace(one, clip_norm=0.1 * n) for n, one in enumerate(asked, start=1)])
    assert not looked
