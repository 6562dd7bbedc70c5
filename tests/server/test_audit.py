"""An empirical lower bound on epsilon, from what a trusted server and secure sums release.

As ``tests/client/test_audit.py`` does for a site's own updates: it finds gross faults, and proves
no promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import Tensor

from hushtune.client import dp
from hushtune.client.train import gradient_sum
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.messages import ClientUpdate
from hushtune.common.planning import site_plans
from hushtune.common.privacy import accountant
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit, make_plan
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import from_ring
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units
from hushtune.server import central
from hushtune.server.aggregation import central_dp
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.aggregation.central_dp import Memory
from hushtune.server.checkpoint import Checkpoint
from hushtune.server.orders import chosen_sites
from hushtune.server.secure import SecureSession
from hushtune.simulations.audit.bounds import two_sample

from ..client.families import moved, tensor_task
from .fake_grid import state
from .secure_grid import Sites, order
from .test_central import NAMES, settings

# --------------------------------------------------------- a whole client, at a trusted server ----

TRIALS, DELTA = 160, 1e-3
bound = partial(two_sample, confidence=0.99)
CANARY, KEYS = NAMES[0], ("head.bias", "head.weight")
WAYS: dict[str, dict[str, Any]] = {
    "all": {},
    "adaptive": {"adaptive_clipping": True},
    "drawn": {"client_sampling_probability": 0.5},
    "turns": {"client_turns": 2},
}
LOUD = 1e3 * state(5, KEYS)
"""What the canary sends: far longer than any clip norm."""


def of_clients(way: str) -> RunConfig:
    """Four rounds that train the head, at epsilon 1."""
    return settings(
        privacy={"epsilon": 1.0, "delta": DELTA, **WAYS[way]}, train={"warmup_rounds": 4}
    )


def claimed(config: RunConfig) -> float:
    plan = site_plans(config)[CANARY]
    return accountant.epsilon([plan.event(plan.steps)], delta=DELTA, relation=plan.relation)


def score_of_run(config: RunConfig, *, there: bool) -> float:
    """How far all rounds of a run lie in the canary's direction, weighed as noise allows.

    Correlated noise is made white again, as whoever sees all rounds can do.
    """
    plan = site_plans(config)[CANARY]
    factors = np.array(central.mechanism(config, plan).coefficients)
    now = Checkpoint(
        run="run",
        round=0,
        config_hash="c" * 64,
        state=state(0),
        agg=make_aggregator(config.aggregation).init(state(0)),
        history=(),
        charges={},
        refusals={},
        central=Memory(clip_norm=plan.clip_norm),
    )
    rounds, seen, turns = config.train.rounds, list[float](), list[float]()
    direction = (1 / LOUD.norm()) * LOUD
    for number in range(1, rounds + 1):
        orders: dict[str, Any] = dict.fromkeys(chosen_sites(config, NAMES, round=number))
        asked = central.drawn(orders, config, round=number)
        updates = [sent(site, number) for site in asked if there or site != CANARY]
        noise = central.noise_source(config, round=number)
        agg, after, memory = central.release(now, updates, config=config, plan=plan, noise=noise)
        moved_by = after.select(KEYS) - now.state.select(KEYS)
        assert now.central is not None
        seen.append(dot(moved_by, direction) / now.central.clip_norm)
        turns.append(float(CANARY in orders))
        now = replace(now, round=number, agg=agg, state=after, central=memory)
    return float(np.convolve(factors, seen)[:rounds] @ np.convolve(factors, turns)[:rounds])


def dot(one: AdapterState, other: AdapterState) -> float:
    return sum(float((one.tensors[key] * other.tensors[key]).sum()) for key in one.keys)


def sent(site: str, number: int) -> ClientUpdate:
    """The canary's update, or another's, which is short."""
    delta = LOUD if site == CANARY else 0.01 * state(NAMES.index(site), KEYS)
    return ClientUpdate(
        run="run", round=number, site=site, delta=delta, num_examples=50, charge=None, noise="none"
    )


def scores_of_clients(config: RunConfig) -> tuple[np.ndarray, np.ndarray]:
    """Of runs with the canary, and of others without it."""
    told = [
        [
            score_of_run(config.model_copy(update={"seed": seed}), there=there)
            for seed in range(first, first + TRIALS)
        ]
        for there, first in ((True, 0), (False, TRIALS))
    ]
    return np.array(told[0]), np.array(told[1])


@pytest.mark.parametrize("way", WAYS)
def test_the_bound_of_an_honest_server_is_below_what_is_claimed(way: str) -> None:
    config = of_clients(way)
    assert bound(*scores_of_clients(config), delta=DELTA) < claimed(config) <= 1.0


SOUND_SUM, SOUND_SPLIT = central_dp.clipped_sum, central_dp.split


def unclipped(updates: Any, *, like: Any, clip_norm: float) -> Any:
    del clip_norm
    return SOUND_SUM(updates, like=like, clip_norm=math.inf)


def quieter(mechanism: Any) -> tuple[float, float]:
    of_sum, of_count = SOUND_SPLIT(mechanism)
    return 0.1 * of_sum, of_count


FAULTS_AT_SERVER = {
    "no clipping": ("clipped_sum", unclipped),
    "a tenth of the noise": ("split", quieter),
}


@pytest.mark.parametrize(
    ("way", "fault"),
    [
        ("all", "no clipping"),
        ("adaptive", "a tenth of the noise"),
        ("drawn", "no clipping"),
        ("turns", "a tenth of the noise"),
    ],
)
def test_a_gross_fault_at_the_server_lifts_the_bound_above_what_is_claimed(
    way: str, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(central_dp, *FAULTS_AT_SERVER[fault])
    config = of_clients(way)
    assert bound(*scores_of_clients(config), delta=DELTA) > claimed(config)


# ----------------------------------------------------------------- a record, in a secure sum ----

STEPS, OF_A_SESSION = 160, 20
"""Each step is a run by itself: with the canary if its number is even."""
ONE_STEP = make_plan(
    epsilon=1.0,
    delta=1e-5,
    public_size=100,
    batch_size=None,
    sampling_probability=1.0,  # a canary that is not drawn shows no fault
    steps=1,
    clip_norm=10.0,
    unit=Unit.EXAMPLE,
    relation=Relation.ADD_OR_REMOVE_ONE,
    trust=Trust.DISTRIBUTED,
)
ROWS = {"east": 1, "west": 2}
CANARY_ROW = 0


def scores_of_sums(folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Of opened sums with one more record at a site, and of others without it."""
    plan: PrivacyPlan = replace(ONE_STEP, steps=STEPS)
    # Weights that make every gradient far longer than the clip norm.
    task = replace(tensor_task(3), class_weights=(1e4, 1e4, 1e4))
    start = moved(task.model)
    head = tuple(key for key in start.keys if key.startswith("head."))
    grid = Sites(ROWS, folder)
    for site in grid.sites.values():
        site.policy, site.task = replace(site.policy, spec=start.spec), task

    def asked(site: str, number: int) -> Any:
        return replace(order(site, number, of=plan), adapter=start, trainable=head)

    def vector(gradients: Mapping[str, Tensor]) -> np.ndarray:
        parts = [gradients[key].double().numpy().ravel() for key in sorted(head)]
        return np.concatenate(parts)

    certain = replace(asked("east", 1), plan=replace(plan, sampling_probability=1.0))
    alone = Units.single(np.array([CANARY_ROW]))
    direction = vector(gradient_sum(certain, task=task, units=alone, random=rng(0, "canary")))

    def begun(numbers: range) -> SecureSession:
        session = SecureSession(
            run="run",
            cohort=Cohort(sites=tuple(ROWS), min_survivors=len(ROWS), colluding=0),
            plan=plan,
            steps=tuple(numbers),
            grid=grid,
            nodes=grid.nodes,
            timeout=1.0,
        )
        session.begin()
        return session

    told: tuple[list[float], list[float]] = ([], [])
    for number in range(STEPS):
        if number % OF_A_SESSION == 0:
            session = begun(range(number, number + OF_A_SESSION))
        for place, (name, site) in enumerate(grid.sites.items()):
            rows = [ROWS[name], *([CANARY_ROW] if place == 0 and number % 2 == 0 else [])]
            site.units = Units.single(np.array(sorted(rows), dtype=np.int64))
            site.noise = NoiseSource.insecure(len(ROWS) * number + place)
            site.batch_randomness = batches_of(name)
        opened = session.step({name: asked(name, number) for name in ROWS})
        values = from_ring(opened.values, clip_norm=plan.clip_norm)
        told[number % 2].append(float(values @ direction))
    return np.array(told[0]), np.array(told[1])


