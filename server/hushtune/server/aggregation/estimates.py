"""Estimates of the sites' mean change: what one is, the distances it may use, and the mean itself.

Floating-point sums depend on their order, so sites are summed by name, never by arrival, and in
float64. Distances come from a Gram matrix alone, so that a rule can bring the geometry in which its
updates are to be compared.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import FederationError
from hushtune.common.messages import ClientUpdate

Weighting = Callable[[Sequence[ClientUpdate]], Mapping[str, float]]
Gram = NDArray[np.float64]
"""Inner products of the updates, (n, n), in the order of the sites' names."""
GramOf = Callable[[Sequence[ClientUpdate]], Gram]
Shares = Callable[[Sequence[ClientUpdate], Mapping[str, float], Gram], dict[str, float]]
Combine = Callable[[Sequence[ClientUpdate], Mapping[str, float], Gram], AdapterState]


def least_of_any(faulty: int) -> int:
    """One update is enough, since no faulty site is guarded against."""
    del faulty
    return 1


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """An estimate of the sites' mean change.

    ``combine(updates, weights, gram)`` is the estimate itself, from the updates sorted by site, the
    public weight of each and the Gram matrix in the same order (of size 0 where ``uses_gram`` is
    false). ``shares``, of the same arguments, is there where whole updates are weighed: the share
    of each site, not negative, adding up to 1. ``least(f)``: updates that are needed where ``f`` of
    them may be anything. Both functions raise FederationError for fewer.
    """

    name: str
    combine: Combine
    shares: Shares | None = None
    least: Callable[[int], int] = least_of_any
    uses_gram: bool = False


def mean() -> Estimate:
    """The weighted mean (McMahan et al. 1602.05629), which guards against no faulty site."""

    def shares(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> dict[str, float]:
        del gram
        return normalised(updates, weights)

    return by_shares("mean", shares, uses_gram=False)


def by_shares(
    name: str,
    shares: Shares,
    *,
    least: Callable[[int], int] = least_of_any,
    uses_gram: bool = True,
) -> Estimate:
    """The estimate ``sum_k p_k delta_k`` of an estimate's shares ``p``."""

    def combine(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> AdapterState:
        return weighted_mean(updates, shares(updates, weights, gram))

    return Estimate(name=name, shares=shares, combine=combine, least=least, uses_gram=uses_gram)


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
    ordered = by_site(updates)
    shares = normalised(ordered, weights)
    first = ordered[0].delta

    def joined(key: str) -> Tensor:
        total = torch.zeros_like(first.tensors[key], dtype=torch.float64)
        for update in ordered:
            total += shares[update.site] * update.delta.tensors[key].double()
        return total.float()

    return AdapterState(first.spec, {key: joined(key) for key in first.keys})


def by_site(updates: Sequence[ClientUpdate]) -> list[ClientUpdate]:
    """The updates in the order of the sites' names.

    Raises FederationError for no updates, a site that comes twice, and updates over different
    tensors.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    if not ordered:
        raise FederationError("no updates have no mean")
    for one, other in itertools.pairwise(ordered):
        if one.site == other.site:
            raise FederationError("a site counts twice in one round", given=one.site)
    first = ordered[0].delta
    for update in ordered[1:]:
        if _layout(update.delta) != _layout(first) or update.delta.spec != first.spec:
            raise FederationError(
                "updates over different tensors have no mean",
                given=f"sites {ordered[0].site} and {update.site}",
            )
    return ordered


def normalised(updates: Sequence[ClientUpdate], weights: Mapping[str, float]) -> dict[str, float]:
    """The share of each site in the sum of these sites' weights; FederationError without one."""
    sites = [update.site for update in updates]
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
    return {site: weights[site] / total for site in sites}


def euclidean_gram(updates: Sequence[ClientUpdate]) -> Gram:
    """Inner products of the updates over all their tensors, (n, n), in float64, sorted by site.

    Summed by numpy's own loops: a product of matrices gives other bits with other numbers of
    threads.
    """
    ordered = by_site(updates)
    gram = np.zeros((len(ordered), len(ordered)))
    for key in ordered[0].delta.keys:
        rows = [update.delta.tensors[key].double().numpy().ravel() for update in ordered]
        for place, row in enumerate(rows):
            for other in range(place, len(rows)):
                gram[place, other] += (row * rows[other]).sum()
    return np.triu(gram) + np.triu(gram, 1).T


def _layout(state: AdapterState) -> list[tuple[str, torch.Size]]:
    return [(key, tensor.shape) for key, tensor in state.tensors.items()]
