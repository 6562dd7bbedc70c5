"""What sites train for themselves: how it is asked for, answered and charged."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from flwr.app import RecordDict

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.lora_rules import RULES, trainable_keys
from hushtune.common.messages import (
    Refusal,
    RoundOrder,
    decode_order,
    encode_order,
    encode_refusal,
    encode_update,
)
from hushtune.common.planning import personal_charges, site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import Relation
from hushtune.server import personal

from .fake_grid import SPEC, charge, config, honest, state, trained
from .test_strategy import NAMES, grid, strategy

RULE_NAMES = ("fedit", "ffa", "rolora", "fedsgd")
FINETUNE: dict[str, Any] = {"method": "finetune", "steps": 5, "learning_rate": 0.25}
DITTO: dict[str, Any] = {"method": "ditto", "proximal": 0.75}


def asked(settings: RunConfig, **others: Any) -> tuple[list[RoundOrder], list[RoundOrder], Any]:
    """The orders of the rounds, those for the sites' own adapters, and the result."""
    network = grid()
    result = strategy(settings, **others).run(network, state(0))
    ours = [order for order in network.orders if not order.personal]
    return ours, [order for order in network.orders if order.personal], result


# -------------------------------------------------------------------------------- orders ----


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_fine_tuning_is_asked_for_once_of_all_from_the_final_model(rule: str) -> None:
    settings = config(
        personal=FINETUNE,
        aggregation={"rule": rule},
        privacy={"trust": "off"},
        simulation={"sites_per_round": 1},
        train={"schedule": "cosine", "proximal": 0.0},
    )
    _, own, result = asked(settings)
    assert [order.site for order in own] == list(NAMES)
    for order in own:
        assert order.adapter.to_bytes() == result.state.to_bytes()
        assert order.round == 6
        turns = [trainable_keys(RULES[rule], SPEC, turn=turn) for turn in range(2)]
        assert order.trainable == tuple(sorted({key for keys in turns for key in keys}))
        how = order.training
        assert (order.local_steps, how.learning_rate, how.schedule) == (5, 0.25, "constant")
        assert (how.first_step, how.schedule_steps, how.proximal) == (0, 5, 0.0)
        assert order.charged_run == "run/personal"
        assert order.sent == ()
        assert order.control is None
    assert [row.get("personal") for row in result.history[:-1]] == [None] * 5
    assert result.history[-1]["personal"] == {"trained": list(NAMES), "missing": {}}


def test_ditto_is_asked_for_after_each_round_beside_its_new_adapter() -> None:
    settings = config(personal=DITTO, privacy={"trust": "off"}, train={"proximal": 0.125})
    ours, own, result = asked(settings)
    assert [order.round for order in own] == [n for n in (3, 4, 5, 6) for _ in NAMES]
    for order in own:
        how = order.training
        assert (order.local_steps, how.proximal, how.learning_rate) == (2, 0.75, 0.01)
        after = [o.adapter for o in ours if o.round == order.round + 1]
        expected = after[0] if after else result.state
        assert order.adapter.to_bytes() == expected.to_bytes()
    assert {order.training.proximal for order in ours} == {0.125}
    assert [bool(row.get("personal")) for row in result.history] == [False] * 2 + [True] * 4


def test_it_changes_nothing_of_the_global_model() -> None:
    plain = asked(config(privacy={"trust": "off"}))[2]
    for how in (FINETUNE, DITTO):
        found = asked(config(personal=how, privacy={"trust": "off"}))[2]
        assert found.state.to_bytes() == plain.state.to_bytes()


@pytest.mark.parametrize("rule", RULE_NAMES)
def test_an_order_off_the_wire_stays_personal(rule: str) -> None:
    _, own, _ = asked(
        config(personal=FINETUNE, aggregation={"rule": rule}, privacy={"trust": "off"})
    )
    again = decode_order(encode_order(own[0]))
    assert again.personal
    assert again.charged_run == "run/personal"
    assert again.sent == ()
    other = decode_order(encode_order(replace(own[0], personal=False)))
    assert not other.personal
    assert other.sent == other.trainable


def test_when_it_is_due() -> None:
    due = [n for n in range(1, 7) if personal.is_due(config(personal=DITTO), n)]
    assert due == [3, 4, 5, 6]
    assert [n for n in range(1, 7) if personal.is_due(config(personal=FINETUNE), n)] == [6]
    assert not any(personal.is_due(config(), n) for n in range(1, 7))


