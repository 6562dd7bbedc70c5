"""A private choice among runs: its cost by the paper's formulas, and the law of their number."""

from __future__ import annotations

import json
import math
import random
import sqlite3
from collections import Counter
from pathlib import Path

import pytest
from dp_accounting import dp_event
from dp_accounting.privacy_accountant import NeighboringRelation
from dp_accounting.rdp import RdpAccountant
from scipy.stats import chisquare

from hushtune.common.errors import LedgerError, MessageError, PlanError
from hushtune.common.privacy.accountant import epsilon, epsilon_rdp
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.common.privacy.selection import (
    ORDERS,
    ChoiceEvent,
    CountLaw,
    RandomCount,
    epsilon_of_best,
    renyi,
    renyi_of_best,
)

ADD = Relation.ADD_OR_REMOVE_ONE
LAWS = (CountLaw.GEOMETRIC, CountLaw.LOGARITHMIC, CountLaw.POISSON)
SHAPES = {CountLaw.GEOMETRIC: 1.0, CountLaw.LOGARITHMIC: 0.0, CountLaw.POISSON: math.inf}


def event(rate: float = 0.1316, sigma: float = 1.725, steps: int = 60) -> DpSgdEvent:
    return DpSgdEvent(sampling_probability=rate, noise_multiplier=sigma, steps=steps)


def spent(*kinds: DpSgdEvent, law: CountLaw = CountLaw.GEOMETRIC, mean: float = 10.0) -> float:
    count = RandomCount(law=law, mean=mean)
    return epsilon_of_best([[kind] for kind in kinds], count=count, delta=1e-5, relation=ADD)


@pytest.mark.parametrize("rate", [0.01, 0.3, 1.0])
@pytest.mark.parametrize("sigma", [0.6, 1.7, 20.0])
def test_one_run_s_divergence_is_that_of_another_program(rate: float, sigma: float) -> None:
    from opacus.accountants.analysis.rdp import compute_rdp

    other = compute_rdp(q=rate, noise_multiplier=sigma, steps=7, orders=list(ORDERS))
    assert renyi([event(rate, sigma, 7)]) == pytest.approx(list(other), rel=1e-6, abs=1e-12)


@pytest.mark.parametrize("mean", [1.5, 10.0, 300.0])
def test_of_a_gaussian_it_is_the_paper_s_closed_formula(mean: float) -> None:
    """Theorem 2 with rho(a) = a / (2 sigma^2), its minimum over b found by a search of its own."""
    sigma = 4.0
    found = renyi_of_best(
        renyi([event(1.0, sigma, 1)]), RandomCount(law=CountLaw.GEOMETRIC, mean=mean)
    )
    rho = 1 / (2 * sigma**2)
    for order, value in zip(ORDERS, found, strict=True):
        constant = min(2 * ((1 - 1 / b) * rho * b + math.log(mean) / b) for b in ORDERS)
        expected = order * rho + constant + math.log(mean) / (order - 1)
        assert value == pytest.approx(expected, rel=1e-12)
    # Over all real b the minimum is 2 (2 sqrt(rho log m) - rho), and whole orders come close above.
    least = 2 * (2 * math.sqrt(rho * math.log(mean)) - rho)
    told = found[0] - 2 * rho - math.log(mean)
    assert least - 1e-9 <= told <= 1.02 * least


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("mean", [2.0, 10.0, 100.0])
def test_dp_accounting_gives_the_same(law: CountLaw, mean: float) -> None:
    accountant = RdpAccountant(list(ORDERS), NeighboringRelation.ADD_OR_REMOVE_ONE)
    accountant.compose(
        dp_event.RepeatAndSelectDpEvent(event().to_dp_event(), mean=mean, shape=SHAPES[law])
    )
    assert spent(event(), law=law, mean=mean) == pytest.approx(
        float(accountant.get_epsilon(1e-5)), rel=1e-6
    )


