"""Local training in a round: install the global adapter, take private steps, return the change."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import nn

from hushtune.client import dp
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import PrivacyError
from hushtune.common.messages import LocalTraining, RoundOrder
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Trust, Unit
from hushtune.common.schedules import learning_rate
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Units


def train_locally(
    order: RoundOrder,
    *,
    task: Task,
    units: Units,
    noise: NoiseSource,
    random: np.random.Generator,
) -> AdapterState:
    """Take ``order.local_steps`` DP-SGD steps from ``order.adapter`` on a site's training units.

    Returns the change of exactly the tensors that were trained. A plan that is off takes the same
    road with an infinite clip and no noise, and so does one whose unit is a client: what is
    clipped and noised is then the change that is returned, and not here.
    """
    plan = order.plan if order.plan.unit is not Unit.CLIENT else _without_noise(order)
    level = task.level(order.adapter, order.trainable)  # may run the model, so it comes first
    lora.install(task.model, order.adapter)
    trained = lora.set_trainable(task.model, order.trainable)
    task.model.training_mode()
    optimizer = _optimizer(trained, order.training)
    with torch.random.fork_rng(), dp.per_example_gradients(task.model):
        torch.manual_seed(_dropout_seed(random))
        for step in range(order.local_steps):
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
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(
                    order.training.learning_rate,
                    order.training.schedule,
                    order.training.first_step + step,
                    order.training.schedule_steps,
                )
            for key, parameter in trained.items():
                parameter.grad = gradients[key].to(parameter.device)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
    delta = lora.extract(task.model, order.trainable) - order.adapter.select(order.trainable)
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
