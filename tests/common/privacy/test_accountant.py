"""The accountant against known values, Renyi accounting, Opacus, and its own algebra."""

import warnings

import pytest

from hushtune.common.errors import PlanError
from hushtune.common.privacy import accountant
from hushtune.common.privacy.accountant import (
    LEAST_NOISE_MULTIPLIER,
    calibrate_noise,
    epsilon,
    epsilon_group,
    epsilon_rdp,
)
from hushtune.common.privacy.plan import DpSgdEvent, Relation

ADD, REPLACE = Relation.ADD_OR_REMOVE_ONE, Relation.REPLACE_ONE
DELTA = 1e-5
SETTINGS = [
    (0.1316, 1.725, 60),
    (0.0658, 1.225, 90),
    (0.13, 4.048, 60),
    (0.02, 0.8, 300),
    (0.5, 6.0, 20),
    (1.0, 60.0, 400),  # every record in every step: one step at a twentieth of the noise
    (0.001, 10.0, 20_000),  # many steps of little loss: what a coarse grid overstates threefold
]


def event(rate: float, sigma: float, steps: int) -> DpSgdEvent:
    return DpSgdEvent(sampling_probability=rate, noise_multiplier=sigma, steps=steps)


def spent(*events: DpSgdEvent, relation: Relation = ADD) -> float:
    return epsilon(events, delta=DELTA, relation=relation)


@pytest.mark.parametrize(
    ("setting", "expected"), [((0.1316, 1.725, 60), 2.9970), ((0.0658, 1.225, 90), 2.9966)]
)
def test_known_values(setting: tuple[float, float, int], expected: float) -> None:
    assert spent(event(*setting)) == pytest.approx(expected, abs=5e-4)


def test_an_unsampled_gaussian_is_the_textbook_one() -> None:
    # Balle and Wang 1805.06530, theorem 8, solved for epsilon at sigma 4 and delta 1e-5.
    assert spent(event(1.0, 4.0, 1)) == pytest.approx(0.92634, abs=1e-4)
    # Replacing moves a clipped sum by up to 2 C: as removing at half the noise.
    replaced = spent(event(1.0, 4.0, 1), relation=REPLACE)
    assert replaced == pytest.approx(spent(event(1.0, 2.0, 1)), abs=1e-4)


@pytest.mark.parametrize("relation", list(Relation))
def test_steps_that_draw_everybody_are_one_step_of_less_noise(relation: Relation) -> None:
    one = spent(event(1.0, 4.0, 1), relation=relation)
    assert spent(event(1.0, 40.0, 100), relation=relation) == pytest.approx(one, rel=1e-9)
    # Precisions add up, of different noise too: 36 / 24^2 + 27 / 12^2 = 1 / 2^2.
    parts = [event(1.0, 24.0, 36), event(1.0, 12.0, 27)]
    whole = spent(event(1.0, 2.0, 1), relation=relation)
    assert spent(*parts, relation=relation) == pytest.approx(whole, rel=1e-9)
    # Beside steps that draw few, they cost what they cost one by one, but for the grid's width.
    few = event(0.1, 1.5, 60)
    other = event(1 - 1e-9, 40.0, 100)
    mixed = spent(few, event(1.0, 40.0, 100), relation=relation)
    assert mixed == pytest.approx(spent(few, other, relation=relation), rel=1e-3)


def test_what_is_found_in_a_store_is_what_is_found_anew() -> None:
    """Whichever compositions were looked at before, and on whichever grid."""
    little, much = event(0.1, 1.5, 40), event(0.1, 6.0, 40)  # looked at on two grids
    asked = [(much,), (little, much), (little,), (little, much, event(0.05, 1.5, 20))]
    anew: list[float] = []
    for events in asked:
        forget()
        anew.append(spent(*events))
    for order in ([0, 1, 2, 3], [3, 2, 1, 0]):
        forget()
        assert {place: spent(*asked[place]) for place in order} == dict(enumerate(anew))


