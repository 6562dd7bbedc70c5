"""How far a rule's average is from the average of the sites' models."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Iterator, Sequence

from hushtune.common.adapter import AdapterState
from hushtune.common.config import AggregationConfig, RunConfig
from hushtune.common.config_federation import PLAIN
from hushtune.common.lora_rules import RULES
from hushtune.common.low_rank import Product, norm, probed, product, total
from hushtune.common.messages import ClientUpdate
from hushtune.common.privacy.plan import Trust
from hushtune.server.aggregation.aggregator import WEIGHTINGS, make_aggregator
from hushtune.server.aggregation.estimates import normalised
from hushtune.server.aggregation.lora_rules import (
    SERVER_RULES,
    all_trained,
    trains_factors,
)
from hushtune.server.aggregation.trained import Trained, scaled_product

_MOST_EXACT = 512
"""The exact norm takes time in the square of the ranks' sum."""
_PART = 64
"""Columns that are float64 at a time: few enough to stay in a processor's cache."""


def aggregation_bias(
    rule: str,
    before: AdapterState,
    updates: Sequence[ClientUpdate],
    shares: Sequence[float],
    after: AdapterState,
) -> dict[str, float]:
    """``|| sum_k p_k s_k B_k A_k - s B A ||_F / || sum_k p_k s_k B_k A_k ||_F`` of each module.

    ``updates`` and their ``shares`` p_k sorted by site; ``after`` is what the rule's plain average
    makes of ``before``, without a server optimiser. ``s B A`` includes what was added to the frozen
    weights since. Zero where the mean product is zero. Where the sites' ranks add up to more than
    512, both norms are rough.
    """
    sites = all_trained(SERVER_RULES[rule], before, updates, shares)
    measured = _exactly if sites.rank() <= _MOST_EXACT else _roughly
    found = dict[str, float]()
    for module in before.spec.targets:
        got = itertools.chain(
            [scaled_product(after, module, share=-1.0)],
            _base(before, module),
            _base(after, module, sign=-1.0),
        )
        lost, whole = measured(sites, module, got)
        found[module] = lost / whole if whole else 0.0
    return found


def _exactly(sites: Trained, module: str, got: Iterable[Product]) -> tuple[float, float]:
    """The norms of the mean product with ``got`` added to it, and without."""
    target = sites.mean_product(module)
    return norm(total([target, *got])), norm(target)


def _roughly(sites: Trained, module: str, got: Iterable[Product]) -> tuple[float, float]:
    """The same by ``probed``, but for a factor of both; one product at a time is float64."""
    target = probed(sites.products(module))
    return float((target + probed(got)).norm()), float(target.norm())


def measured_bias(
    config: RunConfig,
    before: AdapterState,
    updates: Sequence[ClientUpdate],
    *,
    after: AdapterState | None = None,
) -> dict[str, float] | None:
    """The bias of a round by module; None where it says nothing, or where the server may not tell.

    What it says is a function of single updates, so it is for those that carry their own noise.
    Of rules of gradients, and of factors that stay at the sites, there is no mean product.
    ``after``: what the configuration's aggregator made of ``before``, so that it is not made again
    where it is the rule's plain average.
    """
    aggregation, rule = config.aggregation, RULES[config.aggregation.rule]
    told = config.privacy.trust in (Trust.SITE, Trust.OFF)
    if not told or rule.gradient or rule.kept or not updates or not trains_factors(updates[0]):
        return None
    ordered = sorted(updates, key=lambda update: update.site)
    weights = WEIGHTINGS[aggregation.weighting](ordered)
    shares = normalised(ordered, weights)
    if after is None or not _averages_plainly(aggregation):
        plain = AggregationConfig(rule=aggregation.rule, weighting=aggregation.weighting)
        average = make_aggregator(plain, seed=config.seed)
        _, after = average.apply(average.init(before), before, ordered)
    return aggregation_bias(
        aggregation.rule, before, ordered, [shares[u.site] for u in ordered], after
    )


def _averages_plainly(config: AggregationConfig) -> bool:
    """Whether what a round makes is the rule's plain average already."""
    return config.estimate == "mean" and (config.optimizer, config.server_rate) == PLAIN


def _base(state: AdapterState, module: str, *, sign: float = 1.0) -> Iterator[Product]:
    """What was added to the frozen weight, in parts: it may be as large as all updates."""
    change = state.base_change(module)
    if change is not None:
        a, b = change
        for rows, columns in zip(a.split(_PART), b.split(_PART, dim=1), strict=True):
            yield product(columns, rows, scale=sign)
