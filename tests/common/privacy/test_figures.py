"""Figures: no rounding makes a promise stronger, and the bounds on tests hold and are reached."""

import math
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import norm

from hushtune.common.privacy import accountant, figures
from hushtune.common.privacy.plan import DpSgdEvent, Relation

POSITIVE = st.floats(min_value=1e-12, max_value=1e9)


@given(POSITIVE)
def test_a_rounded_promise_is_never_stronger(value: float) -> None:
    exact = Decimal(value)
    assert Decimal(float(figures.upwards(value))) >= exact
    assert Decimal(figures.upwards(value)) < Decimal(repr(value)) + Decimal("1e-4")
    assert float(figures.at_most(value)) >= value >= float(figures.at_least(value))
    assert float(figures.at_most(value)) <= value * (1 + 2e-5)
    assert float(figures.at_least(value)) >= value * (1 - 2e-5)


@pytest.mark.parametrize(
    ("value", "shown"), [(2.99990001, "3.0000"), (2.9999, "2.9999"), (0.0, "0.0000"), (7, "7.0000")]
)
def test_epsilon_has_four_decimals(value: float, shown: str) -> None:
    assert figures.upwards(value) == shown


@pytest.mark.parametrize(
    ("value", "places", "shown"),
    [(0.00312, 2, "0.0032"), (1.0001e-5, 3, "1.1e-05"), (0.09, 2, "0.09"), (0.101, 2, "0.11")],
)
def test_a_small_epsilon_keeps_two_digits_and_is_rounded_up(
    value: float, places: int, shown: str
) -> None:
    assert figures.upwards(value, places=places) == shown


@given(st.floats(1e-12, 1e3), st.integers(1, 4))
def test_a_small_epsilon_is_overstated_by_a_tenth_at_most(value: float, places: int) -> None:
    shown = Decimal(figures.upwards(value, places=places))
    assert Decimal(repr(value)) <= shown <= Decimal(repr(value)) * Decimal("1.1001")


@pytest.mark.parametrize("sigma", [0.4, 1.0, 4.0])
@pytest.mark.parametrize("false", [0.001, 0.01, 0.3])
def test_no_test_of_a_gaussian_mechanism_beats_the_bound(sigma: float, false: float) -> None:
    """The best test of it is known: Dong, Roth and Su (1905.02383), G_mu with mu = 1 / sigma."""
    event = DpSgdEvent(sampling_probability=1.0, noise_multiplier=sigma, steps=1)
    best = float(norm.cdf(norm.ppf(false) + 1 / sigma))
    bounds: list[float] = []
    for delta in (10 ** (-tenths / 10) for tenths in range(2, 60, 2)):
        epsilon = accountant.epsilon([event], delta=delta, relation=Relation.ADD_OR_REMOVE_ONE)
        bounds.append(figures.most_true_positives(epsilon, delta, false_positives=false))
        reached = 2 * float(norm.cdf(0.5 / sigma)) - 1
        assert figures.most_advantage(epsilon, delta) >= reached
    assert min(bounds) >= best
    assert min(bounds) <= 1.2 * best  # and it is no idle bound: some pair comes close


@given(st.floats(0, 12), st.floats(0, 0.1))
def test_the_advantage_is_the_largest_gap_between_the_two_rates(e: float, delta: float) -> None:
    rates = [index / 4000 for index in range(4001)]
    gaps = [figures.most_true_positives(e, delta, false_positives=f) - f for f in rates]
    assert figures.most_advantage(e, delta) == pytest.approx(max(gaps), abs=3e-4 * math.exp(e / 2))
    assert figures.most_advantage(e, delta) >= max(gaps) - 1e-12


def test_no_release_helps_nobody_and_a_huge_epsilon_bounds_nothing() -> None:
    assert figures.most_true_positives(0, 0, false_positives=0.01) == pytest.approx(0.01)
    assert figures.most_advantage(0, 0) == 0
    assert figures.most_true_positives(2e5, 1e-5, false_positives=0.01) == 1
    assert figures.most_advantage(2e5, 1e-5) == 1


@pytest.mark.parametrize(
    ("rounds", "joined"),
    [([3], "3"), ([1, 2, 3], "1 to 3"), ([9, 1, 2, 7, 10], "1 to 2, 7, 9 to 10"), ([], "none")],
)
def test_runs_of_rounds_are_joined(rounds: list[int], joined: str) -> None:
    assert figures.spans(rounds) == joined


def test_one_round_is_no_rounds() -> None:
    assert figures.rounds_text(3, 3) == "round 3"
    assert figures.rounds_text(2, 4) == "rounds 2 to 4"


def test_a_number_has_no_dust() -> None:
    assert figures.number_text(0.1 * 3 * 154) == "46.2" != str(0.1 * 3 * 154)
    assert figures.number_text(12_345_678.0) == "12345678"
