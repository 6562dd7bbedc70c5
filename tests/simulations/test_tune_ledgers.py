"""A charged search in the sites' ledgers: charged whole, once, first; and what later runs find."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config_io import config_hash, replace
from hushtune.common.errors import BudgetExceededError, ConfigError, LedgerError, QuorumError
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.privacy.plan import Relation
from hushtune.common.privacy.selection import (
    ChoiceEvent,
    CountLaw,
    RandomCount,
    epsilon_with_choices,
)
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations import run
from hushtune.simulations.searching import charged
from hushtune.simulations.searching import tune as searching
from hushtune.simulations.searching.cost import cost_of
from hushtune.simulations.searching.payer import Choice
from hushtune.simulations.searching.record import read_record
from hushtune.simulations.searching.space import Parameter
from hushtune.simulations.searching.tune import Search, tune

from ..conftest import Command, Settings

ADD, DELTA = Relation.ADD_OR_REMOVE_ONE, 1e-3
PRIVATE = {"trust": "site", "epsilon": 4.0, "delta": DELTA}
RATE = Parameter(key="train.learning_rate", low=0.003, high=0.3, log=True)
GEOMETRIC = RandomCount(law=CountLaw.GEOMETRIC, mean=5.0)
SITES = ("east", "north", "south")


def quick(settings: Settings, **changes: Any) -> Any:
    return settings.config(
        **{"privacy": PRIVATE, "train__rounds": 1, "train__warmup_rounds": 0, **changes}
    )


def search(config: Any) -> Search:
    return Search(
        config=config, space=(RATE,), choice=Choice.CHARGED, trials=5.0, law=CountLaw.GEOMETRIC
    )


def draws(monkeypatch: pytest.MonkeyPatch, number: int) -> None:
    monkeypatch.setattr(RandomCount, "draw", lambda self: number)


def spent(path: Path) -> float:
    ledger = Ledger(path)
    (dataset,) = {entry.dataset for entry in ledger.entries()}
    return ledger.epsilon(dataset=dataset, delta=DELTA, relation=ADD)


def test_each_site_s_ledger_is_charged_the_whole_search_whatever_was_drawn(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = quick(settings)
    cost = cost_of(resolve(config), (RATE,), GEOMETRIC)
    for drawn in (1, 3):
        draws(monkeypatch, drawn)
        out = tmp_path / str(drawn)
        found = tune(search(config), out)
        told = json.loads((out / "selected" / "privacy.json").read_text())
        for site in SITES:
            path = out / "ledger" / f"{site}.sqlite"
            assert found["ledgers"][site] == str(path)
            # The same one charge, so that nobody can count the runs there.
            (entry,) = read_ledger(path).entries
            assert entry.event == ChoiceEvent(count=GEOMETRIC, kinds=cost.kinds[site])
            assert spent(path) == cost.sites[site].epsilon == told["sites"][site]["epsilon"]
            assert spent(path) > 2 * epsilon(cost.kinds[site], delta=DELTA, relation=ADD)
            assert told["sites"][site]["ledger_head"] == entry.hash
            assert entry.hash in (out / "selected" / "privacy.md").read_text()
            # What each run released to its server is in the run's own ledgers.
            for number in range(drawn):
                trial = Ledger(out / "trials" / f"{number:04}" / "ledger" / path.name)
                assert [each.event for each in trial.entries()] == list(cost.kinds[site])


def test_it_is_charged_before_the_first_run_and_once_however_often_it_goes_on(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws(monkeypatch, 2)
    out, asked = tmp_path / "out", search(quick(settings))
    path = out / "ledger" / "east.sqlite"
    real, seen = searching.run, list[int]()

    def stopping(*arguments: Any, **how: Any) -> Any:
        seen.append(len(read_ledger(path).entries))
        if len(seen) < 3:
            raise KeyboardInterrupt
        return real(*arguments, **how)

    monkeypatch.setattr(searching, "run", stopping)
    for resume in (False, True):
        with pytest.raises(KeyboardInterrupt):
            tune(asked, out, resume=resume)
    tune(asked, out, resume=True)
    assert seen == [1, 1, 1, 1]
    assert len(read_ledger(path).entries) == 1


def test_nothing_is_released_of_a_search_that_a_ledger_does_not_hold(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws(monkeypatch, 1)
    out = tmp_path / "out"

    def cheaper(config: Any, folder: Path, cost: Any, *, search: str) -> None:
        count = RandomCount(law=CountLaw.GEOMETRIC, mean=1.5)
        charge(config, folder, dataclasses.replace(cost, count=count), search=search)

    charge = charged.charge
    monkeypatch.setattr(charged, "charge", cheaper)
    with pytest.raises(LedgerError, match="does not hold the charge of this search"):
        tune(search(quick(settings)), out)
    assert not (out / "selected").exists()


def test_later_runs_on_the_same_ledgers_go_on_from_it(
    settings: Settings, hushtune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws(monkeypatch, 1)
    lasting = tmp_path / "ledgers"
    config = quick(settings, simulation__ledgers=str(lasting))
    tune(search(config), tmp_path / "out")
    assert not (tmp_path / "out" / "ledger").exists()
    before = {site: spent(lasting / f"{site}.sqlite") for site in SITES}
    # A run's share is its own epsilon, which the search has spent, whatever seed the run has.
    with pytest.raises(QuorumError, match="HT401"):
        run(replace(config, {"seed": 99}), tmp_path / "refused")
    assert {site: spent(lasting / f"{site}.sqlite") for site in SITES} == before
    # Sites that grant more go on from it: policies beside the ledgers.
    for site in SITES:
        policy = f"max_epsilon = 40.0\nmax_delta = {DELTA}\n"
        (lasting / f"{site}.toml").write_text(policy, encoding="utf-8")
    later = replace(config, {"simulation.ledgers": None, "simulation.policies": str(lasting)})
    run(later, tmp_path / "later")
    told = json.loads((tmp_path / "later" / "privacy.json").read_text())
    plans = site_plans(resolve(later))
    for site in SITES:
        choice, *runs = [e.event for e in Ledger(lasting / f"{site}.sqlite").entries()]
        assert isinstance(choice, ChoiceEvent)
        events = [plans[site].event(plans[site].steps)]
        assert runs == events
        together = epsilon_with_choices([choice], events, delta=DELTA, relation=ADD)
        assert together > before[site] + 0.5
        assert told["sites"][site]["lifetime"]["epsilon"] == together
    assert any("runs of a search that were not chosen" in line for line in told["not_covered"])
    page = (tmp_path / "later" / "privacy.html").read_text(encoding="utf-8")
    assert "the best of a random number of runs: geometric law, mean 5.0" in page
    shown = hushtune("ledger", "show", lasting, "--delta", DELTA)
    assert shown.status == 0, shown.err
    assert "best of" in shown.out
    assert "Towards its server all runs add up" in " ".join(shown.out.split())
    with pytest.raises(ConfigError, match="policy of its own"):
        tune(search(config), tmp_path / "again")


def test_a_search_that_lasting_ledgers_have_no_room_for_is_refused(
    settings: Settings, hushtune: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws(monkeypatch, 1)
    lasting = tmp_path / "ledgers"
    config = quick(settings, simulation__ledgers=str(lasting))
    run(config, tmp_path / "first")
    entries = read_ledger(lasting / "east.sqlite").entries
    with pytest.raises(BudgetExceededError, match="after 1 charges"):
        tune(search(config), tmp_path / "out")
    assert not (tmp_path / "out").exists()
    file = settings.file(
        tmp_path,
        privacy=PRIVATE,
        train__rounds=1,
        train__warmup_rounds=0,
        simulation__ledgers=str(lasting),
    )
    space = tmp_path / "space.toml"
    space.write_text("[train]\nlearning_rate = { low = 0.003, high = 0.3, log = true }\n")
    common = ("tune", "--config", file, "--space", space, "--choice", "charged", "--trials", 5)
    told = hushtune(*common, "--dry-run")
    assert told.status == 2
    assert "HT401" in told.err
    assert read_ledger(lasting / "east.sqlite").entries == entries


def test_a_second_search_is_another_charge(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draws(monkeypatch, 1)
    config = quick(settings, simulation__ledgers=str(tmp_path / "ledgers"))
    tune(search(config), tmp_path / "one")
    with pytest.raises(BudgetExceededError):
        tune(search(config), tmp_path / "two")
    names = [read_record(tmp_path / "one"), read_record(tmp_path / "two")]
    assert names[0] is not None
    assert names[1] is None
    assert names[0].name not in config_hash(config)


def test_sites_with_policies_charge_no_choice(settings: Settings, tmp_path: Path) -> None:
    config = quick(settings, simulation__policies=str(tmp_path / "policies"))
    with pytest.raises(ConfigError, match="policy of its own") as refused:
        tune(search(config), tmp_path / "out")
    assert "simulation.policies" in str(refused.value.given)
    assert not (tmp_path / "out").exists()
