"""Estimates that stay near the good sites' changes while some sites send anything at all.

These look at each coordinate by itself, or at each update's norm; those that compare whole updates
are in :mod:`.selection`. Each site counts once, whatever its size, unless something else is said:
the guarantees are about how many sites are faulty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import FederationError
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation.estimates import (
    Estimate,
    Gram,
    by_site,
    euclidean_gram,
    normalised,
)


def majority(faulty: int) -> int:
    """Updates of which the good ones are more than the faulty ones: 2f + 1."""
    return 2 * faulty + 1


def assumed(name: str, least: Callable[[int], int], *, faulty: int | None, updates: int) -> int:
    """The number of faulty sites that an estimate of so many updates guards against.

    None stands for the most that these updates allow. FederationError where they are too few.
    """
    if updates < least(faulty or 0):
        raise FederationError(
            f"the estimate {name} needs more updates than came in this round",
            given=f"{updates} updates, {faulty or 0} of them assumed to be faulty",
            expected=f"at least {least(faulty or 0)}",
            remedy="run again with --resume once more sites answer; or begin anew with a smaller "
            "aggregation.faulty_sites or another aggregation.estimate",
        )
    if faulty is not None:
        return faulty
    most = 0
    while least(most + 1) <= updates:
        most += 1
    return most


def coordinate_median(*, faulty: int | None = None) -> Estimate:
    """The median of each coordinate (Yin et al. 1803.01498, definition 1).

    Of an even number of updates the mean of the two in the middle. While less than half of the
    sites are faulty, each coordinate lies between two good sites' ones.
    """

    def combine(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> AdapterState:
        del weights, gram
        assumed("median", majority, faulty=faulty, updates=len(updates))
        return coordinatewise(updates, middle)

    return Estimate(name="median", combine=combine, least=majority)


def trimmed_mean(*, faulty: int | None = None) -> Estimate:
    """Of each coordinate the mean without the f largest and the f smallest values (1803.01498).

    With ``faulty`` None as many are left out as can be, which leaves the median.
    """

    def combine(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> AdapterState:
        del weights, gram
        cut = assumed("trimmed_mean", majority, faulty=faulty, updates=len(updates))
        return coordinatewise(
            updates, lambda rows: plain_mean(rows.sort(dim=0).values[cut : len(rows) - cut])
        )

    return Estimate(name="trimmed_mean", combine=combine, least=majority)


def norm_clipping(*, faulty: int | None = None, bound: float | None = None) -> Estimate:
    """The weighted mean of updates that are scaled to norm at most ``bound`` (1911.07963).

    ``sum_k p_k min(1, bound / ||delta_k||) delta_k``, in the Euclidean norm of what is sent: that
    is what a faulty site can move the sum by. Without a bound it is the median of the round's
    norms, of an even number the smaller of the two in the middle, which is a good site's norm or
    below one while no more than half of the sites are faulty. No direction is left out, so that
    the estimate is bounded and not near the good ones.
    """

    def combine(
        updates: Sequence[ClientUpdate], weights: Mapping[str, float], gram: Gram
    ) -> AdapterState:
        del gram
        ordered = by_site(updates)
        assumed("norm_clipping", majority, faulty=faulty, updates=len(ordered))
        shares = normalised(ordered, weights)
        norms = {u.site: math.sqrt(float(euclidean_gram([u])[0, 0])) for u in ordered}
        most = sorted(norms.values())[(len(norms) - 1) // 2] if bound is None else bound
        first = ordered[0].delta

        def joined(key: str) -> Tensor:
            total = torch.zeros_like(first.tensors[key], dtype=torch.float64)
            for update in ordered:
                site = update.site
                factor = 1.0 if norms[site] <= most else most / norms[site]
                total += shares[site] * factor * update.delta.tensors[key].double()
            return total.float()

        return AdapterState(first.spec, {key: joined(key) for key in first.keys})

    return Estimate(name="norm_clipping", combine=combine, least=majority)


def coordinatewise(
    updates: Sequence[ClientUpdate], function: Callable[[Tensor], Tensor]
) -> AdapterState:
    """``function`` of each tensor's (n, ...) float64 values, of n sites by name."""
    ordered = by_site(updates)
    first = ordered[0].delta
    tensors = {
        key: function(torch.stack([u.delta.tensors[key].double() for u in ordered])).float()
        for key in first.keys
    }
    return AdapterState(first.spec, tensors)


def middle(rows: Tensor) -> Tensor:
    """The median over the first of a tensor's dimensions; of two in the middle their mean."""
    values, count = rows.sort(dim=0).values, len(rows)
    return (values[(count - 1) // 2] + values[count // 2]) / 2


def plain_mean(rows: Tensor) -> Tensor:
    """The mean over the first dimension, summed in its order."""
    total = torch.zeros_like(rows[0])
    for row in rows:
        total += row
    return total / len(rows)
