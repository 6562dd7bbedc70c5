"""What a round of a run is: its phase, the tensors that it trains, the charges that it makes."""

from __future__ import annotations

from hushtune.common.adapter import AdapterSpec
from hushtune.common.config import RunConfig
from hushtune.common.config_rules import sends_gradients
from hushtune.common.lora_rules import RULES, trainable_keys
from hushtune.common.privacy.plan import Unit
from hushtune.common.unfreezing import enabled


def is_warmup(config: RunConfig, round: int) -> bool:
    """Whether round ``round`` (from 1) trains the head only."""
    return round <= config.train.warmup_rounds


def turn_of(config: RunConfig, round: int) -> int | None:
    """The number of a round among those after the warm-up, from 0; None in the warm-up."""
    return None if is_warmup(config, round) else round - 1 - config.train.warmup_rounds


def trainable_of(config: RunConfig, spec: AdapterSpec, *, round: int) -> tuple[str, ...]:
    """Keys of what sites train in a round.

    With gradual unfreezing a block is opened where a rule's turns begin anew, so that each factor
    of it has its turn in the rule's order.
    """
    rule, turn, train = RULES[config.aggregation.rule], turn_of(config, round), config.train
    modules = None
    if turn is not None and train.unfreeze == "gradual":
        every = train.unfreeze_every * len(rule.turns)
        modules = enabled(spec.targets, turn=turn, every=every)
    return trainable_keys(rule, spec, turn=turn, modules=modules)


def steps_of_round(config: RunConfig) -> int:
    """Exchanges of a round that a site charges, one by one, under numbers of their own."""
    if Unit(config.privacy.unit) is Unit.CLIENT or not sends_gradients(
        config.aggregation, config.privacy
    ):
        return 1
    return config.train.local_steps


def numbers_of_round(config: RunConfig, round: int) -> tuple[int, ...]:
    """The steps of a round (from 1), as they are numbered through the run."""
    count = steps_of_round(config)
    return tuple(range((round - 1) * count + 1, round * count + 1))


def round_of_number(config: RunConfig, number: int) -> int:
    """The round that a charge for training was made in, by the charge's own number."""
    return (number - 1) // steps_of_round(config) + 1
