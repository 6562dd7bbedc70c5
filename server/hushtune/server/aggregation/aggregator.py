"""An aggregator: from the global state and a round's updates to the next global state.

``compose(estimate, optimizer)`` stands in for a class for each combination. Whatever follows the
sites' noise here is post-processing and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hushtune.common.adapter import AdapterState
from hushtune.common.config import AggregationConfig
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation.estimates import (
    Estimate,
    Weighting,
    by_size,
    uniform,
    weighted_mean,
)
from hushtune.server.aggregation.optimizers import AggState, ServerOptimizer, adam, sgd

__all__ = ["AggState", "Aggregator", "compose", "make_aggregator", "make_optimizer", "mean_by"]


@dataclass(frozen=True)
class Aggregator:
    """Two pure functions; the updates given to ``apply`` have passed ``check_update``."""

    init: Callable[[AdapterState], AggState]
    apply: Callable[[AggState, AdapterState, Sequence[ClientUpdate]], tuple[AggState, AdapterState]]


def compose(estimate: Estimate, optimizer: ServerOptimizer) -> Aggregator:
    """Estimate the mean change, then take the server optimiser's step along it."""

    def apply(
        memory: AggState, state: AdapterState, updates: Sequence[ClientUpdate]
    ) -> tuple[AggState, AdapterState]:
        return optimizer.apply(memory, state, estimate(updates))

    return Aggregator(optimizer.init, apply)


def mean_by(weighting: Weighting) -> Estimate:
    """The weighted mean, with weights that follow from the updates' public sizes."""
    return lambda updates: weighted_mean(updates, weighting(updates))


def make_aggregator(config: AggregationConfig) -> Aggregator:
    """The aggregator that a configuration asks for."""
    weightings = {"size": by_size, "uniform": uniform}
    return compose(mean_by(weightings[config.weighting]), make_optimizer(config))


def make_optimizer(config: AggregationConfig) -> ServerOptimizer:
    """The server's optimiser alone, for a mean that is not an ``Estimate`` of updates as such."""
    optimizers = {"sgd": sgd, "adam": adam}
    return optimizers[config.optimizer](config.learning_rate)
