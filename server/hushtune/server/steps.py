"""The optimiser that the server takes a round's step with, or each of its steps."""

from __future__ import annotations

from hushtune.common.config import RunConfig
from hushtune.common.config_federation import PLAIN
from hushtune.common.config_rules import sends_gradients
from hushtune.common.run_steps import numbers_of_round, steps_of_round
from hushtune.server.aggregation.aggregator import make_optimizer
from hushtune.server.aggregation.optimizers import ServerOptimizer, gradient_step
from hushtune.server.orders import local_training

__all__ = ["numbers_of_round", "round_optimizer", "steps_of_round"]


def round_optimizer(config: RunConfig, *, round: int, step: int = 0) -> ServerOptimizer:
    """What the server does with the sites' mean in a step of a round, counted from 0.

    Where that is a gradient, and [aggregation] asks for nothing else, it is the step that [train]
    would have the sites take.
    """
    asked = (config.aggregation.optimizer, config.aggregation.server_rate)
    if not sends_gradients(config.aggregation, config.privacy) or asked != PLAIN:
        return make_optimizer(config.aggregation)
    how = local_training(config, round=round)
    return gradient_step(how.optimizer, how.rate(step), weight_decay=how.weight_decay)
