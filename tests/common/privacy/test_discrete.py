"""Noise in whole numbers."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import stats

from hushtune.common.errors import PrivacyError
from hushtune.common.privacy.discrete import discrete_gaussian, epsilon_of_the_grid
from hushtune.common.privacy.noise import NoiseSource

NUM = 200_000


def chances(std: float) -> tuple[np.ndarray, np.ndarray]:
    """The numbers within six deviations and the chance of each."""
    most = math.ceil(6 * std)
    numbers = np.arange(-most, most + 1)
    weights = np.exp(-(numbers**2) / (2 * std**2))
    return numbers, weights / weights.sum()


def fits(drawn: np.ndarray, std: float) -> float:
    """The p-value of draws under a discrete Gaussian, rare numbers at both ends taken together."""
    numbers, chance = chances(std)
    often = chance * len(drawn) >= 20
    inside = numbers[often]
    low, high = inside.min(), inside.max()
    cut = np.clip(drawn, low - 1, high + 1)
    found = np.array([(cut == number).sum() for number in range(low - 1, high + 2)])
    tails = [chance[numbers < low].sum(), chance[numbers > high].sum()]
    expected = np.array([tails[0], *chance[often], tails[1]])
    expected = np.maximum(expected, 1e-12)
    return float(stats.chisquare(found, expected / expected.sum() * len(drawn)).pvalue)


@pytest.mark.parametrize("std", [0.4, 0.7, 1.0, 3.0, 20.5])
def test_draws_have_the_discrete_gaussians_chances_and_no_other_scales(std: float) -> None:
    drawn = discrete_gaussian(NoiseSource(), NUM, std=std)
    assert fits(drawn, std) > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert fits(drawn, std * wrong) < 1e-6


@pytest.mark.parametrize("std", [1000.0, 2.0**32, 1.7 * 2.0**40])
def test_at_large_scales_it_is_a_gaussian_of_that_deviation(std: float) -> None:
    drawn = discrete_gaussian(NoiseSource(), NUM, std=std) / std
    assert stats.kstest(drawn, "norm").pvalue > 1e-6
    for wrong in (2 / 3, 3 / 2):
        assert stats.kstest(drawn * wrong, "norm").pvalue < 1e-6


def test_a_sum_of_shares_is_a_discrete_gaussian_of_the_summed_variance() -> None:
    shares = sum(discrete_gaussian(NoiseSource(), NUM, std=4.0) for _ in range(6))
    assert fits(np.asarray(shares), 4.0 * math.sqrt(6)) > 1e-6
    assert fits(np.asarray(shares), 4.0 * math.sqrt(5)) < 1e-6


def test_no_two_draws_repeat_and_a_seeded_source_says_what_it_is() -> None:
    first = discrete_gaussian(NoiseSource(), 100, std=1e9)
    assert not np.array_equal(first, discrete_gaussian(NoiseSource(), 100, std=1e9))
    one, same = (discrete_gaussian(NoiseSource.insecure(3), 100, std=1e9) for _ in range(2))
    assert np.array_equal(one, same)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 2.0**60])
def test_a_scale_that_cannot_be_had_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="no usable scale"):
        discrete_gaussian(NoiseSource(), 10, std=std)


def test_the_bound_of_the_grid_holds_where_it_can_be_counted() -> None:
    # Each chance of the discrete Gaussian against that of the rounded continuous one.
    std = 30.0
    numbers = np.arange(-int(12.5 * std), int(12.5 * std) + 1)
    weights = np.exp(-(numbers**2) / (2 * std**2))
    discrete = np.log(weights / weights.sum())
    rounded = np.log(
        np.where(
            numbers > 0,
            stats.norm.sf((numbers - 0.5) / std) - stats.norm.sf((numbers + 0.5) / std),
            stats.norm.cdf((numbers + 0.5) / std) - stats.norm.cdf((numbers - 0.5) / std),
        )
    )
    worst = np.abs(discrete - rounded).max()
    bound = epsilon_of_the_grid(num_values=1, std=std, steps=1)
    assert 0.3 * bound < 2 * worst <= bound


def test_at_the_shares_that_are_used_the_grid_costs_nothing_that_shows() -> None:
    # A million values, ten thousand steps, a noise multiplier of a tenth.
    assert epsilon_of_the_grid(num_values=10**6, std=0.1 * 2**32, steps=10_000) < 1e-5