@pytest.mark.parametrize("law", LAWS)
def test_a_choice_costs_more_than_one_run_and_more_the_more_runs_there_are(law: CountLaw) -> None:
    one = epsilon([event()], delta=1e-5, relation=ADD)
    costs = [spent(event(), law=law, mean=mean) for mean in (1.5, 3.0, 10.0, 30.0, 100.0)]
    assert one < epsilon_rdp([event()], delta=1e-5) < costs[0]
    assert costs == sorted(costs)
    # Many runs cost less than if all of them were released.
    assert costs[-1] < epsilon([event(steps=6000)], delta=1e-5, relation=ADD)


def chosen(*kinds: DpSgdEvent, law: CountLaw = CountLaw.GEOMETRIC, mean: float = 10) -> ChoiceEvent:
    return ChoiceEvent(count=RandomCount(law=law, mean=mean), kinds=kinds)


@pytest.mark.parametrize("law", LAWS)
def test_beside_other_releases_dp_accounting_gives_the_same(law: CountLaw) -> None:
    other = event(0.05, 1.1, 30)
    accountant = RdpAccountant(list(ORDERS), NeighboringRelation.ADD_OR_REMOVE_ONE)
    best = dp_event.RepeatAndSelectDpEvent(event().to_dp_event(), mean=10, shape=SHAPES[law])
    for each in (best, best, other.to_dp_event()):
        accountant.compose(each)
    found = epsilon(
        [chosen(event(), law=law), other, chosen(event(), law=law)], delta=1e-5, relation=ADD
    )
    assert found == pytest.approx(float(accountant.get_epsilon(1e-5)), rel=1e-6)


def test_a_choice_in_a_ledger_costs_what_it_costs_and_never_less_beside_others() -> None:
    choice, others = chosen(event(), event(0.05, 0.9, 4)), [event(), event(1.0, 40.0, 3)]
    alone = epsilon([choice], delta=1e-5, relation=ADD)
    assert alone == spent(event(), event(0.05, 0.9, 4))
    spends = [epsilon([choice, *others[:n]], delta=1e-5, relation=ADD) for n in range(3)]
    assert spends[0] == alone < spends[1] < spends[2]
    assert spends[2] > epsilon(others, delta=1e-5, relation=ADD)
    # The sum of the parts at half of delta each holds as well, and is no better here.
    parts = [epsilon(part, delta=5e-6, relation=ADD) for part in ([choice], others)]
    assert spends[2] < sum(parts)
    assert math.isinf(epsilon([choice, *others], delta=1e-5, relation=Relation.REPLACE_ONE))


def test_a_choice_in_a_ledger_is_read_back_and_nothing_else_is_taken_for_one(
    tmp_path: Path,
) -> None:
    choice = chosen(event(), event(steps=7), law=CountLaw.POISSON, mean=3.5)
    assert ChoiceEvent.from_dict(json.loads(json.dumps(choice.to_dict()))) == choice
    assert choice.steps == 60
    ledger = Ledger(tmp_path / "east.sqlite")
    entry = ledger.charge(choice, dataset="d", run="search", round=1)
    assert ledger.charge(choice, dataset="d", run="search", round=1) == entry
    assert ledger.entries() == [entry] == list(read_ledger(ledger.path).entries)
    with pytest.raises(LedgerError, match="for something else"):
        ledger.charge(chosen(event()), dataset="d", run="search", round=1)
    with pytest.raises(MessageError, match="charge is damaged"):  # no site sends one
        LedgerEntry.from_dict(entry.to_dict())
    with pytest.raises(LedgerError, match="a choice among runs"):
        _ = entry.release
    told = choice.to_dict()
    for bad in (
        {**told, "kinds": []},
        {**told, "law": "fixed"},
        {**told, "law": "other"},
        {**told, "mean": 1.0},
        {**told, "steps": 3},
        {"kinds": told["kinds"]},
    ):
        with pytest.raises((PlanError, ValueError)):
            ChoiceEvent.from_dict(bad)
    with sqlite3.connect(ledger.path) as db:
        cheaper = json.dumps({**told, "mean": 1.5}, sort_keys=True)
        db.execute("UPDATE charges SET event = ?", (cheaper,))
    with pytest.raises(LedgerError, match="row 1 is damaged"):
        ledger.verify()


