"""FedProx, SCAFFOLD and FedSGD against the papers' own loops, written down once more by hand."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hushtune.client.app import answer
from hushtune.client.memory import Purpose, SiteMemory
from hushtune.client.rounds import trained
from hushtune.client.train import train_locally
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.config import AggregationConfig
from hushtune.common.lora_rules import RULES, kept_keys, trainable_keys
from hushtune.common.messages import ClientUpdate, RoundOrder, decode_reply, encode_order
from hushtune.common.model import Level
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.schedules import learning_rate
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units
from hushtune.server import scaffold
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.aggregation.optimizers import AggState, gradient_step
from hushtune.server.checkpoint import Checkpoint

from ..server.fake_grid import config as run_config
from .families import (
    NUM_ROWS,
    TensorTask,
    flat,
    make_order,
    moved,
    plan_off,
    private_plan,
    tensor_task,
)
from .test_app import make_site

ALL = np.arange(NUM_ROWS, dtype=np.int64)
NONE = ALL[:0]
Vector = dict[str, np.ndarray]


@pytest.fixture(scope="module")
def task() -> TensorTask:
    return tensor_task(24)


@pytest.fixture(scope="module")
def state(task: TensorTask) -> AdapterState:
    return moved(task.model)


def gradient(
    task: TensorTask, at: AdapterState, rows: np.ndarray, keys: Sequence[str], *, over: float
) -> dict[str, Tensor]:
    """Of the summed loss of some rows divided by ``over``, by plain autograd."""
    lora.install(task.model, at)
    found = lora.set_trainable(task.model, keys)
    task.model.frozen_mode()
    batch = task.batch(rows, Level.TOKENS)
    loss = torch.nn.functional.cross_entropy(
        task.model(batch.inputs), batch.targets, reduction="sum"
    )
    return dict(zip(found, torch.autograd.grad(loss / over, list(found.values())), strict=True))


def as_numpy(state: AdapterState) -> Vector:
    return {key: tensor.double().numpy() for key, tensor in state.tensors.items()}


def as_state(like: AdapterState, vector: Mapping[str, np.ndarray]) -> AdapterState:
    tensors = {key: torch.from_numpy(value).float() for key, value in vector.items()}
    return like.merge(AdapterState(like.spec, tensors))


# ------------------------------------------------------------------------------- FedProx ----


def locally(task: TensorTask, order: RoundOrder, rows: np.ndarray, **how: Any) -> AdapterState:
    return train_locally(
        order,
        task=task,
        units=Units.single(rows),
        noise=NoiseSource.insecure(1),
        random=rng(0, "batches"),
        **how,
    )


@pytest.mark.parametrize("mu", [0.0, 0.5, 3.0])
def test_fedprox_is_the_gradient_of_the_loss_and_of_the_proximal_term(
    task: TensorTask, state: AdapterState, mu: float
) -> None:
    """``w <- w - rate (g(w) + mu (w - w_global))``, over five steps of full batches."""
    plan = plan_off(sampling_probability=1.0, denominator=8.0)
    order = make_order(state, plan, local_steps=5, learning_rate=0.1, proximal=mu)
    found = locally(task, order, ALL)
    w = state
    for _ in range(5):
        g = gradient(task, w, ALL, state.keys, over=8.0)
        pull = mu * (w - state)
        w = w - 0.1 * (AdapterState(state.spec, g) + pull)
    assert (w - state).norm() > 0.1
    assert torch.linalg.norm(flat((found - (w - state)).tensors)) <= 1e-5
    free = replace(order, training=replace(order.training, proximal=0.0))
    if mu:
        assert (found - locally(task, free, ALL)).norm() > 1e-3


@pytest.mark.parametrize("private", [False, True])
def test_the_pull_is_to_the_order_s_adapter_and_is_neither_clipped_nor_divided(
    task: TensorTask, state: AdapterState, private: bool
) -> None:
    """From another start, as of an adapter of the site's own: it looks at no record."""
    start = state + 10.0 * moved(task.model, seed=4)
    plan = private_plan(clip_norm=1e-3, denominator=5.0) if private else plan_off()
    order = make_order(state, plan, learning_rate=0.1, proximal=0.7)
    found = locally(task, order, NONE, start=start)
    source = NoiseSource.insecure(1)
    for key, tensor in found.tensors.items():
        expected = -0.1 * 0.7 * (start.tensors[key] - state.tensors[key])
        if private:
            noise = source.noised(torch.zeros_like(tensor), std=2.0 * 1e-3)
            expected = expected - 0.1 * noise / 5.0
        torch.testing.assert_close(tensor, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("personal", [False, True])
def test_what_stays_at_a_site_is_not_drawn_to_what_everybody_began_with(
    task: TensorTask, state: AdapterState, tmp_path: Path, personal: bool
) -> None:
    """Without a row, the site's own B moves by the pull alone: not at all, but for Ditto's adapter.

    The order's B is another one than the site's, which goes on from what it kept.
    """
    rule = RULES["fedit" if personal else "fedsa"]
    site = site_at(task, tmp_path, "a")
    site = replace(site, units=Units.single(NONE))
    own = state + moved(task.model, seed=4)
    if not personal:
        own = own.select(kept_keys(rule, state.spec))
    purpose = Purpose.ADAPTER if personal else Purpose.FACTORS
    site.memory.keep(purpose, own, run="run", round=0)
    order = make_order(
        state,
        plan_off(),
        site="a",
        round=1,
        rule=rule.name,
        learning_rate=0.1,
        local_steps=3,
        proximal=0.7,
        personal=personal,
    )
    found = trained(order, site, sequence=0)
    found.keep()
    now = site.memory.newest(purpose, run="run")
    assert now is not None
    assert now.keys == own.keys
    for key, tensor in now.tensors.items():
        center = own.tensors[key] if not personal else state.tensors[key]
        expected = center + (1 - 0.1 * 0.7) ** 3 * (own.tensors[key] - center)
        torch.testing.assert_close(tensor, expected, rtol=1e-5, atol=1e-6)
        assert (own.tensors[key] - state.tensors[key]).abs().max() > 0.05
    assert all(not tensor.any() for tensor in found.sent.tensors.values())


# ------------------------------------------------------------------------------ SCAFFOLD ----


@dataclass
class Paper:
    """Algorithm 1 of 1910.06378 with option II, in numpy: x, c and each c_i."""

    task: TensorTask
    like: AdapterState
    x: Vector
    c: Vector = field(default_factory=dict)
    own: dict[str, Vector] = field(default_factory=dict)

    def round(
        self,
        sites: Mapping[str, np.ndarray],
        rates: Mapping[str, Sequence[float]],
        keys: Sequence[str],
        *,
        num_sites: int,
    ) -> None:
        """One round of ``sites``, of ``num_sites`` that there are; global step size 1."""

        def c_of(held: Vector) -> Vector:
            return {key: held.get(key, np.zeros_like(self.x[key])) for key in keys}

        c = c_of(self.c)
        changes, of_controls = [], []
        for site, rows in sites.items():
            y, mine = {**self.x}, c_of(self.own.setdefault(site, {}))
            for rate in rates[site]:
                at = as_state(self.like, y)
                g = gradient(self.task, at, rows, keys, over=float(len(rows)))
                for key in keys:
                    y[key] = y[key] - rate * (g[key].double().numpy() - mine[key] + c[key])
            total = sum(rates[site])  # K eta of the paper, where eta is the same in each step
            new = {key: mine[key] - c[key] + (self.x[key] - y[key]) / total for key in keys}
            changes.append({key: y[key] - self.x[key] for key in keys})
            of_controls.append({key: new[key] - mine[key] for key in keys})
            self.own[site] |= new
        for key in keys:
            self.x[key] = self.x[key] + sum(d[key] for d in changes) / len(changes)
            self.c[key] = c[key] + sum(d[key] for d in of_controls) / num_sites


ROWS = {"a": np.arange(0, 6), "b": np.arange(6, 14), "c": np.arange(14, 24)}
SCHEDULES: dict[str, dict[str, Any]] = {
    "a": {"learning_rate": 0.1, "schedule": "constant", "local_steps": 3},
    "b": {"learning_rate": 0.2, "schedule": "cosine", "local_steps": 2},
    "c": {"learning_rate": 0.05, "schedule": "linear", "local_steps": 4},
}


def rates_of(site: str, number: int) -> list[float]:
    how = SCHEDULES[site]
    first = number * how["local_steps"]
    return [
        learning_rate(how["learning_rate"], how["schedule"], first + k, 40)
        for k in range(how["local_steps"])
    ]


def site_at(task: TensorTask, folder: Path, name: str) -> Any:
    site = make_site(task, None, name=name, units=Units.single(ROWS[name]))
    policy = replace(site.policy, site=name)
    return replace(site, policy=policy, memory=SiteMemory(folder / "own", name))


@pytest.mark.parametrize(
    ("rule", "optimizer"), [("fedit", "sgd"), ("rolora", "sgd"), ("rolora", "momentum")]
)
def test_scaffold_is_the_paper_s(
    task: TensorTask, state: AdapterState, tmp_path: Path, rule: str, optimizer: str
) -> None:
    """Over six rounds: a warm-up, turns, a round of two sites only, schedules of their own."""
    aggregation = {"rule": rule, "weighting": "uniform", "optimizer": optimizer}
    # Momentum of zero at a step of one is the plain sum, which is the paper's.
    aggregation |= {"momentum": 0.0, "learning_rate": 1.0} if optimizer == "momentum" else {}
    config = run_config(
        train={"rounds": 6, "warmup_rounds": 1, "optimizer": "sgd", "scaffold": True},
        privacy={"trust": "off"},
        aggregation=aggregation,
    )
    aggregator = make_aggregator(config.aggregation)
    paper = Paper(task, state, as_numpy(state))
    agg, now = aggregator.init(state), state
    for number in range(6):
        turn = None if number == 0 else number - 1
        keys = trainable_keys(RULES[rule], state.spec, turn=turn)
        taking_part = [name for name in ROWS if (name, number) != ("b", 2)]
        control = scaffold.control_of(checkpoint(number, now, agg), config)
        assert control is not None
        assert control.keys == keys
        orders, updates = {}, []
        for name in taking_part:
            how = SCHEDULES[name]
            orders[name] = make_order(
                now,
                plan_off(sampling_probability=1.0, denominator=float(len(ROWS[name]))),
                site=name,
                round=number + 1,
                rule=rule,
                trainable=keys,
                control=control,
                first_step=number * how["local_steps"],
                schedule_steps=40,
                **how,
            )
            # Asked twice, as after a crash: the variates move once.
            for _ in range(2):
                site = site_at(task, tmp_path, name)
                reply = decode_reply(answer(encode_order(orders[name]), site))
                assert isinstance(reply, ClientUpdate), reply
            updates.append(reply)
        before = agg
        agg, now = aggregator.apply(agg, now, updates[::-1])
        agg = scaffold.moved(agg, before, control, updates[::-1], orders, len(ROWS))
        paper.round(
            {name: ROWS[name] for name in taking_part},
            {name: rates_of(name, number) for name in taking_part},
            keys,
            num_sites=len(ROWS),
        )
        held = agg.moments[scaffold.CONTROL]
        assert set(held.keys) == set(paper.c)
        for key, tensor in now.tensors.items():
            assert np.allclose(tensor.numpy(), paper.x[key], rtol=0, atol=2e-5), (number, key)
        for key, tensor in held.tensors.items():
            assert np.allclose(tensor.numpy(), paper.c[key], rtol=0, atol=2e-4), (number, key)
        for name, mine in paper.own.items():
            kept = site_at(task, tmp_path, name).memory.newest(Purpose.CONTROL, run="run")
            assert kept is not None
            assert set(kept.keys) == set(mine)
            for key, tensor in kept.tensors.items():
                assert np.allclose(tensor.numpy(), mine[key], rtol=0, atol=2e-4), (number, key)
    assert sum(float(np.abs(value).sum()) for value in paper.c.values()) > 0.1


def checkpoint(number: int, state: AdapterState, agg: AggState) -> Checkpoint:
    return Checkpoint(
        run="run",
        round=number,
        config_hash="",
        state=state,
        agg=agg,
        history=(),
        charges={},
        refusals={},
        central=None,
    )


def test_without_drift_the_variates_of_all_sites_are_the_same(
    task: TensorTask, state: AdapterState, tmp_path: Path
) -> None:
    """Sites of the same rows: c - c_k is zero, and SCAFFOLD is FedAvg."""
    plan = plan_off(sampling_probability=1.0, denominator=6.0)
    control = 0.0 * state
    plain = make_order(state, plan, site="a", round=1, local_steps=2, learning_rate=0.1)
    site = site_at(task, tmp_path, "a")
    first = decode_reply(answer(encode_order(replace(plain, control=control)), site))
    assert isinstance(first, ClientUpdate)
    kept = site.memory.newest(Purpose.CONTROL, run="run")
    assert kept is not None
    for with_control in (kept, None):
        order = replace(plain, round=2, control=with_control)
        found = decode_reply(answer(encode_order(order), site))
        assert isinstance(found, ClientUpdate)
        assert torch.linalg.norm(flat((found.delta - first.delta).tensors)) <= 1e-6


# -------------------------------------------------------------------------------- FedSGD ----


@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("weighting", ["size", "uniform"])
def test_fedsgd_s_steps_are_the_pooled_ones(
    task: TensorTask, state: AdapterState, tmp_path: Path, optimizer: str, weighting: str
) -> None:
    """Of A, B and head together; torch's own optimiser on all rows at one place."""
    rates = [0.3, 0.2, 0.1] if optimizer == "sgd" else [0.03, 0.02, 0.01]
    aggregation = AggregationConfig(rule="fedsgd", weighting=weighting)  # type: ignore[arg-type]
    now, agg = state, AggState(step=0, moments={})
    for number, rate in enumerate(rates):
        updates: list[ClientUpdate] = []
        for name, rows in ROWS.items():
            size = len(rows)
            order = make_order(
                now,
                plan_off(sampling_probability=1.0, denominator=float(size)),
                site=name,
                round=number + 1,
                rule="fedsgd",
                num_examples=size,
                learning_rate=99.0,  # the server's step, and not the site's
            )
            site = replace(site_at(task, tmp_path, name), public_size=size)
            reply = decode_reply(answer(encode_order(order), site))
            assert isinstance(reply, ClientUpdate), reply
            assert reply.delta.keys == state.keys
            updates.append(reply)
        step = gradient_step(optimizer, rate, weight_decay=0.1)
        aggregator = make_aggregator(aggregation, optimizer=step)
        agg = aggregator.init(now) if number == 0 else agg
        agg, now = aggregator.apply(agg, now, updates[::-1])
    expected = pooled(task, state, optimizer, rates, weighting)
    assert (expected - state).norm() > 0.05
    tolerance = 1e-6 if optimizer == "sgd" else 5e-6  # Adam divides by small roots
    for key, tensor in now.tensors.items():
        torch.testing.assert_close(tensor, expected.tensors[key], rtol=0, atol=tolerance)
    assert not (tmp_path / "own").exists()


def pooled(
    task: TensorTask, state: AdapterState, optimizer: str, rates: Sequence[float], weighting: str
) -> AdapterState:
    lora.install(task.model, state)
    found = lora.set_trainable(task.model, state.keys)
    task.model.frozen_mode()
    weights = torch.ones(24) / 24
    if weighting == "uniform":  # each site's mean loss counts alike
        weights = torch.cat([torch.full((len(rows),), 1 / 3 / len(rows)) for rows in ROWS.values()])
    if optimizer == "adamw":
        torch_s: Any = torch.optim.AdamW(found.values(), lr=1.0, weight_decay=0.1)
    else:
        torch_s = torch.optim.SGD(found.values(), lr=1.0)
    for rate in rates:
        batch = task.batch(np.arange(24), Level.TOKENS)
        losses = torch.nn.functional.cross_entropy(
            task.model(batch.inputs), batch.targets, reduction="none"
        )
        torch_s.zero_grad()
        (losses * weights).sum().backward()
        for group in torch_s.param_groups:
            group["lr"] = rate
        if optimizer == "sgd":  # decay decoupled, which torch's SGD has not
            with torch.no_grad():
                for parameter in found.values():
                    parameter.mul_(1 - rate * 0.1)
        torch_s.step()
    after = lora.extract(task.model)
    for parameter in found.values():
        parameter.grad = None
    task.model.requires_grad_(False)
    return after
