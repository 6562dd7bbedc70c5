"""What the server asks in a round: of whom, in which phase, with which steps of the schedule."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace

from hushtune.common import seeds
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.local_training import LocalTraining
from hushtune.common.lora_rules import RULES
from hushtune.common.messages import RoundOrder
from hushtune.common.planning import local_rate, site_rank
from hushtune.common.privacy.correlated import turn
from hushtune.common.privacy.plan import PrivacyPlan, Trust, Unit
from hushtune.common.run_steps import is_warmup, trainable_of
from hushtune.common.tuning import GradientMethod
from hushtune.server.aggregation.lora_rules import SERVER_RULES

__all__ = [
    "chosen_sites",
    "is_warmup",
    "local_training",
    "make_orders",
    "step_of_round",
    "trainable_of",
]


def chosen_sites(config: RunConfig, sites: Collection[str], *, round: int) -> tuple[str, ...]:
    """The sites of a round by name, sorted: all, or a seeded sample without replacement.

    Drawn from all sites of the run, whoever is there, so that an absence changes no later draw.
    Of clients that a trusted server draws in secret these are all; of those that take turns, the
    ones whose turn it is.
    """
    names = sorted(sites)
    every = config.privacy.client_turns
    if config.privacy.trust == Trust.SERVER and every is not None:
        return tuple(n for k, n in enumerate(names) if turn(k, every=every, round=round))
    count = config.simulation.sites_per_round
    if count in (0, len(names)):
        return tuple(names)
    random = seeds.rng(config.seed, "sites", round)
    drawn = random.choice(len(names), size=count, replace=False)
    return tuple(names[place] for place in sorted(drawn.tolist()))


def local_training(config: RunConfig, *, round: int) -> LocalTraining:
    """How sites train in a round; the schedule spans the steps of the round's phase."""
    train = config.train
    warmup = is_warmup(config, round)
    before = 0 if warmup else train.warmup_rounds
    phase_rounds = train.warmup_rounds if warmup else train.rounds - train.warmup_rounds
    return LocalTraining(
        learning_rate=train.warmup_learning_rate if warmup else train.learning_rate,
        optimizer=train.optimizer,
        schedule=train.schedule,
        weight_decay=train.weight_decay,
        first_step=(round - 1 - before) * train.local_steps,
        schedule_steps=phase_rounds * train.local_steps,
        microbatch=train.microbatch,
        proximal=train.proximal,
        rate_warmup_steps=train.rate_warmup_steps,
    )


def _at_site(
    training: LocalTraining, config: RunConfig, site: str, *, plan: PrivacyPlan, size: int
) -> LocalTraining:
    """With the rate of records in a client's own steps, of which a plan for clients has none, and
    few rows at once beside those that a step is expected to have.

    Each width of a step's texts has a last piece that is filled up, half of it on average, and each
    piece costs as much as some hundred tokens: with n rows in all, pieces of about sqrt(2 n) make
    the sum of both least. Where texts lie side by side only one piece is filled up, and pieces of
    about sqrt(10 n) do."""
    of_client = Unit(config.privacy.unit) is Unit.CLIENT
    rate = local_rate(config, site) if of_client else plan.sampling_probability
    views = config.augment.views * (config.privacy.records_per_group if config.data.group else 1)
    expected = math.ceil(rate * size) * views
    few = math.ceil(math.sqrt((10 if _packs(config) else 2) * max(expected, 2)))
    training = replace(training, microbatch=min(training.microbatch, few))
    return replace(training, sampling_probability=rate) if of_client else training


def _packs(config: RunConfig) -> bool:
    """Whether texts lie side by side, as far as settings tell; see ``AdaptedModel.packs``."""
    asked = config.speed.pack and config.speed.gradients == GradientMethod.FUSED
    plain = config.model.head == "mean" and not config.adapter.dropout
    return asked and plain and not config.augment.is_on


def make_orders(
    state: AdapterState,
    *,
    run: str,
    round: int,
    config: RunConfig,
    plans: Mapping[str, PrivacyPlan],
    sizes: Mapping[str, int],
    control: AdapterState | None = None,
) -> dict[str, RoundOrder]:
    """The order for each site of a round, by name, sorted; ``control``: of SCAFFOLD."""
    rule = config.aggregation.rule
    trainable = trainable_of(config, state.spec, round=round)
    training = local_training(config, round=round)
    give = SERVER_RULES[rule].give
    one = RULES[rule].gradient and Unit(config.privacy.unit) is Unit.CLIENT
    steps = 1 if one else config.train.local_steps
    return {
        site: RoundOrder(
            run=run,
            round=round,
            site=site,
            adapter=give(state, site_rank(config, site)),
            trainable=trainable,
            rule=rule,
            plan=plans[site],
            local_steps=steps,
            num_examples=sizes[site],
            training=_at_site(training, config, site, plan=plans[site], size=sizes[site]),
            control=control,
            encoding=config.aggregation.encoding,
        )
        for site in chosen_sites(config, plans, round=round)
    }


def step_of_round(order: RoundOrder, config: RunConfig, step: int) -> RoundOrder:
    """A round's order as one for a single gradient, numbered through the run."""
    number = (order.round - 1) * config.train.local_steps + step + 1
    return replace(order, round=number, local_steps=1)