def test_of_several_settings_the_costliest_counts_at_each_order() -> None:
    # Few steps of little noise cost more at high orders, many steps of much noise at low ones.
    few, many = event(0.05, 0.9, 4), event(1.0, 20.0, 400)
    curves = [renyi([few]), renyi([many])]
    assert curves[0][0] < curves[1][0]
    assert curves[0][-1] > curves[1][-1]
    assert spent(few, many) >= max(spent(few), spent(many))
    assert spent(few, few) == pytest.approx(spent(few))
    joined = epsilon_of_best(
        [[few, many]],
        count=RandomCount(law=CountLaw.GEOMETRIC, mean=10.0),
        delta=1e-5,
        relation=ADD,
    )
    assert joined > spent(few, many)


def test_a_fixed_number_is_refused() -> None:
    with pytest.raises(PlanError, match="fixed number of runs"):
        RandomCount(law=CountLaw.FIXED, mean=10)


@pytest.mark.parametrize("mean", [0.0, 1.0, -3.0, math.nan, math.inf])
def test_a_mean_that_leaves_nothing_to_draw_is_refused(mean: float) -> None:
    with pytest.raises(PlanError, match="mean number of runs"):
        RandomCount(law=CountLaw.GEOMETRIC, mean=mean)


def test_what_has_no_bound_is_refused() -> None:
    count = RandomCount(law=CountLaw.GEOMETRIC, mean=10.0)
    with pytest.raises(PlanError, match="one relation"):
        epsilon_of_best([[event()]], count=count, delta=1e-5, relation=Relation.REPLACE_ONE)
    for kinds in ([], [[]], [[event()], []]):
        with pytest.raises(PlanError, match="no run"):
            epsilon_of_best(kinds, count=count, delta=1e-5, relation=ADD)
    with pytest.raises(PlanError, match="delta"):
        epsilon_of_best([[event()]], count=count, delta=0.0, relation=ADD)


@pytest.mark.parametrize("law", LAWS)
@pytest.mark.parametrize("mean", [1.2, 6.0, 40.0])
def test_chances_sum_to_one_and_have_the_mean(law: CountLaw, mean: float) -> None:
    count = RandomCount(law=law, mean=mean)
    chances = [count.chance(number) for number in range(20_000)]
    assert math.fsum(chances) == pytest.approx(1.0, abs=1e-9)
    assert math.fsum(n * p for n, p in enumerate(chances)) == pytest.approx(mean, rel=1e-7)
    assert (chances[0] > 0) is (law is CountLaw.POISSON)


@pytest.mark.parametrize("law", LAWS)
def test_numbers_are_drawn_by_the_law_and_by_no_other(law: CountLaw) -> None:
    """Against the law itself, and against that of another mean, which has to be seen."""
    drawn, size, mean = random.Random(20), 4000, 4.0
    count = RandomCount(law=law, mean=mean)
    found = Counter(count.draw(drawn.random) for _ in range(size))
    assert p_value(found, count, size) > 1e-3
    assert p_value(found, RandomCount(law=law, mean=1.2 * mean), size) < 1e-6
    for other in LAWS:
        if other is not law:
            assert p_value(found, RandomCount(law=other, mean=mean), size) < 1e-6


def p_value(found: Counter[int], count: RandomCount, size: int) -> float:
    """Of a chi-squared test over 0 to 9 and all above."""
    numbers = [n for n in range(10) if count.chance(n) > 0 or found[n]]
    expected = [max(1e-9, size * count.chance(n)) for n in numbers]
    rest = size - sum(found[n] for n in numbers)
    expected_rest = size - sum(expected)
    total = [*(found[n] for n in numbers), rest]
    return float(chisquare(total, [*expected, expected_rest]).pvalue)


@pytest.mark.parametrize("law", LAWS)
def test_the_ends_of_the_law_are_drawn(law: CountLaw) -> None:
    count = RandomCount(law=law, mean=5.0)
    assert count.draw(lambda: 0.0) == (0 if law is CountLaw.POISSON else 1)
    assert count.draw(lambda: 1 - 2**-53) > 20
    assert len({count.draw() for _ in range(60)}) > 3  # the operating system's
