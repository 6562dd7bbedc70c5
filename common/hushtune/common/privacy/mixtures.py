"""The privacy loss of a mixture of Gaussians, to the bit as dp-accounting finds it, and sooner.

The library inverts the loss by a search that calls itself for each half of each interval, some
hundred milliseconds for every statement about a group. Here each search of many is a place of one
array. All else, the pessimistic rounding above all, is the library's own.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution

_Numbers = NDArray[np.float64]


def mixture_distribution(
    *, sigma: float, sensitivities: Sequence[float], chances: Sequence[float], interval: float
) -> PrivacyLossDistribution:
    """What ``from_mixture_gaussian_mechanism`` gives: Gaussian noise of deviation ``sigma`` on one
    of ``sensitivities``, each drawn with its chance, on a grid of width ``interval``."""
    from dp_accounting.pld import privacy_loss_distribution as distributions
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType

    of_one = distributions._create_pld_pmf_from_monotone_privacy_loss  # pyright: ignore[reportPrivateUsage]
    remove, add = (
        of_one(
            _loss_class()(sigma, sensitivities, chances, adjacency_type=adjacency),
            pessimistic_estimate=True,
            value_discretization_interval=interval,
            use_connect_dots=True,
        )
        for adjacency in (AdjacencyType.REMOVE, AdjacencyType.ADD)
    )
    return distributions.PrivacyLossDistribution(remove, add)


@cache
def _loss_class() -> type[Any]:
    from dp_accounting.pld.privacy_loss_mechanism import AdjacencyType, MixtureGaussianPrivacyLoss

    class MixtureLoss(MixtureGaussianPrivacyLoss):
        def _inverse_privacy_losses_with_range(
            self, privacy_losses: _Numbers, bounds: tuple[float, float], precision: float = 1e-6
        ) -> _Numbers:
            """For each loss the smallest multiple of ``precision`` where it is at most that."""
            low = np.full_like(privacy_losses, bounds[0])
            high = np.full_like(privacy_losses, bounds[1])
            wide = high - low > precision
            while wide.any():
                middle = (low + high) / 2
                above = privacy_losses < self._at(middle)
                low = np.where(wide & above, middle, low)
                high = np.where(wide & ~above, middle, high)
                wide = high - low > precision
            return np.floor(high / precision) * precision

        def _at(self, places: _Numbers) -> _Numbers:
            """The privacy loss at each place."""
            moved = self.sensitivities * places[:, None] / self._variance
            constants = self._precompute_privacy_loss_constants
            if self.adjacency_type == AdjacencyType.ADD:
                return -np.logaddexp.reduce(constants + moved, axis=1)
            return np.logaddexp.reduce(constants - moved, axis=1)

    return MixtureLoss