def batches_of(site: str) -> Callable[[str, int, int], np.random.Generator]:
    return lambda run, round, sequence: rng(round, run, site)


def test_the_bound_of_an_honest_sum_is_below_what_is_claimed(tmp_path: Path) -> None:
    of_one = [ONE_STEP.event(1)]
    spent = accountant.epsilon(of_one, delta=ONE_STEP.delta, relation=ONE_STEP.relation)
    assert bound(*scores_of_sums(tmp_path), delta=ONE_STEP.delta) < spent <= 1.0


SOUND_GRADIENTS = dp.clipped_sum


def unclipped_gradients(task: Any, units: Units, **how: Any) -> Any:
    return SOUND_GRADIENTS(task, units, **{**how, "clip_norm": math.inf})


def hardly_any(cohort: Cohort, noise_multiplier: float, num_values: int) -> float:
    del cohort, num_values
    return 0.05 * noise_multiplier * 2**32


FAULTS_IN_SUMS: dict[str, tuple[Any, str, Any]] = {
    "no clipping": (dp, "clipped_sum", unclipped_gradients),
    "hardly any noise": (Cohort, "share_std", hardly_any),
}


@pytest.mark.parametrize("fault", FAULTS_IN_SUMS)
def test_a_gross_fault_in_a_sum_lifts_the_bound_above_what_is_claimed(
    fault: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(*FAULTS_IN_SUMS[fault])
    assert bound(*scores_of_sums(tmp_path), delta=ONE_STEP.delta) > 1.0
