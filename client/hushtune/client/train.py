"""Local training in a round: install the global adapter, take private steps, return the change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from hushtune.client import dp
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
    lora.install(task.model, begin)
    trained = lora.set_trainable(task.model, order.trainable)
    task.model.training_mode()
    optimizer, center = _optimizer(trained, order.training), _center(order, begin)
    with torch.random.fork_rng(), dp.per_example_gradients(task.model):
        torch.manual_seed(_dropout_seed(random))
        for step in range(order.local_steps):
            gradients = _noised(order, plan, task, units, trained, level, noise, random)
            # What follows looks at no record again, so it costs nothing.
            drift = _drift(order.training.proximal, center, trained, control)
            for group in optimizer.param_groups:
                group["lr"] = order.training.rate(step)
            for key, parameter in trained.items():
                parameter.grad = (gradients[key] + drift.get(key, 0.0)).to(parameter.device)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    delta = lora.extract(task.model, order.trainable) - begin.select(order.trainable)
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
    lora.install(task.model, order.adapter)
    trained = lora.set_trainable(task.model, order.trainable)
    task.model.training_mode()
    with torch.random.fork_rng(), dp.per_example_gradients(task.model):
        torch.manual_seed(_dropout_seed(random))
        gradients = _noised(order, plan, task, units, trained, level, noise, random)
    return _checked(-1.0 * AdapterState(order.adapter.spec, gradients), trained, plan, task)


def _noised(
    order: RoundOrder,
    plan: PrivacyPlan,
    task: Task,
    units: Units,
    trained: Mapping[str, nn.Parameter],
    level: Level,
    noise: NoiseSource,
    random: np.random.Generator,
) -> dict[str, Tensor]:
    """The noised mean gradient of one Poisson batch, where the model stands."""
    batch = dp.poisson_batch(units, plan.sampling_probability, random)
    total = dp.clipped_sum(
        task,
        batch,
        trained=trained,
        clip_norm=plan.clip_norm,
        microbatch=order.training.microbatch,
        level=level,
    )
    gradients = dp.noisy_mean(total, plan, noise)
    _check_coverage(trained, gradients, order.trainable, task)
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
        _check_coverage(trained, total, order.trainable, task)
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
    trained: Mapping[str, nn.Parameter], gradients: dp.Gradients, sent: Sequence[str], task: Task
) -> None:
    """What is noised, what requires gradients and what will be sent are the same tensors."""
    moving = {id(parameter) for parameter in task.model.parameters() if parameter.requires_grad}
    of_trained = {id(parameter) for parameter in trained.values()}
    if not set(sent) == set(trained) == set(gradients) or moving != of_trained:
        raise PrivacyError(
            "the tensors that are trained, noised and sent are not the same",
            given=f"{len(moving)} trained, {len(gradients)} noised, {len(sent)} sent",
        )
