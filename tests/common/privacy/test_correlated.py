"""Correlated noise against dense matrices: its factors, its sensitivity, its error."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from hushtune.common.errors import PlanError
from hushtune.common.privacy import correlated


def strategy(band: int, rounds: int) -> np.ndarray:
    """C itself, written out."""
    dense = np.zeros((rounds, rounds))
    for row in range(rounds):
        for column in range(max(0, row - band + 1), row + 1):
            k = row - column
            dense[row, column] = math.comb(2 * k, k) / 4**k
    return dense


def test_the_whole_root_squared_is_the_matrix_of_ones() -> None:
    root = strategy(12, 12)
    assert np.allclose(root @ root, np.tril(np.ones((12, 12))))
    assert np.allclose(correlated.coefficients(12), root[:, 0])


@pytest.mark.parametrize(("rounds", "every"), [(5, 1), (6, 2), (7, 3), (8, 4), (9, 5), (6, 9)])
def test_no_pattern_of_turns_and_no_updates_move_it_further(rounds: int, every: int) -> None:
    """All patterns with rounds at least ``every`` apart, with updates that all point one way, which
    for factors that are nowhere negative is the worst, and with others."""
    random = np.random.default_rng(5)
    for band in range(1, min(every, rounds) + 1):
        factors = strategy(band, rounds)
        bound = correlated.sensitivity(band, rounds=rounds, every=every)
        worst = 0.0
        for size in range(1, rounds + 1):
            for chosen in itertools.combinations(range(rounds), size):
                if any(later - sooner < every for sooner, later in itertools.pairwise(chosen)):
                    continue
                moved = np.zeros((rounds, 3))
                moved[list(chosen), 0] = 1.0
                worst = max(worst, float(np.linalg.norm(factors @ moved)))
                moved[list(chosen)] = random.normal(size=(size, 3))
                moved /= np.maximum(1.0, np.linalg.norm(moved, axis=1, keepdims=True))
                assert np.linalg.norm(factors @ moved) <= bound * (1 + 1e-12)
        assert worst <= bound * (1 + 1e-12)
        full = rounds >= (correlated.turns(rounds, every=every) - 1) * every + band
        if full:  # else the end of the run cuts a column off
            assert worst == pytest.approx(bound)


def test_a_band_that_overlaps_is_refused() -> None:
    with pytest.raises(PlanError, match="wider"):
        correlated.sensitivity(4, rounds=12, every=3)
    with pytest.raises(PlanError, match="wider"):
        correlated.sensitivity(6, rounds=5, every=8)


def test_the_schedule_keeps_the_turns_apart_and_counts_them() -> None:
    rounds, every = 17, 5
    for place in range(12):
        taken = [n for n in range(1, rounds + 1) if correlated.turn(place, every=every, round=n)]
        assert {later - sooner for sooner, later in itertools.pairwise(taken)} == {every}
        assert len(taken) <= correlated.turns(rounds, every=every)
    assert correlated.turns(rounds, every=every) == 4


@pytest.mark.parametrize(("band", "rounds", "every"), [(1, 6, 3), (3, 10, 4), (5, 20, 5)])
def test_the_prefix_error_is_that_of_the_dense_matrices(band: int, rounds: int, every: int) -> None:
    noising = np.tril(np.ones((rounds, rounds))) @ np.linalg.inv(strategy(band, rounds))
    dense = correlated.sensitivity(band, rounds=rounds, every=every) * np.linalg.norm(
        noising, axis=1
    )
    assert np.allclose(correlated.prefix_error(band, rounds=rounds, every=every), dense)


@pytest.mark.parametrize(("rounds", "every"), [(20, 5), (40, 10), (64, 64), (100, 4)])
def test_it_beats_independent_noise_at_equal_epsilon(rounds: int, every: int) -> None:
    """The same multiplier is the same epsilon: one Gaussian event at its own sensitivity."""
    band = correlated.best_band(rounds=rounds, every=every)
    error = correlated.prefix_error(band, rounds=rounds, every=every)
    count = correlated.turns(rounds, every=every)
    alone = np.sqrt(count * np.arange(1, rounds + 1))
    assert np.allclose(correlated.prefix_error(1, rounds=rounds, every=every), alone)
    assert np.linalg.norm(error) < 0.85 * np.linalg.norm(alone)
    assert error[-1] < 0.85 * alone[-1]
    assert 1 < band <= every


def test_who_always_takes_part_has_independent_noise() -> None:
    assert correlated.best_band(rounds=30, every=1) == 1
    assert correlated.sensitivity(1, rounds=30, every=1) == pytest.approx(math.sqrt(30))
