"""An empirical lower bound on epsilon, from what a site's own training releases.

Distinguishes runs with one more record, a canary, from runs without it, as Jagielski et al.
(2006.07709) and Nasr et al. (2302.07956) do. It finds gross faults; it proves no promise.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.client import dp
from hushtune.client.train import train_locally
from hushtune.common.privacy import accountant
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit, make_plan
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units
from hushtune.simulations.audit.bounds import two_sample

from .families import flat, make_order, moved, plan_off, tensor_task

TRIALS, STEPS = 160, 3
PLAN = make_plan(
    epsilon=1.0,
    delta=1e-3,
    public_size=100,
    batch_size=None,
    sampling_probability=0.5,
    steps=STEPS,
    clip_norm=10.0,
    unit=Unit.EXAMPLE,
    relation=Relation.ADD_OR_REMOVE_ONE,
    trust=Trust.SITE,
)
CLAIMED = accountant.epsilon([PLAN.event(STEPS)], delta=PLAN.delta, relation=PLAN.relation)
CANARY, OTHER = 0, 1
bound = partial(two_sample, confidence=0.99)


def scores() -> tuple[np.ndarray, np.ndarray]:
    """How far each run's release lies in the canary's direction: of runs with and without it."""
    # Weights that make every gradient far longer than the clip norm.
    task = replace(tensor_task(2), class_weights=(1e4, 1e4, 1e4))
    state = moved(task.model)
    head = tuple(key for key in state.keys if key.startswith("head."))

    def release(
        rows: list[int], trial: int, *, plan: PrivacyPlan = PLAN, steps: int = STEPS, rate: float
    ) -> torch.Tensor:
        order = make_order(
            state, plan, trainable=head, local_steps=steps, learning_rate=rate, schedule_steps=steps
        )
        delta = train_locally(
            order,
            task=task,
            units=Units.single(np.array(rows, dtype=np.int64)),
            noise=NoiseSource.insecure(trial),
            random=rng(trial, "batches"),
        )
        return flat(delta.tensors)

    bare = plan_off(sampling_probability=1.0)
    direction = release([CANARY], 0, plan=bare, steps=1, rate=1e-6)
    direction /= direction.norm()
    told = [
        [
            float(direction @ release(rows, trial, rate=0.05))
            for trial in range(first, first + TRIALS)
        ]
        for rows, first in (([CANARY, OTHER], 0), ([OTHER], TRIALS))
    ]
    return np.array(told[0]), np.array(told[1])


def test_the_bound_of_an_honest_site_is_below_what_is_claimed() -> None:
    assert bound(*scores(), delta=PLAN.delta) < CLAIMED <= 1.0


SOUND_SUM, SOUND_MEAN = dp.clipped_sum, dp.noisy_mean


def unclipped(task: Any, units: Units, **how: Any) -> dict[str, torch.Tensor]:
    return SOUND_SUM(task, units, **{**how, "clip_norm": math.inf})


def noised_as_if_clipped_to(norm: float) -> Callable[..., dict[str, torch.Tensor]]:
    def mean(total: Any, plan: PrivacyPlan, noise: NoiseSource) -> dict[str, torch.Tensor]:
        return SOUND_MEAN(total, replace(plan, clip_norm=norm) if plan.is_private else plan, noise)

    return mean


FAULTS: dict[str, tuple[str, Callable[..., dict[str, torch.Tensor]]]] = {
    "no noise to speak of": ("noisy_mean", noised_as_if_clipped_to(0.01)),
    "noise of a clip norm of 1": ("noisy_mean", noised_as_if_clipped_to(1.0)),
    "no clipping": ("clipped_sum", unclipped),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_gross_fault_lifts_the_bound_above_what_is_claimed(
    fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dp, *FAULTS[fault])
    assert bound(*scores(), delta=PLAN.delta) > 1.5 * CLAIMED
