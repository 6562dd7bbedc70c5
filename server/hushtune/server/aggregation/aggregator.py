"""An aggregator: from the global state and a round's updates to the next global state.

``compose(rule, estimate, optimizer)`` stands in for a class for each combination. Whatever follows
the sites' noise here is post-processing and costs no privacy.
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
    Gram,
    Weighting,
    by_site,
    by_size,
    euclidean_gram,
    mean,
    uniform,
    weighted_mean,
)
from hushtune.server.aggregation.lora_rules import (
    SERVER_RULES,
    ServerRule,
    all_trained,
    gram_of_products,
    trains_factors,
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
    rule: ServerRule = SERVER_RULES["ffa"],
    weighting: Weighting = by_size,
    seed: int = 0,
) -> Aggregator:
    """Estimate the mean change, and take the server optimiser's step along it, as a rule has it.

    Of a rule that aims at the mean of the products the estimate gives the sites' shares, and the
    optimiser moves the head alone. ``seed``: of what a rule draws anew. FederationError for updates
    that have no estimate, such as too few.
    """

    def apply(
        memory: AggState, state: AdapterState, updates: Sequence[ClientUpdate]
    ) -> tuple[AggState, AdapterState]:
        ordered = sorted(updates, key=lambda update: update.site)
        # Over the same tensors, whatever the sites' ranks; a site that comes twice is refused.
        lifted = by_site([rule.lift(state, update) for update in ordered])
        weights, gram = weighting(ordered), _gram(estimate, rule, state, ordered, lifted)
        if rule.from_products is None or not trains_factors(ordered[0]):
            change = estimate.combine(lifted, weights, gram)
            memory, state = optimizer.apply(memory, state, change)
            return memory, rule.finish(state) if trains_factors(ordered[0]) else state
        assert estimate.shares is not None
        shares = estimate.shares(lifted, weights, gram)
        # Of a site without a share nothing counts, and its columns would be sent down as zeros.
        counted = [update for update in ordered if shares[update.site] > 0]
        sites = all_trained(rule, state, counted, [shares[update.site] for update in counted])
        factors = rule.from_products(state, sites, ordered[0].round, seed)
        memory, state = optimizer.apply(memory, state, weighted_mean(lifted, shares))
        return memory, state.merge(AdapterState(state.spec, factors))

    return Aggregator(optimizer.init, apply)


def _gram(
    estimate: Estimate,
    rule: ServerRule,
    state: AdapterState,
    updates: Sequence[ClientUpdate],
    lifted: Sequence[ClientUpdate],
) -> Gram:
    """Inner products in the geometry in which the rule's updates are to be compared."""
    if not estimate.uses_gram:
        return np.zeros((0, 0))
    if rule.by_products and trains_factors(updates[0]):
        return gram_of_products(rule, state, updates)
    return euclidean_gram(lifted)


def make_aggregator(
    config: AggregationConfig, *, seed: int = 0, optimizer: ServerOptimizer | None = None
) -> Aggregator:
    """The aggregator that a configuration asks for; ``optimizer`` in place of its own."""
    return compose(
        make_estimate(config),
        make_optimizer(config) if optimizer is None else optimizer,
        rule=SERVER_RULES[config.rule],
        weighting=WEIGHTINGS[config.weighting],
        seed=seed,
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
    rate = config.server_rate
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
