"""Estimates of the sites' mean change, from one round's updates.

Floating-point sums depend on their order, so sites are summed by name, never by arrival, and in
float64.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import FederationError
from hushtune.common.messages import ClientUpdate

Weighting = Callable[[Sequence[ClientUpdate]], Mapping[str, float]]
Estimate = Callable[[Sequence[ClientUpdate]], AdapterState]


def by_size(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """Weight of each site: its declared public number of examples (McMahan et al. 1602.05629)."""
    return {update.site: float(update.num_examples) for update in updates}


def uniform(updates: Sequence[ClientUpdate]) -> dict[str, float]:
    """The same weight for each site."""
    return {update.site: 1.0 for update in updates}


def weighted_mean(updates: Sequence[ClientUpdate], weights: Mapping[str, float]) -> AdapterState:
    """``sum_k p_k delta_k`` with ``p_k = weights[k] / sum of the weights of these sites``.

    Summed in float64 in the order of the sites' names: the same bits for any order of ``updates``.
    Raises FederationError for no updates, a site that comes twice, updates over different tensors,
    and weights that are missing, negative, not finite, or all zero.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    shares = _shares([update.site for update in ordered], weights)
    first = ordered[0].delta
    for update in ordered[1:]:
        if _layout(update.delta) != _layout(first) or update.delta.spec != first.spec:
            raise FederationError(
                "updates over different tensors have no mean",
                given=f"sites {ordered[0].site} and {update.site}",
            )

    def mean(key: str) -> Tensor:
        total = torch.zeros_like(first.tensors[key], dtype=torch.float64)
        for update, share in zip(ordered, shares, strict=True):
            total += share * update.delta.tensors[key].double()
        return total.float()

    return AdapterState(first.spec, {key: mean(key) for key in first.keys})


def _layout(state: AdapterState) -> list[tuple[str, torch.Size]]:
    return [(key, tensor.shape) for key, tensor in state.tensors.items()]


def _shares(sites: Sequence[str], weights: Mapping[str, float]) -> list[float]:
    if not sites:
        raise FederationError("no updates have no mean")
    twice = next((name for name, after in itertools.pairwise(sites) if name == after), None)
    if twice is not None:
        raise FederationError("a site counts twice in one round", given=twice)
    for site in sites:
        weight = weights.get(site)
        if weight is None or not math.isfinite(weight) or weight < 0:
            raise FederationError(
                f"the weight of site {site} cannot be used",
                given="none" if weight is None else str(weight),
                expected="a finite number, 0 or more",
            )
    total = sum(weights[site] for site in sites)
    if not 0 < total < math.inf:
        raise FederationError("the weights of a round's sites add up to nothing", given=str(total))
    return [weights[site] / total for site in sites]