def forget() -> None:
    for store in (accountant._epsilon, accountant._pld, accountant._step):  # pyright: ignore[reportPrivateUsage]
        store.cache_clear()


@pytest.mark.parametrize("setting", SETTINGS)
def test_renyi_accounting_is_never_below(setting: tuple[float, float, int]) -> None:
    tight, loose = spent(event(*setting)), epsilon_rdp([event(*setting)], delta=DELTA)
    assert tight <= loose <= 2 * tight


@pytest.mark.parametrize("setting", SETTINGS)
def test_opacus_prv_agrees(setting: tuple[float, float, int]) -> None:
    from opacus.accountants import PRVAccountant

    rate, sigma, steps = setting
    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, steps)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        other = accountant.get_epsilon(delta=DELTA, eps_error=0.005)
    assert spent(event(*setting)) == pytest.approx(other, abs=0.02)


@pytest.mark.parametrize("relation", list(Relation))
def test_rounds_compose_to_the_whole_run(relation: Relation) -> None:
    rounds = [event(0.13, 1.7, 3) for _ in range(12)]
    whole = spent(event(0.13, 1.7, 36), relation=relation)
    assert spent(*rounds, relation=relation) == whole
    # An accountant that is made anew in each round reports this instead:
    assert whole > 2 * spent(rounds[0], relation=relation)


def test_order_does_not_matter_and_every_event_counts() -> None:
    parts = [event(0.13, 1.7, 30), event(0.05, 1.2, 10), event(0.13, 2.5, 6)]
    assert spent(*parts) == spent(*reversed(parts))
    running = [spent(*parts[:count]) for count in range(4)]
    assert running == sorted(set(running))
    assert running[0] == 0.0


@pytest.mark.parametrize("relation", list(Relation))
def test_more_steps_cost_more_and_more_noise_less(relation: Relation) -> None:
    by_steps = [spent(event(0.1, 1.5, steps), relation=relation) for steps in (1, 2, 10, 11, 100)]
    assert by_steps == sorted(set(by_steps))
    # Across the widths of the loss grid, at 0.25 and 4, too.
    sigmas = (0.2, 0.249, 0.25, 0.5, 1, 2, 3.999, 4, 4.001, 8)
    by_noise = [spent(event(0.1, sigma, 20), relation=relation) for sigma in sigmas]
    assert by_noise == sorted(set(by_noise), reverse=True)
    by_rate = [spent(event(rate, 1.5, 20), relation=relation) for rate in (0.01, 0.1, 0.5, 1.0)]
    assert by_rate == sorted(set(by_rate))


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize("rate", [1e-12, 1e-9, 1e-8, 3e-8, 1e-7, 1e-6])
def test_a_rate_that_hardly_draws_anybody_is_accounted_for(rate: float, relation: Relation) -> None:
    for sigma in (0.5, 1.0, 4.0):
        assert 0 <= spent(event(rate, sigma, 10), relation=relation) < 1e-3


def test_replacing_costs_more_than_adding_or_removing() -> None:
    one = event(0.1316, 1.725, 60)
    assert spent(one) < spent(one, relation=REPLACE) < 2.1 * spent(one)


def test_a_group_costs_more_than_one_and_its_own_epsilon_is_the_first() -> None:
    one = [event(0.1316, 1.725, 60)]
    costs = [epsilon_group(one, delta=DELTA, records=count) for count in (1, 2, 4)]
    assert costs == sorted(set(costs))
    assert costs[0] == pytest.approx(spent(*one), abs=0.01)
    assert costs[0] >= spent(*one)
    assert costs[1] > 1.9 * costs[0]


