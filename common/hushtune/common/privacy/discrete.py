"""Discrete Gaussian noise: whole numbers k with chance proportional to exp(-k^2 / (2 std^2)).

By rejection from the discrete Laplace distribution (Canonne, Kamath, Steinke 2004.00010, algorithm
3), in float64 where the paper computes with exact fractions. For whole shifts its Renyi divergences
of whole order, with Poisson sampling too, equal those of the continuous Gaussian; a sum of shares
of standard deviation s is a discrete Gaussian up to a factor ``exp(+- d tau)`` of each chance with
``tau = 10 sum_k exp(-2 pi^2 s^2 k / (k + 1))`` (Kairouz et al. 2102.06387, theorem 1), which is
below 1e-100 for the shares used here.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hushtune.common.errors import PrivacyError
from hushtune.common.privacy.noise import NoiseSource

_LEAST_STD, _MOST_STD = 1e-3, 2.0**48
_FARTHEST = 12.5
"""Deviations from zero that no noise of a run comes to, but with a chance below 1e-30 a value."""


def discrete_gaussian(source: NoiseSource, size: int, *, std: float) -> NDArray[np.int64]:
    """``size`` independent draws; PrivacyError for a scale that cannot be had."""
    if not _LEAST_STD <= std <= _MOST_STD:
        raise PrivacyError(
            "discrete noise has no usable scale",
            given=f"std = {std:g}",
            expected=f"{_LEAST_STD:g} to {_MOST_STD:g}",
        )
    scale = math.floor(std) + 1
    found = np.empty(size, np.int64)
    filled = 0
    while filled < size:
        number = max(64, int(1.6 * (size - filled)))
        draws = source.uniforms(3 * number).reshape(3, number)
        # The whole part of an exponential of mean `scale` is geometric.
        distance = np.floor(-scale * np.log(draws[0]))
        negative = draws[1] <= 0.5
        accepted = np.exp(-((distance - std**2 / scale) ** 2) / (2 * std**2)) >= draws[2]
        accepted &= ~(negative & (distance == 0))  # zero would come twice as often
        kept = np.where(negative, -distance, distance)[accepted][: size - filled]
        found[filled : filled + kept.size] = kept.astype(np.int64)
        filled += kept.size
    return found


def epsilon_of_the_grid(*, num_values: int, std: float, steps: int) -> float:
    """How much epsilon rises, at most, since noise and sums are whole numbers and not real ones.

    A discrete Gaussian of standard deviation ``std`` differs from a rounded continuous one, of
    which rounding is post-processing, by a factor of at most ``exp(z^2 / (24 std^2))`` for each of
    ``num_values`` values, ``z`` deviations from zero; once in each direction and step.
    """
    return 2.0 * steps * num_values * (_FARTHEST**2 + 1) / (24.0 * std**2)
