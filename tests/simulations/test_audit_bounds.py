"""Lower bounds on epsilon: values found by hand, laws, and mechanisms whose epsilon is known."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from scipy import stats

from hushtune.common.privacy import accountant
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.simulations.audit.assess import assess, guesses
from hushtune.simulations.audit.bounds import (
    Curve,
    Guessed,
    apart,
    one_run,
    one_run_f,
    p_value,
    rates,
    refuted,
    two_sample,
)
from hushtune.simulations.audit.curves import Claim
from hushtune.simulations.audit.games import Seen, split_up

SIGMA, DELTA = 1.0, 1e-5
ONE_QUERY = Claim(
    ((DpSgdEvent(sampling_probability=1.0, noise_multiplier=SIGMA, steps=1),),), DELTA
)


def gaussian_scores(seed: int, count: int, *, sigma: float = SIGMA) -> Seen:
    """Canaries of one Gaussian query each: 1 where a canary is in, and noise."""
    random = np.random.default_rng(seed)
    included = random.random(count) < 0.5
    scores = included + sigma * random.standard_normal(count)
    return Seen("gradient", "each step", scores, included, independent=True)


# ------------------------------------------------------------------------------- by hand ----


def test_p_values_by_hand() -> None:
    assert p_value(Guessed(10, 10, 10), epsilon=0.0, delta=0.0) == pytest.approx(2**-10)
    # One canary, one guess, right: 1/2, and delta adds 2 m delta P[W = 0] = 2 * 0.1 * 1/2.
    assert p_value(Guessed(1, 1, 1), epsilon=0.0, delta=0.1) == pytest.approx(0.6)
    # Two right of two: 1/4 + 2 * 5 * 0.01 * max(P[W = 1], P[W < 2] / 2) = 1/4 + 0.1 * 1/2.
    assert p_value(Guessed(5, 2, 2), epsilon=0.0, delta=0.01) == pytest.approx(0.30)


def test_a_bound_of_guesses_that_are_all_right_by_hand() -> None:
    right = 0.05 ** (1 / 100)  # q^100 = 5 %
    by_hand = math.log(right / (1 - right))
    assert one_run(Guessed(100, 100, 100), delta=0.0) == pytest.approx(by_hand, abs=2e-4)


def test_the_least_false_alarms_by_hand() -> None:
    curve = Curve.at(math.log(2), 0.1)
    assert curve.least_false(0.5) == pytest.approx((0.5 - 0.1) / 2)
    assert curve.least_false(0.95) == pytest.approx(1 - 0.1 - 2 * 0.05)
    assert curve.least_false(0.1) == 0.0


def test_rates_by_hand() -> None:
    """Every fifth score chooses; of 40 others all are hits and none is an alarm."""
    found = rates(np.ones(50), np.zeros(50), better=apart)
    assert found.alarms == pytest.approx(1 - 0.025 ** (1 / 40))
    assert found.hits == pytest.approx(0.025 ** (1 / 40))
    bound = two_sample(np.ones(50), np.zeros(50), delta=0.01)
    assert bound == pytest.approx(math.log((found.hits - 0.01) / found.alarms), abs=2e-4)


def test_canaries_are_shared_out_evenly() -> None:
    assert split_up(7, 2, most=2) == [[2, 2], [2, 1]]
    assert split_up(100, 3, most=64) == [[34, 33, 33]]


# ---------------------------------------------------------------------------------- laws ----


@pytest.mark.parametrize("bound", [one_run, one_run_f])
def test_bounds_rise_with_right_guesses_and_delta_and_confidence_lower_them(bound: Any) -> None:
    by_correct = [bound(Guessed(400, 200, v), delta=1e-5) for v in range(100, 201, 10)]
    assert by_correct == sorted(by_correct)
    assert by_correct[0] == 0.0
    assert by_correct[-1] > 3.0
    some = Guessed(400, 200, 170)
    assert bound(some, delta=1e-5) > bound(some, delta=1e-3) > bound(some, delta=1e-2)
    assert bound(some, delta=1e-5, confidence=0.9) > bound(some, delta=1e-5, confidence=0.99)


def test_a_curve_that_promises_less_is_refuted_less() -> None:
    some = Guessed(400, 200, 170)
    found = [refuted(some, Curve.at(epsilon, 1e-5)) for epsilon in (0.5, 1.0, 1.2, 1.5, 2.0)]
    assert found == sorted(found, reverse=True)
    assert found[0]
    assert not found[-1]
    claim = [refuted(some, ONE_QUERY.curve(noise)) for noise in (0.5, 1.0, 2.0, 4.0, 8.0)]
    assert claim == sorted(claim)


def test_the_curve_of_a_gaussian_is_the_known_one() -> None:
    """1 - f(x) = Phi(Phi^-1(x) + 1 / sigma) (Dong et al. 1905.02383), from the safe side."""
    curve = ONE_QUERY.curve()
    for true in (0.01, 0.1, 0.5, 0.9, 0.99):
        exact = stats.norm.cdf(stats.norm.ppf(true) - 1 / SIGMA)
        assert 0.93 * exact - 1e-4 < curve.least_false(true) <= exact + 1e-4


def test_several_sites_are_held_to_what_holds_for_all() -> None:
    weak = DpSgdEvent(sampling_probability=1.0, noise_multiplier=0.5, steps=1)
    both = Claim((*ONE_QUERY.sites, (weak,)), DELTA)
    assert both.epsilon() == Claim(((weak,),), DELTA).epsilon() > ONE_QUERY.epsilon()


# ---------------------------------------------------------------------- known mechanisms ----


@pytest.mark.parametrize("epsilon", [0.5, 2.0])
def test_randomised_response_is_refuted_no_more_often_than_stated(epsilon: float) -> None:
    """It is the mechanism for which the binomial tail is exact, and a lower claim is refuted."""
    random, right = np.random.default_rng(1), 1 / (1 + math.exp(-epsilon))
    seen = [Guessed(300, 300, int(random.binomial(300, right))) for _ in range(400)]
    for refutes in (
        lambda one, claim: p_value(one, epsilon=claim, delta=0.0) <= 0.05,
        lambda one, claim: refuted(one, Curve.at(claim, 0.0)),
    ):
        assert np.mean([refutes(one, epsilon) for one in seen]) < 0.08
        assert np.mean([refutes(one, 0.4 * epsilon) for one in seen]) > 0.5


def test_no_bound_of_a_gaussian_query_is_above_its_exact_epsilon() -> None:
    exact = ONE_QUERY.epsilon()
    events = ONE_QUERY.sites[0]
    assert exact == accountant.epsilon(events, delta=DELTA, relation=Relation.ADD_OR_REMOVE_ONE)
    for seed in range(6):
        rows = assess(gaussian_scores(seed, 4000), ONE_QUERY, confidence=0.999)
        assert not any(row.refutes for row in rows)
        assert all(row.lower_bound < exact for row in rows)
        # And they are not idle.
        assert rows[0].in_family is not None
        assert 0.6 * exact < rows[0].in_family < exact
        assert rows[0].lower_bound > 0.8


def test_less_noise_than_claimed_is_refuted() -> None:
    first, *_ = assess(gaussian_scores(7, 1000, sigma=0.5), ONE_QUERY)
    assert first.refutes


def test_guesses_look_at_scores_alone() -> None:
    seen = gaussian_scores(0, 400)
    flipped = Seen("gradient", "each step", seen.scores, ~seen.included, independent=True)
    for fraction in (1.0, 0.1):
        one, other = guesses(seen, fraction), guesses(flipped, fraction)
        assert one.guesses == other.guesses
        assert one.correct + other.correct == one.guesses


# ----------------------------------------------------------------------- another auditor ----


# What jax-privacy 2.0.0 says of 1,000 canaries at 95 percent, of which those above a threshold are
# taken to be in: how many are, how many are right; epsilon_one_run at delta 1e-5 and 1e-3, and
# epsilon_one_run_fdp at 1e-5. The canaries are those of ``gaussian_scores(seed, 1000, sigma)``.
JAX_PRIVACY = {
    (0, 1.0, 0.5): (483, 315, 0.46729, 0.38543, 0.81852),
    (0, 1.0, 1.5): (183, 145, 1.02809, 0.56902, 1.62111),
    (1, 0.5, 0.5): (511, 416, 1.28533, 1.16532, 2.23208),
    (1, 0.5, 1.5): (74, 73, 2.69111, 0.24679, 4.08604),
}


@pytest.mark.parametrize("case", JAX_PRIVACY)
def test_bounds_are_those_of_jax_privacy(case: tuple[int, float, float]) -> None:
    """The same guesses; its curve is the Gaussian's, in closed form."""
    above, right, small, large, by_curve = JAX_PRIVACY[case]
    guessed = Guessed(1000, above, right)
    for delta, theirs in ((1e-5, small), (1e-3, large)):
        assert one_run(guessed, delta=delta) == pytest.approx(theirs, abs=2e-3)
    bound = ONE_QUERY.bound(lambda curve: refuted(guessed, curve))
    # Ours is of a curve at some points and of noise in steps of 5%: below, and not far.
    assert 0.85 * by_curve - 0.02 < bound < by_curve + 1e-3


@pytest.mark.parametrize("case", JAX_PRIVACY)
def test_jax_privacy_still_says_so(case: tuple[int, float, float]) -> None:
    theirs = pytest.importorskip("jax_privacy.auditing", reason="jax-privacy is not installed")
    seed, sigma, threshold = case
    seen = gaussian_scores(seed, 1000, sigma=sigma)
    auditor = theirs.CanaryScoreAuditor(seen.scores[seen.included], seen.scores[~seen.included])
    at = {"threshold_strategy": theirs.Explicit(threshold)}
    above = seen.scores >= threshold
    found = (
        *(int(above.sum()), int((above & seen.included).sum())),
        *(auditor.epsilon_one_run(0.05, delta, **at) for delta in (1e-5, 1e-3)),
        auditor.epsilon_one_run_fdp(0.05, 1e-5, **at),
    )
    assert found == pytest.approx(JAX_PRIVACY[case], abs=1e-5)
