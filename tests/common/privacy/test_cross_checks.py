"""The accountant against other programs, published figures and closed forms.

Published figures were read in the sources named beside them. Those of moments and Renyi accountants
are upper bounds of what PLD accounting gives; those of tight accountants must be met.
"""

from __future__ import annotations

import math
import warnings

import pytest
from scipy.optimize import brentq
from scipy.stats import norm

from hushtune.common.privacy.accountant import epsilon, epsilon_group, epsilon_rdp
from hushtune.common.privacy.plan import DpSgdEvent, Relation

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
Setting = tuple[float, float, int, float]  # q, sigma, steps, delta


def event(rate: float, sigma: float, steps: int) -> DpSgdEvent:
    return DpSgdEvent(sampling_probability=rate, noise_multiplier=sigma, steps=steps)


def spent(rate: float, sigma: float, steps: int, delta: float, relation: Relation = ADD) -> float:
    return epsilon([event(rate, sigma, steps)], delta=delta, relation=relation)


# ---------------------------------------------------------------------------- other programs ----


@pytest.mark.parametrize(
    "setting",
    [
        (256 / 60000, 1.1, 14_062, 1e-5),
        (1e-4, 1.0, 50_000, 1e-8),
        (1e-3, 0.6, 5_000, 1e-6),
        (0.01, 0.7, 120, 1e-5),
        (0.05, 2.0, 1_000, 1e-7),
        (0.3, 3.0, 40, 1e-4),
        (0.9, 8.0, 10, 1e-6),
    ],
)
def test_opacus_prv_agrees_within_two_hundredths(setting: Setting) -> None:
    """Gopi et al. 2106.02848, as Opacus has it: written by others, composed by other means."""
    from opacus.accountants import PRVAccountant

    rate, sigma, steps, delta = setting
    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = float(accountant.get_epsilon(delta=delta, eps_error=0.005))
    assert spent(*setting) == pytest.approx(other, abs=0.02)


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("sigma", [0.5, 1.0, 4.0, 100.0])
def test_rates_of_next_to_nothing_cost_less_and_less(sigma: float, relation: Relation) -> None:
    costs = [spent(rate, sigma, 100, 1e-6, relation) for rate in (1e-9, 1e-7, 1e-5, 1e-3, 0.1)]
    assert costs == sorted(costs)
    assert 0 <= costs[0] < 1e-3


# ------------------------------------------------------------------------- published figures ----


@pytest.mark.parametrize(
    ("setting", "published"),
    [
        # TensorFlow Privacy, analysis/compute_dp_sgd_privacy_test.py, "..._pld": 1.2 epochs, in
        # whole steps, at sigma 0.7. With microbatching the sensitivity doubles, as if sigma halved.
        ((1.0, 0.7, 2, 1e-5), 10.1224946),
        ((1.0, 0.35, 2, 1e-5), 24.7160779),
        ((0.01, 0.7, 120, 1e-5), 2.4612381),
        ((0.01, 0.35, 120, 1e-5), 18.6977407),
        # The same file, the statement by PLD: 5 epochs of 64 in 10000, sigma 2 with microbatching.
        ((0.0064, 1.0, 782, 1e-6), 1.199),
        # Koskela, Jalko and Honkela (1906.03049), DPBayes/PLD-Accountant, test_eps_delta.py: sigma
        # 4, q 0.01, 1e4 compositions have delta(1.0) = 4.243484012034273e-06.
        ((0.01, 4.0, 10_000, 4.243484012034273e-06), 1.0),
    ],
)
def test_tight_figures_that_others_published_are_met(setting: Setting, published: float) -> None:
    found = spent(*setting)
    assert found == pytest.approx(published, abs=2e-3)
    assert found >= published - 5e-4  # every discretisation is on the safe side


def test_the_published_figure_for_replacing_one_is_met() -> None:
    # The same file of Koskela et al.: the substitute relation at delta 1e-5.
    found = spent(0.01, 4.0, 10_000, 1e-5, relation=REPLACE)
    assert found == pytest.approx(1.9931200626285734, abs=1e-3)


@pytest.mark.parametrize(
    ("setting", "published"),
    [
        # TensorFlow Privacy, tutorials/README.md: MNIST, batches of 256 in 60000; 60 epochs at
        # sigma 1.12, 30 at 0.6, 10 at 1.2.
        ((256 / 60000, 1.12, 14_062, 1e-5), 2.92),
        ((256 / 60000, 0.6, 7_031, 1e-5), 9.74),
        ((256 / 60000, 1.2, 2_343, 1e-5), 1.20),
        # Bu, Dong, Long and Su, Deep Learning with Gaussian Differential Privacy (Harvard Data
        # Science Review 2020), figure 4: the moments accountant of Abadi et al. (1607.00133) on
        # MNIST, 20 epochs at sigma 1.3 and 70 at 0.7.
        ((256 / 60000, 1.3, 4_687, 1e-5), 1.34),
        ((256 / 60000, 0.7, 16_406, 1e-5), 8.68),
        # compute_dp_sgd_privacy_test.py, by Renyi accounting: batches of 150 in 60000 for 15
        # epochs, of 100 in 100000 for 30.
        ((150 / 60000, 1.3, 6_000, 1e-5), 0.7242234026109595),
        ((100 / 100000, 1.0, 30_000, 1e-7), 1.4154988495444842),
    ],
)
def test_moments_accountants_published_upper_bounds(setting: Setting, published: float) -> None:
    rate, sigma, steps, delta = setting
    renyi = epsilon_rdp([event(rate, sigma, steps)], delta=delta)
    assert spent(*setting) < renyi <= published + 1e-4
    # And not so far below that a step or an order of magnitude could be missing.
    assert renyi > 0.75 * published
    assert spent(*setting) > 0.6 * published


