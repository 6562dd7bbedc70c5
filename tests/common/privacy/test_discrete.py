"""Noise in whole numbers."""

# pyright: reportPrivateUsage=false

from __future__ import annotations

import math
from typing import cast

import numpy as np
import pytest
from scipy import stats

from hushtune.common.errors import PrivacyError
from hushtune.common.privacy import discrete
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


def test_at_the_shares_that_are_used_the_grid_costs_next_to_nothing() -> None:
    # A hundred thousand values, a thousand steps, a noise multiplier of a tenth, ten shares.
    bound = epsilon_of_the_grid(num_values=10**5, std=0.1 * 2**32, steps=1000, shares=10)
    assert 0 < bound < 2e-5
    assert bound == pytest.approx(
        1000 * epsilon_of_the_grid(num_values=10**5, std=0.1 * 2**32, steps=1, shares=10)
    )


# ------------------------------------------------------------- what it is made of ----


class Given:
    """A source whose words are given, in the order in which they are asked for."""

    def __init__(self, words: np.ndarray) -> None:
        self.left = words

    def words(self, size: int) -> np.ndarray:
        found, self.left = self.left[:size], self.left[size:]
        return found.copy()


def source(words: np.ndarray) -> NoiseSource:
    return cast(NoiseSource, Given(words))


@pytest.mark.parametrize("scale", [3, 7, 100])
def test_discrete_laplace_has_its_chances(scale: int) -> None:
    distance, negative = discrete._discrete_laplace(NoiseSource(), NUM, scale)
    drawn = np.where(negative, -distance, distance)
    numbers = np.arange(-8 * scale, 8 * scale + 1)
    weights = np.exp(-np.abs(numbers) / scale)
    expected = weights / (
        weights.sum() + 2 * np.exp(-(8 * scale + 1) / scale) / -np.expm1(-1 / scale)
    )
    often = expected * drawn.size >= 20
    found = np.array([(drawn == number).sum() for number in numbers[often]])
    rest = [drawn.size - found.sum()]
    chances = [*expected[often], 1 - expected[often].sum()]
    assert stats.chisquare([*found, *rest], np.array(chances) * drawn.size).pvalue > 1e-6


def test_events_of_chance_one_in_e_are_counted_without_end() -> None:
    found = discrete._geometric(NoiseSource(), NUM)
    counts = np.bincount(np.minimum(found, 9), minlength=10)
    chances = np.exp(-np.arange(10.0)) * -np.expm1(-1.0)
    chances[9] = np.exp(-9.0)
    assert stats.chisquare(counts, chances * NUM).pvalue > 1e-6
    # Eight from one word, and on with the next.
    words = np.array([0, 0, 2**63], np.uint64)
    assert discrete._geometric(source(words), 1).tolist() == [16]


@pytest.mark.parametrize("exponent", [0.0, 0.3, 0.999, 1.0, 2.5, 7.7])
def test_an_event_comes_with_the_chance_of_an_exponential(exponent: float) -> None:
    came = int(discrete._bernoulli_exp(NoiseSource(), np.full(NUM, exponent)).sum())
    assert stats.binomtest(came, NUM, math.exp(-exponent)).pvalue > 1e-6


@pytest.mark.parametrize("scale", [3, 3 * 2**46, 2**48, 2**48 - 1])
def test_every_number_below_a_scale_comes_as_often_as_any_other(scale: int) -> None:
    """Neighbouring random bits give neighbouring numbers, none of them twice, and none is left out:
    a product of floats would leave out some, and give others twice."""
    bits = (scale - 1).bit_length()
    numbers = scale - 1 - np.arange(min(scale, 1000), dtype=np.uint64)
    words = numbers << np.uint64(64 - bits)
    found = discrete._below(source(words), numbers.size, scale)
    assert np.array_equal(found, numbers.astype(np.int64))
    if 2**bits > scale:  # one too many is drawn again
        again = np.array([scale, 1], np.uint64) << np.uint64(64 - bits)
        assert discrete._below(source(again), 1, scale).tolist() == [1]


@pytest.mark.parametrize("std", [2.0**33, 1.7 * 2.0**40, 2.0**48])
def test_at_large_scales_low_bits_are_uniform(std: float) -> None:
    drawn = discrete_gaussian(NoiseSource(), NUM, std=std)
    assert len(np.unique(drawn)) > NUM - 100
    for bits in (1, 4, 8):
        counts = np.bincount((drawn & (2**bits - 1)).astype(int), minlength=2**bits)
        assert stats.chisquare(counts).pvalue > 1e-6
    assert stats.chisquare(np.bincount((drawn % 3).astype(int), minlength=3)).pvalue > 1e-6
