"""Discrete Gaussian noise: whole numbers k with chance proportional to exp(-k^2 / (2 std^2)).

Canonne, Kamath, Steinke 2004.00010: algorithm 3, by rejection from the discrete Laplace
distribution of algorithm 2. As there, all that is drawn at large scale is a whole number from whole
random bits, so every number can come and its low bits are uniform; what is left to float64, where
the paper has exact fractions, is the chance with which a draw is accepted (``_bernoulli_exp``).

For whole shifts its Renyi divergences of whole order, with Poisson sampling too, equal those of the
continuous Gaussian; a sum of shares of standard deviation s is a discrete Gaussian up to a factor
``exp(+- d tau)`` of each chance with ``tau = 10 sum_k exp(-2 pi^2 s^2 k / (k + 1))`` (Kairouz et
al. 2102.06387, theorem 1), which is below 1e-100 for the shares used here. What is left is bounded
by ``epsilon_of_the_grid``.
"""

from __future__ import annotations

import math
from decimal import Decimal, localcontext

import numpy as np
from numpy.typing import NDArray

from hushtune.common.errors import PrivacyError
from hushtune.common.privacy.noise import NoiseSource

Words = NDArray[np.uint64]

LEAST_STD, MOST_STD = 1e-3, 2.0**48
"""Of a share of noise, in steps of the grid. Whole numbers of twelve deviations, and what is added
to them, stay below 2^53, where float64 still has each of them."""
_TAIL = 70.0
"""What is farther out than it takes exp(-70) = 4e-31 to come to, no run ever draws."""
_AT_A_TIME = 8


def _thresholds() -> Words:
    """``exp(-k)`` for k = 1 to 8 in units of 2^-64, rounded: off by less than 1e-16 of each."""
    with localcontext() as context:
        context.prec = 60
        exact = [Decimal(-k).exp() * 2**64 for k in range(1, _AT_A_TIME + 1)]
        return np.array([int(value.to_integral_value()) for value in exact], np.uint64)


_THRESHOLDS = _thresholds()


def discrete_gaussian(source: NoiseSource, size: int, *, std: float) -> NDArray[np.int64]:
    """``size`` independent draws; PrivacyError for a scale that cannot be had."""
    if not LEAST_STD <= std <= MOST_STD:
        raise PrivacyError(
            "discrete noise has no usable scale",
            given=f"std = {std:g}",
            expected=f"{LEAST_STD:g} to {MOST_STD:g}",
        )
    scale = math.floor(std) + 1
    found = np.empty(size, np.int64)
    filled = 0
    while filled < size:
        # 0.63 of the draws pass the first test, and about 0.76 of those the last.
        distance, negative = _discrete_laplace(source, max(64, int(2.2 * (size - filled))), scale)
        away = distance.astype(np.float64) - std * std / scale
        accepted = _bernoulli_exp(source, away * away / (2.0 * std * std))
        kept = np.where(negative, -distance, distance)[accepted][: size - filled]
        found[filled : filled + kept.size] = kept
        filled += kept.size
    return found


def _discrete_laplace(
    source: NoiseSource, tries: int, scale: int
) -> tuple[NDArray[np.int64], NDArray[np.bool_]]:
    """Distances from zero and signs of ``tries`` draws, less those that are rejected: numbers with
    chance proportional to ``exp(-|k| / scale)``. Algorithm 2, with ``s = 1`` and ``t = scale``."""
    low = _below(source, tries, scale)
    low = low[_bernoulli_exp(source, low / scale)]
    distance = low + scale * _geometric(source, low.size)
    negative = (source.words(low.size) & np.uint64(1)).astype(bool)
    once = ~(negative & (distance == 0))  # else zero would come twice as often
    return distance[once], negative[once]


def _below(source: NoiseSource, size: int, scale: int) -> NDArray[np.int64]:
    """Uniform whole numbers from 0 to ``scale - 1``, each exactly as likely: bits of 64, drawn
    again where they are ``scale`` or more."""
    bits = (scale - 1).bit_length()
    if bits == 0:
        return np.zeros(size, np.int64)
    found = source.words(size) >> np.uint64(64 - bits)
    while (beyond := np.flatnonzero(found >= np.uint64(scale))).size:
        found[beyond] = source.words(beyond.size) >> np.uint64(64 - bits)
    return found.astype(np.int64)


def _geometric(source: NoiseSource, size: int) -> NDArray[np.int64]:
    """Whole numbers of at least k with chance ``exp(-k)``: how often in a row something comes
    whose chance is ``exp(-1)``. Eight at most from one word, and anew from another after eight."""
    found = np.zeros(size, np.int64)
    going = np.arange(size)
    while going.size:
        words = source.words(going.size)
        more = np.zeros(going.size, np.int64)
        for threshold in _THRESHOLDS:
            more += words < threshold
        found[going] += more
        going = going[more == _AT_A_TIME]
    return found


def _bernoulli_exp(source: NoiseSource, exponent: NDArray[np.float64]) -> NDArray[np.bool_]:
    """True with chance ``exp(-exponent)``, for each exponent of 0 or more (algorithm 1).

    Of its whole part as many events of chance ``exp(-1)`` have to come in a row, and of what is
    left one more, whose chance, between 1/e and 1, is compared as a whole number of 2^-64 with 64
    random bits. So a chance of any size is off by a factor of at most ``exp(+- 4 x 2^-53)`` by
    the exponential and this comparison, and by what the exponent itself is off.
    """
    whole = np.floor(exponent)
    chance = np.exp(whole - exponent)
    words = source.words(exponent.size)
    # A chance of 1 is not among 64 bits: 2^64 - 2^11 stands for it, 2^-53 less.
    passed = words < np.minimum(chance * 2.0**64, 2.0**64 - 2.0**11).astype(np.uint64)
    far = np.flatnonzero(passed & (whole > 0))
    passed[far] = _geometric(source, far.size) >= whole[far]
    return passed


def epsilon_of_the_grid(*, num_values: int, std: float, steps: int, shares: int = 1) -> float:
    """How much epsilon rises, at most, since noise is drawn by a machine, in whole numbers.

    ``num_values`` values, each with the sum of ``shares`` draws that make up a noise of standard
    deviation ``std`` in steps of the grid, ``steps`` times. For a value whose noise is z deviations
    from zero, a chance is off by a factor of at most

    - ``exp((z^2 + 1) / (24 std^2))``: a discrete Gaussian is not quite a continuous one rounded, of
      which rounding is post-processing;
    - ``exp(2^-53 (48 + 8 |z| + 4 z^2))`` for each share, z being its own, by float64: of the
      exponent of its last test, ``(|z| - 1)^2 / 2``, each operation is off by half a unit in the
      last place, and of each test's chance the exponential by four; rejection scales all chances by
      the mean of that.

    Over all d draws the sum of z^2 is below ``d + 2 sqrt(70 d) + 140`` but with a chance of
    ``exp(-70)`` (Laurent and Massart, Annals of Statistics 28, 2000). Once in each direction.
    """
    of_grid = (_squares(num_values) + num_values) / (24.0 * std * std)
    draws = num_values * shares
    widths = math.sqrt(draws * _squares(draws))
    of_float = 2.0**-53 * (48.0 * draws + 8.0 * widths + 4.0 * _squares(draws))
    return 2.0 * steps * (of_grid + of_float)


def _squares(draws: int) -> float:
    return draws + 2.0 * math.sqrt(_TAIL * draws) + 2.0 * _TAIL
