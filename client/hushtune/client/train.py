"""Local training in a round: install the global adapter, take private steps, return the change."""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hushtune.client import cohort, dp
from hushtune.client.together import Asked, is_together, sum_for
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import PrivacyError
from hushtune.common.local_training import LocalTraining
from hushtune.common.lora_rules import RULES, kept_keys
from hushtune.common.messages import RoundOrder
from hushtune.common.model import Level
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Trust, Unit
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Units


def train_locally(
    order: RoundOrder,
    *,
    task: Task,
    units: Units,
    noise: NoiseSource,
    random: np.random.Generator,
    start: AdapterState | None = None,
    control: AdapterState | None = None,
) -> AdapterState:
    """Take ``order.local_steps`` DP-SGD steps on a site's training units.

    From ``order.adapter``, or from ``start`` where the site has something of its own. Returns the
    change of exactly the tensors that were trained. A plan that is off takes the same road with an
    infinite clip and no noise, and so does one whose unit is a client: what is clipped and noised
    is then the change that is returned, and not here. ``control``: what SCAFFOLD adds to each
    gradient.
    """
    plan = order.plan if order.plan.unit is not Unit.CLIENT else _without_noise(order)
    begin = order.adapter if start is None else start
    level = task.level(begin, order.trainable)  # may run the model, so it comes first
    with _placed(order, plan, begin, task, level, random) as place:
        trained = place.trained
        optimizer, center = _optimizer(trained, order.training), _center(order, begin)
        for step in range(order.local_steps):
            gradients = _noised(order, plan, place, units, trained, noise, random)
            # What follows looks at no record again, so it costs nothing.
            drift = _drift(order.training.proximal, center, trained, control)
            for group in optimizer.param_groups:
                group["lr"] = order.training.rate(step)
            for key, parameter in trained.items():
                parameter.grad = (gradients[key] + drift.get(key, 0.0)).to(parameter.device)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    delta = place.now() - begin.select(order.trainable)
    return _checked(delta, trained, plan, task)


def descent(
    order: RoundOrder,
    *,
    task: Task,
    units: Units,
    noise: NoiseSource,
    random: np.random.Generator,
) -> AdapterState:
    """Minus the noised mean gradient of one Poisson batch at ``order.adapter`` (FedSGD)."""
    plan = order.plan if order.plan.unit is not Unit.CLIENT else _without_noise(order)
    level = task.level(order.adapter, order.trainable)
    with _placed(order, plan, order.adapter, task, level, random) as place:
        gradients = _noised(order, plan, place, units, place.trained, noise, random)
    found = AdapterState(order.adapter.spec, gradients)
    return _checked(-1.0 * found, place.trained, plan, task)


@dataclass(frozen=True, kw_only=True)
class _Place:
    """Where a site takes its steps. ``trained``: its tensors, which are all of ``moving``;
    ``summed``: the clipped sum of a batch with them; ``now``: what they have become."""

    trained: Mapping[str, nn.Parameter]
    moving: Callable[[], Iterable[nn.Parameter]]
    summed: Callable[[Units], dp.Gradients]
    now: Callable[[], AdapterState]


@contextmanager
def _placed(
    order: RoundOrder,
    plan: PrivacyPlan,
    begin: AdapterState,
    task: Task,
    level: Level,
    random: np.random.Generator,
) -> Generator[_Place]:
    """In the model itself; or beside it, where other sites' steps are computed with these."""
    how: dict[str, Any] = {
        "clip_norm": plan.clip_norm,
        "microbatch": order.training.microbatch,
        "level": level,
    }
    if is_together() and cohort.knows(task, order.trainable):
        own = {key: nn.Parameter(begin.tensors[key].clone()) for key in sorted(order.trainable)}
        yield _Place(
            trained=own,
            moving=own.values,
            summed=lambda units: sum_for(
                Asked(task=task, units=units, begin=begin, trained=own, **how)
            ),
            now=lambda: AdapterState(begin.spec, {k: p.detach().clone() for k, p in own.items()}),
        )
        return
    lora.install(task.model, begin)
    trained = lora.set_trainable(task.model, order.trainable)
    task.model.training_mode()
    with torch.random.fork_rng(), dp.per_example_gradients(task.model):
        torch.manual_seed(_dropout_seed(random))
        yield _Place(
            trained=trained,
            moving=task.model.parameters,
            summed=lambda units: dp.clipped_sum(task, units, trained=trained, **how),
            now=lambda: lora.extract(task.model, order.trainable),
        )


def _noised(
    order: RoundOrder,
    plan: PrivacyPlan,
    place: _Place,
    units: Units,
    trained: Mapping[str, nn.Parameter],
    noise: NoiseSource,
    random: np.random.Generator,
) -> dict[str, Tensor]:
    """The noised mean gradient of one Poisson batch, where the site stands."""
    batch = dp.poisson_batch(units, plan.sampling_probability, random)
    total = place.summed(batch)
    gradients = dp.noisy_mean(total, plan, noise)
    _check_coverage(trained, gradients, order.trainable, place.moving())
    return gradients


