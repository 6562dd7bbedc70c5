"""An aggregator: from the global state and a round's updates to the next global state.

``compose(estimate, optimizer)`` stands in for a class for each combination. Whatever follows the
sites' noise here is post-processing and costs no privacy.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from hushtune.common.adapter import AdapterState
from hushtune.common.config import AggregationConfig
from hushtune.common.errors import ConfigError
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation import optimizers, robust, selection
from hushtune.server.aggregation.estimates import (
    Estimate,
    GramOf,
    Weighting,
    by_site,
    by_size,
    euclidean_gram,
    mean,
    uniform,
)
from hushtune.server.aggregation.optimizers import AggState, ServerOptimizer

__all__ = [
    "AggState",
    "Aggregator",
    "compose",
    "make_aggregator",
    "make_estimate",
    "make_optimizer",
]

WEIGHTINGS = {"size": by_size, "uniform": uniform}
ROBUST = {
    "median": robust.coordinate_median,
    "trimmed_mean": robust.trimmed_mean,
    "krum": selection.krum,
    "multi_krum": selection.multi_krum,
    "bulyan": selection.bulyan,
    "geometric_median": selection.geometric_median,
}


@dataclass(frozen=True)
class Aggregator:
    """Two pure functions; the updates given to ``apply`` have passed ``check_update``."""

    init: Callable[[AdapterState], AggState]
    apply: Callable[[AggState, AdapterState, Sequence[ClientUpdate]], tuple[AggState, AdapterState]]


def compose(
    estimate: Estimate,
    optimizer: ServerOptimizer,
    *,
    weighting: Weighting = by_size,
    gram: GramOf = euclidean_gram,
) -> Aggregator:
    """Estimate the mean change, then take the server optimiser's step along it.

    ``gram`` says in which geometry updates are compared; it is asked where the estimate needs it.
    FederationError for updates that have no estimate, such as too few.
    """

    def apply(
        memory: AggState, state: AdapterState, updates: Sequence[ClientUpdate]
    ) -> tuple[AggState, AdapterState]:
        ordered = by_site(updates)
        inner = gram(ordered) if estimate.uses_gram else np.zeros((0, 0))
        return optimizer.apply(memory, state, estimate.combine(ordered, weighting(ordered), inner))

    return Aggregator(optimizer.init, apply)


def make_aggregator(config: AggregationConfig, *, gram: GramOf = euclidean_gram) -> Aggregator:
    """The aggregator that a configuration asks for."""
    return compose(
        make_estimate(config),
        make_optimizer(config),
        weighting=WEIGHTINGS[config.weighting],
        gram=gram,
    )


def make_estimate(config: AggregationConfig) -> Estimate:
    """The estimate alone."""
    if config.estimate == "mean":
        return mean()
    if config.estimate == "norm_clipping":
        return robust.norm_clipping(faulty=config.faulty_sites, bound=config.norm_bound)
    return ROBUST[config.estimate](faulty=config.faulty_sites)


def check_estimate(config: AggregationConfig, updates: int) -> None:
    """ConfigError where a round's sites are too few for the estimate, even if all answer."""
    faulty = config.faulty_sites or 0
    least = make_estimate(config).least(faulty)
    if updates < least:
        raise ConfigError(
            f"the sites of a round are too few for aggregation.estimate = {config.estimate!r}",
            given=f"{updates} sites, {faulty} of them assumed to be faulty",
            expected=f"at least {least} sites",
            remedy="set a smaller aggregation.faulty_sites, or another aggregation.estimate",
        )


def make_optimizer(config: AggregationConfig) -> ServerOptimizer:
    """The server's optimiser alone, for a mean that is not an ``Estimate`` of updates as such."""
    rate = config.learning_rate
    match config.optimizer:
        case "sgd":
            return optimizers.sgd(rate)
        case "momentum":
            return optimizers.momentum(rate, beta=config.momentum)
        case "adam":
            return optimizers.adam(rate)
        case "yogi":
            return optimizers.yogi(rate)
        case "adagrad":
            return optimizers.adagrad(rate)