# ------------------------------------------------------------------------------- answers ----


def personally(change: Callable[[RoundOrder], RecordDict]) -> Callable[[RoundOrder], RecordDict]:
    """A site that is honest but where it trains for itself."""
    return lambda order: change(order) if order.personal else honest(order)


def with_tensors(order: RoundOrder) -> RecordDict:
    pull: AdapterState = state(3).select(order.trainable)
    return encode_update(replace(trained(order), delta=pull))


def charged_as_a_round(order: RoundOrder) -> RecordDict:
    entry = charge(replace(order, personal=False))
    return encode_update(replace(trained(order), charge=entry))


def uncharged(order: RoundOrder) -> RecordDict:
    return encode_update(replace(trained(order), charge=None))


def refusing(order: RoundOrder) -> RecordDict:
    return encode_refusal(Refusal(run="run", round=order.round, site="", code="HT401", reason="no"))


def failing(order: RoundOrder) -> RecordDict:
    raise ValueError("no")


BAD = {
    "tensors": (with_tensors, "rejected, keys"),
    "a charge of the run's own": (charged_as_a_round, "rejected, charge"),
    "no charge": (uncharged, "rejected, charge"),
    "a refusal": (refusing, "refused, HT401"),
    "an error": (failing, "failed"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_bad_answer_is_told_and_stops_nothing(name: str) -> None:
    change, words = BAD[name]
    settings = config(personal=DITTO)
    sound = strategy(settings, private=True).run(grid(), state(0))
    found = strategy(settings, private=True).run(grid(("movie", personally(change))), state(0))
    for row in found.history[2:]:
        assert row["personal"]["trained"] == ["amazon", "nyt"]
        assert words in row["personal"]["missing"]["movie"]
        assert row["accepted"] == list(NAMES)
        assert row["rejected"] == {}
    assert found.state.to_bytes() == sound.state.to_bytes()


def test_if_all_fail_the_run_still_ends_well() -> None:
    """There is no quorum of what no one else sees."""
    bad = [(name, personally(failing)) for name in NAMES]
    settings = config(personal=FINETUNE, simulation={"quorum": 3})
    result = strategy(settings, private=True).run(grid(*bad), state(0))
    assert result.history[-1]["personal"]["trained"] == []


# ------------------------------------------------------------------------------- charges ----


@pytest.mark.parametrize(
    ("how", "own"), [(FINETUNE, [(6, 5)]), (DITTO, [(n, 2) for n in (3, 4, 5, 6)])]
)
def test_charges_are_apart_from_the_rounds_and_all_count(
    how: dict[str, Any], own: list[tuple[int, int]]
) -> None:
    result = strategy(config(personal=how), private=True).run(grid(), state(0))
    for site in NAMES:
        rows = [LedgerEntry.from_dict(row) for row in result.charges[site]]
        found = [(e.round, e.event.steps) for e in rows if e.run == "run/personal"]
        assert found == own
        assert [e.round for e in rows if e.run == "run"] == [1, 2, 3, 4, 5, 6]
        told = result.history[-1]["epsilon"][site]
        events = [entry.event for entry in rows]
        add = Relation.ADD_OR_REMOVE_ONE
        assert told == pytest.approx(epsilon(events, delta=1e-5, relation=add))
        without = [entry.event for entry in rows if entry.run == "run"]
        assert told > epsilon(without, delta=1e-5, relation=add)


@pytest.mark.parametrize("how", [{}, FINETUNE, DITTO])
def test_a_plan_promises_for_the_personal_steps_too(how: dict[str, Any]) -> None:
    sizes = {"amazon": 300, "movie": 500}
    settings = RunConfig.model_validate(
        {
            "data": {"source": "demo", "public_sizes": sizes},
            "train": {"rounds": 6, "warmup_rounds": 2, "local_steps": 2},
            "privacy": {"delta": 1e-4},
            "personal": how,
        }
    )
    own = sum(steps for _, steps in personal_charges(settings))
    assert own == {"finetune": 5, "ditto": 8}.get(how.get("method", ""), 0)
    for plan in site_plans(settings).values():
        assert plan.steps == 12 + own
        events = [plan.event(2) for _ in range(6)]
        events += [plan.event(steps) for _, steps in personal_charges(settings)]
        spent = epsilon(events, delta=plan.delta, relation=plan.relation)
        assert 2.9 < spent <= 3.0
