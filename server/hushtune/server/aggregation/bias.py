"""How far a rule's average is from the average of the sites' models."""

from __future__ import annotations

from collections.abc import Sequence

from hushtune.common.adapter import AdapterState
from hushtune.common.config import AggregationConfig, RunConfig
from hushtune.common.lora_rules import RULES
from hushtune.common.low_rank import Product, norm, product, rough_norm, total
from hushtune.common.messages import ClientUpdate
from hushtune.common.privacy.plan import Trust
from hushtune.server.aggregation.aggregator import WEIGHTINGS, make_aggregator
from hushtune.server.aggregation.estimates import normalised
from hushtune.server.aggregation.lora_rules import (
    SERVER_RULES,
    Trained,
    scaled_product,
    trained,
    trains_factors,
)

_MOST_EXACT = 512
"""The exact norm takes time in the square of the ranks' sum."""


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
    server = SERVER_RULES[rule]
    sites = Trained(tuple(trained(server, before, u) for u in updates), tuple(shares))
    found = dict[str, float]()
    for module in before.spec.targets:
        target = sites.mean_product(module)
        measure = norm if target.rank <= _MOST_EXACT else rough_norm
        whole = measure(target)
        got = [_negative(scaled_product(after, module)), *_base(before, module)]
        got += [_negative(change) for change in _base(after, module)]
        found[module] = measure(total([target, *got])) / whole if whole else 0.0
    return found


def measured_bias(
    config: RunConfig, before: AdapterState, updates: Sequence[ClientUpdate]
) -> dict[str, float] | None:
    """The bias of a round by module; None where it says nothing, or where the server may not tell.

    What it says is a function of single updates, so it is for those that carry their own noise.
    Of rules of gradients, and of factors that stay at the sites, there is no mean product.
    """
    aggregation, rule = config.aggregation, RULES[config.aggregation.rule]
    told = config.privacy.trust in (Trust.SITE, Trust.OFF)
    if not told or rule.gradient or rule.kept or not updates or not trains_factors(updates[0]):
        return None
    ordered = sorted(updates, key=lambda update: update.site)
    weights = WEIGHTINGS[aggregation.weighting](ordered)
    shares = normalised(ordered, weights)
    plain = AggregationConfig(rule=aggregation.rule, weighting=aggregation.weighting)
    average = make_aggregator(plain, seed=config.seed)
    _, after = average.apply(average.init(before), before, ordered)
    return aggregation_bias(
        aggregation.rule, before, ordered, [shares[u.site] for u in ordered], after
    )


def _base(state: AdapterState, module: str) -> list[Product]:
    change = state.base_change(module)
    return [] if change is None else [product(change[1], change[0])]


def _negative(matrix: Product) -> Product:
    return Product(-matrix.left, matrix.right)