@pytest.mark.parametrize("relation", list(Relation))
@pytest.mark.parametrize(
    ("target", "rate", "steps"),
    [(1.0, 0.1316, 60), (3.0, 0.13, 36), (8.0, 0.0658, 90), (0.1, 0.13, 12)],
)
def test_calibrated_noise_never_costs_more_and_hardly_less(
    target: float, rate: float, steps: int, relation: Relation
) -> None:
    sigma = calibrate_noise(
        epsilon=target, delta=DELTA, sampling_probability=rate, steps=steps, relation=relation
    )
    cost = spent(event(rate, sigma, steps), relation=relation)
    assert 0.99 * target <= cost <= target
    assert spent(event(rate, sigma * 0.9995, steps), relation=relation) > target


@pytest.mark.parametrize(
    ("target", "rate", "steps", "expected"),
    [(1.0, 0.0658, 90, 2.589), (3.0, 0.1316, 60, 1.725), (8.0, 0.1316, 60, 0.953)],
)
def test_calibration_against_known_noise(
    target: float, rate: float, steps: int, expected: float
) -> None:
    sigma = calibrate_noise(
        epsilon=target, delta=DELTA, sampling_probability=rate, steps=steps, relation=ADD
    )
    assert sigma == pytest.approx(expected, rel=2e-3)


def test_noise_has_a_floor_and_impossible_targets_an_error() -> None:
    generous = calibrate_noise(
        epsilon=1e5, delta=DELTA, sampling_probability=0.1, steps=1, relation=ADD
    )
    assert generous == LEAST_NOISE_MULTIPLIER
    with pytest.raises(PlanError, match="no amount of noise"):
        calibrate_noise(epsilon=1e-9, delta=1e-9, sampling_probability=1, steps=99, relation=ADD)


@pytest.mark.parametrize("delta", [0.0, 1.0, -1e-5])
def test_delta_is_checked(delta: float) -> None:
    one = event(0.1, 1.0, 1)
    with pytest.raises(PlanError, match="delta"):
        epsilon([one], delta=delta, relation=ADD)
    with pytest.raises(PlanError, match="delta"):
        epsilon_rdp([one], delta=delta)
    with pytest.raises(PlanError, match="delta"):
        epsilon_group([one], delta=delta, records=2)


def test_the_cross_check_says_what_it_cannot_do() -> None:
    with pytest.raises(PlanError, match="one relation"):
        epsilon_rdp([event(0.1, 1.0, 1)], delta=DELTA, relation=REPLACE)
    with pytest.raises(PlanError, match="record"):
        epsilon_group([event(0.1, 1.0, 1)], delta=DELTA, records=0)
    assert epsilon_rdp([], delta=DELTA) == epsilon_group([], delta=DELTA, records=2) == 0.0


def test_records_that_are_hardly_ever_drawn_cost_a_group_next_to_nothing() -> None:
    """Of ten records of one in 1e7, epsilon is 0.0005 each at half a millionth; that the least d
    is too small for any figure says nothing of larger ones."""
    events = [event(1e-7, 0.3, 20)]
    assert epsilon_group(events, delta=1e-5, records=10) == pytest.approx(0.00497, rel=1e-2)


@pytest.mark.parametrize("sigma", [0.05, 1.0])
@pytest.mark.parametrize("rate", [1e-12, 1e-9, 1e-8])
@pytest.mark.parametrize("records", [2, 8])
def test_a_group_at_a_tiny_rate_has_a_figure_and_an_upper_bound(
    sigma: float, rate: float, records: int
) -> None:
    """It costs no less than one record, no more than at a higher rate, and nothing where the
    chance that anybody is drawn at all is within delta."""
    events = [event(rate, sigma, 60)]
    assert epsilon_group(events, delta=2 * records * 60 * rate, records=records) == 0.0
    small = 1e-12
    found = epsilon_group(events, delta=small, records=records)
    assert epsilon(events, delta=small, relation=ADD) <= found * (1 + 1e-9)
    assert found <= epsilon_group([event(1e-6, sigma, 60)], delta=small, records=records)
    if records * 60 * rate > 100 * small and sigma == 0.05:
        # With the chance that anybody is drawn far above delta, noise of 0.05 hides nobody.
        assert found > 100
