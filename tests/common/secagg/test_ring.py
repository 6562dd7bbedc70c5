"""Rounding, the ring, and masks."""

from __future__ import annotations

import os

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as some
from scipy import stats

from hushtune.common.errors import PrivacyError
from hushtune.common.secagg.ring import GRID, from_ring, mask, sensitivity, to_ring


def test_a_vector_comes_back_up_to_half_a_step_of_the_grid() -> None:
    for clip_norm in (1e-3, 0.3, 1.0, 7.0):
        values = np.random.default_rng(0).normal(size=1000) * 50 * clip_norm
        back = from_ring(to_ring(values, clip_norm=clip_norm), clip_norm=clip_norm)
        assert np.abs(back - values).max() <= 0.5 * clip_norm / GRID * (1 + 1e-4)


@given(
    size=some.integers(1, 64),
    seed=some.integers(0, 2**32 - 1),
    clip_norm=some.sampled_from([1e-3, 0.7, 1.0, 20.0]),
    scale=some.sampled_from([0.0, 1.0, 1000.0]),
)
def test_one_unit_moves_the_rounded_sum_by_no_more_than_is_accounted_for(
    size: int, seed: int, clip_norm: float, scale: float
) -> None:
    drawn = np.random.default_rng(seed)
    others = drawn.normal(size=size) * scale * clip_norm
    one = drawn.normal(size=size)
    one *= clip_norm / np.linalg.norm(one)
    with_it = to_ring(others + one, clip_norm=clip_norm)
    without = to_ring(others, clip_norm=clip_norm)
    moved = np.linalg.norm((with_it - without).view(np.int64).astype(float))
    assert moved <= sensitivity(size) * (1 + 1e-6)


def test_rounding_can_add_to_what_a_unit_moves_so_it_is_accounted_for() -> None:
    # Half a step more in each of a million values: the bound without rounding is passed.
    size = 1_000_000
    one = np.full(size, 1.0 / np.sqrt(size))
    base = np.full(size, 0.5 / GRID) - (one - np.rint(one * GRID) / GRID)
    moved = (to_ring(base + one, clip_norm=1.0) - to_ring(base, clip_norm=1.0)).view(np.int64)
    assert np.linalg.norm(moved.astype(float)) <= sensitivity(size)
    assert sensitivity(size) >= sensitivity(0) + 999
    # Sums of 65,000 units in float64, whatever is in them, come on top of the clip norm itself.
    assert sensitivity(0) >= GRID * (1 + 2.0**-52 * 65_000**2)


def test_the_largest_promised_sum_does_not_wrap_around() -> None:
    # A billion units that all pull the same way, and noise of a million clip norms.
    total = sum(int(to_ring(np.array([5e8]), clip_norm=1.0)[0]) for _ in range(2))
    noise = 40 * 1_000_000 * GRID
    assert total + noise < 2**63
    values = to_ring(np.array([1e9]), clip_norm=1.0) + np.array([noise], np.uint64)
    assert from_ring(values, clip_norm=1.0)[0] == pytest.approx(1e9 + 4e7)


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_what_is_not_finite_is_refused(bad: float) -> None:
    with pytest.raises(PrivacyError, match="not finite"):
        to_ring(np.array([0.0, bad]), clip_norm=1.0)


def test_masks_are_uniform_and_of_their_seed_alone() -> None:
    seed = os.urandom(32)
    drawn = mask(seed, 100_000)
    assert np.array_equal(drawn, mask(seed, 100_000))
    assert np.array_equal(drawn[:10], mask(seed, 10))
    counts = np.bincount(np.frombuffer(drawn.tobytes(), np.uint8), minlength=256)
    assert stats.chisquare(counts).pvalue > 1e-6
    other = mask(os.urandom(32), 100_000)
    assert (drawn == other).sum() == 0
