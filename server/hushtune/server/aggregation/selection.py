"""Estimates that compare whole updates: by the Gram matrix alone, whatever geometry it is of.

Ties are broken by the sites' names. Sums over a site's distances are numpy's own, not those of a
product of matrices, whose bits depend on the number of threads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation.estimates import (
    Estimate,
    Gram,
    by_shares,
    by_site,
    normalised,
)
from hushtune.server.aggregation.robust import (
    assumed,
    coordinatewise,
    majority,
    middle,
    plain_mean,
)

SMOOTHING = 1e-6
"""Below this distance an update pulls no harder: nu of algorithm 1 in 1912.13445."""
MOST_STEPS = 1000
"""Steps of Weiszfeld's algorithm at most; each is a few sums over the sites' distances."""


def least_of_krum(faulty: int) -> int:
    """2f + 3 (Blanchard et al. 1703.02757, proposition 4.2)."""
    return 2 * faulty + 3


def least_of_bulyan(faulty: int) -> int:
    """4f + 3 (El Mhamdi et al. 1802.07927)."""
    return 4 * faulty + 3


def squared_distances(gram: Gram) -> NDArray[np.float64]:
    """``||d_k - d_l||^2``, (n, n), from the inner products; 0 to itself, and never below 0."""
    own = np.diag(gram)
    squared = np.maximum(own[:, None] + own[None, :] - 2 * gram, 0.0)
    np.fill_diagonal(squared, 0.0)
    return squared


def krum_scores(squared: NDArray[np.float64], faulty: int) -> NDArray[np.float64]:
    """Of each update the sum of its squared distances to the n - f - 2 closest others.

    To one at least: Bulyan asks this of ever fewer updates.
    """
    closest = max(1, len(squared) - faulty - 2)
    others = np.sort(squared, axis=1)[:, 1:]  # the first is the distance to itself
    return others[:, :closest].sum(axis=1)


def krum(*, faulty: int | None = None) -> Estimate:
    """The one update whose closest others are the closest (Blanchard et al. 1703.02757)."""

    def shares(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> dict[str, float]:
        del weights
        f = assumed("krum", least_of_krum, faulty=faulty, updates=len(updates))
        best = int(np.argmin(krum_scores(squared_distances(gram), f)))
        return {update.site: float(k == best) for k, update in enumerate(by_site(updates))}

    return by_shares("krum", shares, least=least_of_krum)


def multi_krum(*, faulty: int | None = None) -> Estimate:
    """The mean of the m = n - f - 2 updates with the lowest scores of Krum (1703.02757).

    That m is the largest for which it is known to be as resilient as Krum (Damaskinos et al.,
    AggregaThor, MLSys 2019). Each of them counts once.
    """

    def shares(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> dict[str, float]:
        del weights
        f = assumed("multi_krum", least_of_krum, faulty=faulty, updates=len(updates))
        count = len(updates) - f - 2
        scores = krum_scores(squared_distances(gram), f)
        chosen = set(np.argsort(scores, kind="stable")[:count].tolist())
        return {
            update.site: 1 / count if k in chosen else 0.0
            for k, update in enumerate(by_site(updates))
        }

    return by_shares("multi_krum", shares, least=least_of_krum)


def bulyan(*, faulty: int | None = None) -> Estimate:
    """Krum's choices, and of each coordinate the mean around their median (1802.07927).

    Chosen are n - 2f updates, one after the other, each by Krum among those that are left. Of each
    coordinate the n - 4f values closest to the median count. Those that a faulty site sent are no
    further from it than a good site's, so that each coordinate lies between the good sites' ones,
    or out of their range by no more than its width.
    """

    def combine(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> AdapterState:
        del weights
        ordered = by_site(updates)
        f = assumed("bulyan", least_of_bulyan, faulty=faulty, updates=len(ordered))
        chosen = krum_again_and_again(squared_distances(gram), f)
        count = len(chosen) - 2 * f

        def around_the_median(rows: Tensor) -> Tensor:
            order = (rows - middle(rows)).abs().argsort(dim=0, stable=True)
            return plain_mean(torch.gather(rows, 0, order[:count]))

        return coordinatewise([ordered[k] for k in chosen], around_the_median)

    return Estimate(name="bulyan", combine=combine, least=least_of_bulyan, uses_gram=True)


def krum_again_and_again(squared: NDArray[np.float64], faulty: int) -> list[int]:
    """The places of the n - 2f updates that Krum chooses one after the other."""
    left, chosen = list(range(len(squared))), list[int]()
    while len(chosen) < len(squared) - 2 * faulty:
        scores = krum_scores(squared[np.ix_(left, left)], faulty)
        chosen.append(left.pop(int(np.argmin(scores))))
    return chosen


def geometric_median(*, faulty: int | None = None) -> Estimate:
    """The point whose weighted distances to all updates add up to the least (RFA, 1912.13445).

    While faulty sites have less than half of the weight, a share a, it is no further from any point
    than 2 (1 - a) / (1 - 2 a) times the largest distance of a good update from that point.
    """

    def shares(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> dict[str, float]:
        ordered = by_site(updates)
        assumed("geometric_median", majority, faulty=faulty, updates=len(ordered))
        public = normalised(ordered, weights)
        found = weiszfeld(gram, np.array([public[update.site] for update in ordered]))
        return {update.site: float(share) for update, share in zip(ordered, found, strict=True)}

    return by_shares("geometric_median", shares, least=majority)


def weiszfeld(gram: Gram, weights: NDArray[np.float64]) -> NDArray[np.float64]:
    """Shares of the updates in their geometric median, by smoothed Weiszfeld steps (1912.13445).

    ``v <- sum_k b_k d_k / sum_k b_k`` with ``b_k = w_k / max(nu, ||d_k - v||)`` from the weighted
    mean, until no share changes. For ``v = sum_k p_k d_k`` with shares that add up to 1,
    ``||d_k - v||^2 = sum_l p_l D_kl - 1/2 sum_lm p_l p_m D_lm`` with squared distances D.
    """
    squared, shares = squared_distances(gram), weights
    for _ in range(MOST_STEPS):
        reach = (squared * shares).sum(axis=1)
        spread = (shares * reach).sum() / 2
        distances = np.sqrt(np.maximum(reach - spread, 0.0))
        pull = weights / np.maximum(distances, SMOOTHING)
        before, shares = shares, pull / pull.sum()
        if np.allclose(before, shares, rtol=1e-12, atol=0.0):
            break
    return shares