def _center(order: RoundOrder, begin: AdapterState) -> AdapterState:
    """What a proximal term draws to: the global adapter, and where a round began for what stays at
    the site, of which there is no global value. Ditto's whole adapter is drawn to the global one.
    """
    if order.personal:
        return order.adapter
    kept = kept_keys(RULES[order.rule], begin.spec)
    return order.adapter.merge(begin.select(kept & set(begin.keys)))


def _drift(
    mu: float,
    center: AdapterState,
    trained: Mapping[str, nn.Parameter],
    control: AdapterState | None,
) -> dict[str, Tensor]:
    """What is added to a gradient against client drift: FedProx' ``mu (theta - theta_global)``
    (1812.06127), and SCAFFOLD's ``c - c_k`` (1910.06378)."""
    found = dict[str, Tensor]()
    for key, parameter in trained.items() if mu or control is not None else ():
        pull = torch.zeros(parameter.shape)
        if mu:
            pull += mu * (parameter.detach().cpu() - center.tensors[key])
        if control is not None:
            pull += control.tensors[key]
        found[key] = pull
    return found


def sum_of_rates(order: RoundOrder) -> float:
    """The learning rates of a round's steps, added up."""
    return sum(order.training.rate(step) for step in range(order.local_steps))


def _checked(
    delta: AdapterState, trained: Mapping[str, nn.Parameter], plan: PrivacyPlan, task: Task
) -> AdapterState:
    """What was trained, if it is what was noised and all of it moved."""
    if delta.keys != tuple(sorted(trained)):
        raise PrivacyError("what would be sent is not what was noised", given=len(delta.keys))
    task.model.requires_grad_(False)
    if plan.trust is not Trust.OFF and not all(bool(t.any()) for t in delta.tensors.values()):
        raise PrivacyError("a noised tensor did not move, so what was charged was not trained")
    return delta


def gradient_sum(
    order: RoundOrder, *, task: Task, units: Units, random: np.random.Generator
) -> dp.Gradients:
    """The sum of clipped gradients of one Poisson batch at ``order.adapter``, without any noise.

    Float64, as rounding to float32 would move it by more than is accounted for.
    """
    level = task.level(order.adapter, order.trainable)  # may run the model, so it comes first
    lora.install(task.model, order.adapter)
    trained = lora.set_trainable(task.model, order.trainable)
    task.model.training_mode()
    with torch.random.fork_rng(), dp.per_example_gradients(task.model):
        torch.manual_seed(_dropout_seed(random))
        total = dp.clipped_sum(
            task,
            dp.poisson_batch(units, order.plan.sampling_probability, random),
            trained=trained,
            clip_norm=order.plan.clip_norm,
            microbatch=order.training.microbatch,
            level=level,
        )
        _check_coverage(trained, total, order.trainable, task.model.parameters())
    task.model.requires_grad_(False)
    return total


def _without_noise(order: RoundOrder) -> PrivacyPlan:
    """How a client samples its own records where its whole update is what is protected."""
    rate = order.training.sampling_probability
    return replace(
        order.plan,
        trust=Trust.OFF,
        epsilon=math.inf,
        clip_norm=math.inf,
        noise_multiplier=0.0,
        sampling_probability=rate,
        denominator=rate * order.num_examples,
    )


def _dropout_seed(random: np.random.Generator) -> int:
    """A seed of its own for adapter dropout, which leaves the batches' stream as it is."""
    child = random.bit_generator.seed_seq.spawn(1)[0]  # pyright: ignore[reportAttributeAccessIssue]
    return int(child.generate_state(1)[0])


def _optimizer(trained: Mapping[str, nn.Parameter], how: LocalTraining) -> torch.optim.Optimizer:
    """A fresh optimiser: its state is the round's own, as in FedAvg (1602.05629)."""
    if how.optimizer == "adamw":
        return torch.optim.AdamW(
            list(trained.values()), lr=how.learning_rate, weight_decay=how.weight_decay
        )
    return torch.optim.SGD(
        list(trained.values()), lr=how.learning_rate, weight_decay=how.weight_decay
    )


def _check_coverage(
    trained: Mapping[str, nn.Parameter],
    gradients: dp.Gradients,
    sent: Sequence[str],
    parameters: Iterable[nn.Parameter],
) -> None:
    """What is noised, what requires gradients and what will be sent are the same tensors."""
    moving = {id(parameter) for parameter in parameters if parameter.requires_grad}
    of_trained = {id(parameter) for parameter in trained.values()}
    if not set(sent) == set(trained) == set(gradients) or moving != of_trained:
        raise PrivacyError(
            "the tensors that are trained, noised and sent are not the same",
            given=f"{len(moving)} trained, {len(gradients)} noised, {len(sent)} sent",
        )