# ------------------------------------------------------------------------------ closed forms ----


def gaussian_epsilon(mu: float, delta: float) -> float:
    """The exact epsilon of Gaussian mechanisms: Balle and Wang 1805.06530, theorem 8.

    T releases at sigma are one at sigma / sqrt(T), and mu = sqrt(sum of T / sigma^2) composes (Dong
    et al. 1905.02383, corollaries 2.13 and 3.3).
    """

    def excess(value: float) -> float:
        first = norm.cdf(mu / 2 - value / mu)
        second = math.exp(value) * norm.cdf(-mu / 2 - value / mu)
        return float(first - second) - delta

    return float(brentq(excess, 0.0, 200.0, xtol=1e-10))  # pyright: ignore[reportArgumentType]


@pytest.mark.parametrize("delta", [1e-3, 1e-5, 1e-8])
@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (4.0, 1), (4.0, 16), (20.0, 100), (8, 500)])
@pytest.mark.parametrize("relation", list(Relation))
def test_without_sampling_it_is_the_exact_gaussian_curve(
    sigma: float, steps: int, delta: float, relation: Relation
) -> None:
    sensitivity = 2 if relation is REPLACE else 1  # one record out, another in
    exact = gaussian_epsilon(sensitivity * math.sqrt(steps) / sigma, delta)
    found = spent(1.0, sigma, steps, delta, relation)
    assert exact - 1e-9 <= found <= exact + 0.01


def test_different_gaussians_compose_to_the_exact_curve() -> None:
    # As in microsoft/prv_accountant, tests/test_accountant.py: 50 releases at 10, 50 at 5.
    exact = gaussian_epsilon(math.sqrt(50 / 10**2 + 50 / 5**2), 1e-6)
    found = epsilon([event(1.0, 10.0, 50), event(1.0, 5.0, 50)], delta=1e-6, relation=ADD)
    assert exact <= found <= exact + 0.01


# ------------------------------------------------------------------------- groups, relations ----

ORDERED = [
    (0.1316, 1.725, 60, 1e-9),
    (0.0658, 1.225, 90, 1e-10),
    (0.01, 0.7, 120, 1e-12),
    (0.5, 6.0, 20, 1e-8),
    (1.0, 12.0, 5, 1e-9),
]


def group_delta(one: float, records: int, delta: float) -> float:
    """Vadhan, The Complexity of Differential Privacy (2017), lemma 2.2: delta of a group."""
    return delta * math.expm1(records * one) / math.expm1(one)


@pytest.mark.parametrize("setting", ORDERED)
@pytest.mark.parametrize("records", [1, 2, 3])
def test_a_group_costs_between_one_record_and_the_generic_bound(
    setting: Setting, records: int
) -> None:
    rate, sigma, steps, delta = setting
    one = spent(*setting)
    delta_of_all = group_delta(one, records, delta)
    assert delta * (1 - 1e-12) <= delta_of_all < 1e-2
    found = epsilon_group([event(rate, sigma, steps)], delta=delta_of_all, records=records)
    single = spent(rate, sigma, steps, delta_of_all)
    if records == 1:
        assert found == single
    else:
        assert single < found < records * one


@pytest.mark.parametrize("records", [2, 8])
def test_a_group_never_costs_more_than_its_records_one_after_the_other(records: int) -> None:
    """At low rates the mixture's grid is too coarse to tell; the generic bound then holds."""
    rate, sigma, steps, delta = 1e-4, 2.0, 1000, 1e-5
    found = epsilon_group([event(rate, sigma, steps)], delta=delta, records=records)
    share = delta / records**2
    one = spent(rate, sigma, steps, share)
    assert group_delta(one, records, share) <= delta
    assert spent(rate, sigma, steps, delta) < found <= records * one


def test_without_sampling_a_group_is_a_larger_sensitivity() -> None:
    for records in (1, 2, 4):
        exact = gaussian_epsilon(records * math.sqrt(5) / 12, 1e-6)
        found = epsilon_group([event(1.0, 12.0, 5)], delta=1e-6, records=records)
        assert exact - 1e-9 <= found <= exact + 0.02


@pytest.mark.parametrize("setting", ORDERED)
def test_replacing_costs_more_than_removing_and_no_more_than_removing_and_adding(
    setting: Setting,
) -> None:
    rate, sigma, steps, delta = setting
    one = spent(*setting)
    delta_of_both = group_delta(one, 2, delta)
    replaced = spent(rate, sigma, steps, delta_of_both, REPLACE)
    assert spent(rate, sigma, steps, delta_of_both) < replaced < 2 * one
