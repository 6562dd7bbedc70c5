"""The strategy over real Flower messages: honest sites, bad sites, quorum, resume."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from flwr.app import ArrayRecord, ConfigRecord, RecordDict

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import (
    CheckpointError,
    ConfigError,
    FederationError,
    MessageError,
    QuorumError,
)
from hushtune.common.messages import Refusal, RoundOrder, encode_refusal, encode_update
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.server import checkpoint as storage
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.orders import chosen_sites
from hushtune.server.strategy import FederatedStrategy, FederationResult, from_arrays, to_arrays

from .fake_grid import FakeGrid, Train, altered, charge, config, honest, plan, state, trained

NAMES = ("amazon", "movie", "nyt")


def strategy(
    settings: RunConfig | None = None,
    *,
    names: tuple[str, ...] = NAMES,
    private: bool = False,
    **others: Any,
) -> FederatedStrategy:
    settings = settings or config()
    made = {
        "run": "run",
        "config": settings,
        "config_hash": "c" * 64,
        "plans": {name: plan(private=private) for name in reversed(names)},
        "sizes": {name: 100 + 10 * place for place, name in enumerate(names)},
        "aggregator": make_aggregator(settings.aggregation),
        "connect_timeout": 0.0,
    }
    return FederatedStrategy(**{**made, **others})


def grid(*bad: tuple[str, Train], names: tuple[str, ...] = NAMES, **others: Any) -> FakeGrid:
    sites = {name: honest for name in names} | dict(bad)
    return FakeGrid(sites.items(), **others)


def run(
    settings: RunConfig | None = None, *bad: tuple[str, Train], **others: Any
) -> FederationResult:
    return strategy(settings, **others).run(grid(*bad), state(0))


def timeless(row: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in row.items() if key != "seconds"}


# ----------------------------------------------------------------------------- honest sites ----


def test_a_round_is_the_weighted_mean_of_the_sites() -> None:
    settings = config(train={"rounds": 1, "warmup_rounds": 0})
    network = grid()
    result = strategy(settings).run(network, state(0))
    assert [order.site for order in network.orders] == list(NAMES)
    deltas = [trained(order).delta for order in network.orders]
    mean = (100 / 330) * deltas[0] + (110 / 330) * deltas[1] + (120 / 330) * deltas[2]
    expected = state(0).merge(state(0).select(mean.keys) + mean)
    assert (result.state - expected).norm() < 1e-6
    assert result.history[0]["update_norm"] == pytest.approx(mean.norm(), rel=1e-5)


def test_orders_follow_the_phases_and_the_schedule() -> None:
    network = grid(names=("movie",))
    settings = config(train={"learning_rate": 0.5, "warmup_learning_rate": 0.25})
    strategy(settings, names=("movie",)).run(network, state(0))
    seen = [
        (o.round, o.training.learning_rate, o.training.first_step, o.training.schedule_steps)
        for o in network.orders
    ]
    assert seen == [
        (1, 0.25, 0, 4),
        (2, 0.25, 2, 4),
        (3, 0.5, 0, 8),
        (4, 0.5, 2, 8),
        (5, 0.5, 4, 8),
        (6, 0.5, 6, 8),
    ]
    assert [len(order.trainable) for order in network.orders] == [2, 2, 3, 3, 3, 3]


def test_frozen_tensors_never_move() -> None:
    result = run()
    key = "layer.q.lora_A"
    assert torch.equal(result.state.tensors[key], state(0).tensors[key])


def test_rows_of_the_history() -> None:
    result = run(on_round=lambda outcome: {"accuracy": outcome.round / 10})
    assert [row["round"] for row in result.history] == [1, 2, 3, 4, 5, 6]
    assert [row["phase"] for row in result.history] == ["warmup"] * 2 + ["adapter"] * 4
    row = result.history[2]
    assert row["accepted"] == list(NAMES)
    assert (row["rejected"], row["accuracy"]) == ({}, 0.3)
    assert row["epsilon"] == dict.fromkeys(NAMES)
    assert row["bytes_down"] > row["bytes_up"] > 3 * 4 * (3 + 15 + 14)
    assert set(row["seconds"]) == {"training", "aggregation", "checkpoint"}
    assert set(result.seconds) >= {"training", "aggregation", "checkpoint", "total"}


def test_two_runs_are_equal_bit_for_bit() -> None:
    one, other = run(), run()
    assert one.state.digest() == other.state.digest()
    assert [timeless(r) for r in one.history] == [timeless(r) for r in other.history]


def test_nodes_in_another_order_change_nothing() -> None:
    shuffled = FakeGrid([(name, honest) for name in ("nyt", "amazon", "movie")])
    assert strategy().run(shuffled, state(0)).state.digest() == run().state.digest()


def test_the_global_random_state_is_neither_read_nor_moved() -> None:
    settings = config(simulation={"sites_per_round": 2})
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    digest = run(settings).state.digest()
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert run(settings).state.digest() == digest


def test_sampling_of_sites_is_seeded_and_without_replacement() -> None:
    settings = config(simulation={"sites_per_round": 2}, train={"rounds": 40})
    drawn = [chosen_sites(settings, NAMES, round=r) for r in range(1, 41)]
    assert drawn == [chosen_sites(settings, NAMES[::-1], round=r) for r in range(1, 41)]
    assert all(len(set(sites)) == 2 and list(sites) == sorted(sites) for sites in drawn)
    assert len(set(drawn)) == 3
    other = settings.model_copy(update={"seed": 1})
    assert drawn != [chosen_sites(other, NAMES, round=r) for r in range(1, 41)]
    assert [row["accepted"] for row in run(settings).history] == [list(s) for s in drawn]


# ---------------------------------------------------------------------------------- privacy ----


def spent(steps: int) -> float:
    event = DpSgdEvent(sampling_probability=0.1, noise_multiplier=2.0, steps=steps)
    return epsilon([event], delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE)


def test_epsilon_adds_up_over_the_rounds() -> None:
    result = run(private=True)
    by_round = [row["epsilon"]["nyt"] for row in result.history]
    assert by_round == [pytest.approx(spent(2 * r)) for r in range(1, 7)]
    assert [row["round"] for row in result.charges["nyt"]] == [1, 2, 3, 4, 5, 6]


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_encoding_that_was_ordered_is_taken_and_float32_then_is_not(encoding: str) -> None:
    asked = config(aggregation={"encoding": encoding}, train={"rounds": 1})
    (row,) = run(asked, ("nyt", altered(encoding="float32"))).history
    assert row["accepted"] == ["amazon", "movie"]
    assert row["rejected"] == {"nyt": "rejected, encoding: float32"}


def test_the_charge_of_a_rejected_update_counts() -> None:
    result = run(None, ("nyt", altered(num_examples=7)), private=True)
    row = result.history[-1]
    assert row["rejected"]["nyt"].startswith("rejected, num_examples: 7")
    assert row["epsilon"]["nyt"] == row["epsilon"]["movie"] == pytest.approx(spent(12))


def test_a_charge_that_is_shown_again_counts_once() -> None:
    first: list[RoundOrder] = []

    def stale(order: RoundOrder) -> RecordDict:
        first.append(order)
        return encode_update(replace(trained(order), charge=charge(first[0])))

    result = run(None, ("nyt", stale), private=True)
    assert len(result.charges["nyt"]) == 1
    assert result.history[0]["accepted"] == list(NAMES)
    assert result.history[1]["rejected"]["nyt"].startswith("rejected, charge")
    assert result.history[-1]["epsilon"]["nyt"] == pytest.approx(spent(2))


def test_a_charge_of_more_than_was_ordered_is_rejected_and_counted() -> None:
    def greedy(order: RoundOrder) -> RecordDict:
        asked = replace(order, local_steps=4)
        return encode_update(replace(trained(order), charge=charge(asked)))

    result = run(config(train={"rounds": 1}), ("nyt", greedy), private=True)
    assert result.history[0]["epsilon"]["nyt"] == pytest.approx(spent(4))


def test_a_charge_that_no_plan_could_hold_does_not_reach_the_accountant() -> None:
    def absurd(order: RoundOrder) -> RecordDict:
        event = DpSgdEvent(sampling_probability=1.0, noise_multiplier=1e-300, steps=2**50)
        entry = charge(order)
        assert entry is not None
        entry = replace(entry, event=event)
        entry = replace(entry, hash=entry.content_hash())
        return encode_update(replace(trained(order), charge=entry))

    result = run(config(train={"rounds": 1}), ("nyt", absurd), private=True)
    assert result.history[0]["rejected"]["nyt"].startswith("rejected, charge")
    assert "nyt" not in result.charges


# -------------------------------------------------------------------------------- bad sites ----


def fails(order: RoundOrder) -> RecordDict:
    raise ValueError("disk on fire")


def refuses(order: RoundOrder) -> RecordDict:
    reason = f"round {order.round} would exceed the budget"
    refusal = Refusal(
        run=order.run, round=order.round, site=order.site, code="HT401", reason=reason
    )
    return encode_refusal(refusal)


def not_a_number(order: RoundOrder) -> RecordDict:
    update = trained(order)
    return encode_update(replace(update, delta=update.delta.map(lambda t: t * torch.nan)))


def wrong_shape(order: RoundOrder) -> RecordDict:
    update = trained(order)
    return encode_update(replace(update, delta=update.delta.map(torch.t)))


def huge(order: RoundOrder) -> RecordDict:
    update = trained(order)
    return encode_update(replace(update, delta=1e6 * update.delta))


BAD: list[tuple[Train, str]] = [
    (fails, "failed: disk on fire"),
    (refuses, "refused, HT401: round 1"),
    (not_a_number, "rejected, "),
    (wrong_shape, "rejected, shape: head.weight (5, 3)"),
    (huge, "rejected, norm: "),
    (altered(round=9), "rejected, round: 9"),
    (altered(run="other"), "rejected, run: other"),
    (altered(site="movie"), "rejected, site: movie"),
    (altered(encoding="int8"), "rejected, encoding: int8"),
    (lambda order: RecordDict(), "rejected, message: "),
    (lambda order: RecordDict({"hushtune": ConfigRecord({"json": "[1"})}), "rejected, message: "),
]


@pytest.mark.parametrize(("bad", "reason"), BAD)
def test_the_run_goes_on_without_a_bad_site(bad: Train, reason: str) -> None:
    result = run(config(train={"rounds": 2, "warmup_rounds": 1}), ("nyt", bad))
    for row in result.history:
        assert row["accepted"] == ["amazon", "movie"]
    assert result.history[0]["rejected"]["nyt"].startswith(reason)
    without = strategy(config(train={"rounds": 2, "warmup_rounds": 1}))
    network = grid()
    network.silent = {"nyt"}
    assert without.run(network, state(0)).state.digest() == result.state.digest()


def test_a_site_that_does_not_answer_is_left_out() -> None:
    network = grid()
    network.silent = {"movie"}
    result = strategy().run(network, state(0))
    assert {row["rejected"]["movie"] for row in result.history} == {"no answer"}


def test_of_two_replies_of_a_site_one_counts() -> None:
    doubled = strategy(config(train={"rounds": 1})).run(grid(twice=["movie"]), state(0))
    assert doubled.history[0]["accepted"] == list(NAMES)
    first_kept = run(config(train={"rounds": 1}))
    assert doubled.state.digest() == first_kept.state.digest()


def test_refusals_are_listed_and_the_site_is_asked_again() -> None:
    def tired(order: RoundOrder) -> RecordDict:
        return refuses(order) if order.round in (2, 3, 5) else honest(order)

    result = run(None, ("nyt", tired))
    assert list(result.refusals) == ["nyt"]
    assert [row["round"] for row in result.refusals["nyt"]] == [2, 3, 5]
    assert {row["code"] for row in result.refusals["nyt"]} == {"HT401"}
    assert "nyt" in result.history[-1]["accepted"]


def test_what_a_site_says_cannot_fill_the_disk() -> None:
    def chatty(order: RoundOrder) -> RecordDict:
        reason = "x" * 10**6
        return encode_refusal(Refusal(run="", round=0, site="", code="HT000", reason=reason))

    result = run(config(train={"rounds": 1}), ("nyt", chatty))
    assert len(str(result.history)) + len(str(result.refusals)) < 5000


def test_below_the_quorum_every_reason_is_named(tmp_path: Path) -> None:
    settings = config(simulation={"quorum": 2})
    federated = strategy(settings, checkpoint_dir=tmp_path)

    def late_failure(order: RoundOrder) -> RecordDict:
        return fails(order) if order.round == 3 else honest(order)

    def late_nan(order: RoundOrder) -> RecordDict:
        return wrong_shape(order) if order.round == 3 else honest(order)

    network = grid(("movie", late_failure), ("nyt", late_nan))
    with pytest.raises(QuorumError) as caught:
        federated.run(network, state(0))
    for words in ("round 3", "movie: failed: disk on fire", "nyt: rejected, shape", "at least 2"):
        assert words in str(caught.value)
    assert storage.load(tmp_path).round == 2


# -------------------------------------------------------------------------------- roll call ----


def test_a_missing_site_is_named_and_the_rest_goes_on() -> None:
    network = FakeGrid([("amazon", honest), ("movie", honest)])
    result = strategy().run(network, state(0))
    assert {row["rejected"]["nyt"] for row in result.history} == {"not connected"}


def test_too_few_sites_at_the_start() -> None:
    settings = config(simulation={"quorum": 3})
    with pytest.raises(QuorumError, match="missing: nyt"):
        strategy(settings).run(FakeGrid([("amazon", honest), ("movie", honest)]), state(0))


def test_nobody_is_there() -> None:
    with pytest.raises(QuorumError, match="amazon, movie, nyt"):
        strategy().run(FakeGrid([]), state(0))


def test_two_nodes_of_one_site() -> None:
    network = FakeGrid([("amazon", honest), ("movie", honest), ("movie", honest)])
    with pytest.raises(FederationError, match="two nodes say that they are site movie"):
        strategy().run(network, state(0))


def test_an_unknown_site_is_named() -> None:
    network = FakeGrid([*((name, honest) for name in NAMES), ("atlantis", honest)])
    with pytest.raises(FederationError, match="atlantis"):
        strategy().run(network, state(0))


# ----------------------------------------------------------------------------------- resume ----


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi", "adagrad"])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    tmp_path: Path, optimizer: str, stop: int
) -> None:
    settings = config(
        aggregation={"optimizer": optimizer, "learning_rate": 0.5},
        simulation={"sites_per_round": 2},
    )
    whole = run(settings)

    def interrupted(outcome: Any) -> dict[str, Any]:
        if outcome.round == stop + 1:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(settings, checkpoint_dir=tmp_path, on_round=interrupted)
    resume = storage.load(tmp_path, config_hash="c" * 64)
    assert resume.round == stop
    network = grid()
    again = strategy(settings, checkpoint_dir=tmp_path).run(network, state(0), resume=resume)
    assert {order.round for order in network.orders} == set(range(stop + 1, 7))
    assert again.state.digest() == whole.state.digest()
    assert [timeless(r) for r in again.history] == [timeless(r) for r in whole.history]


def test_a_stop_in_the_first_round_can_be_resumed(tmp_path: Path) -> None:
    def interrupted(order: RoundOrder) -> RecordDict:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(None, ("movie", interrupted), checkpoint_dir=tmp_path)
    resume = storage.load(tmp_path)
    assert resume.round == 0
    again = strategy(checkpoint_dir=tmp_path).run(grid(), state(0), resume=resume)
    assert again.state.digest() == run().state.digest()


def test_charges_and_refusals_go_on_over_a_stop(tmp_path: Path) -> None:
    def tired(order: RoundOrder) -> RecordDict:
        return refuses(order) if order.round in (2, 5) else honest(order)

    whole = run(None, ("nyt", tired), private=True)

    def interrupted(outcome: Any) -> dict[str, Any]:
        if outcome.round == 4:
            raise KeyboardInterrupt
        return {}

    with pytest.raises(KeyboardInterrupt):
        run(None, ("nyt", tired), private=True, checkpoint_dir=tmp_path, on_round=interrupted)
    again = strategy(private=True).run(
        grid(("nyt", tired)), state(0), resume=storage.load(tmp_path)
    )
    assert (again.charges, again.refusals) == (whole.charges, whole.refusals)
    assert again.history[-1]["epsilon"] == whole.history[-1]["epsilon"]


def test_a_finished_run_resumes_to_itself(tmp_path: Path) -> None:
    done = run(checkpoint_dir=tmp_path)
    again = strategy().run(FakeGrid([]), state(0), resume=storage.load(tmp_path))
    assert (again.state.digest(), again.history) == (done.state.digest(), done.history)


def test_the_row_in_the_checkpoint_is_the_whole_row(tmp_path: Path) -> None:
    done = run(checkpoint_dir=tmp_path, on_round=lambda outcome: {"accuracy": 0.5})
    assert storage.load(tmp_path).history == done.history
    assert done.history[0]["accuracy"] == 0.5


@pytest.mark.parametrize("change", [{"run": "x"}, {"config_hash": "x"}])
def test_a_checkpoint_of_another_run(tmp_path: Path, change: dict[str, str]) -> None:
    run(checkpoint_dir=tmp_path)
    resume = storage.load(tmp_path)
    with pytest.raises(CheckpointError, match="another"):
        strategy(**change).run(grid(), state(0), resume=resume)


def test_a_checkpoint_of_another_adapter(tmp_path: Path) -> None:
    run(checkpoint_dir=tmp_path)
    other = state(0)
    other = AdapterState(replace(other.spec, base="0" * 64), other.tensors)
    with pytest.raises(CheckpointError, match="another adapter"):
        strategy().run(grid(), other, resume=storage.load(tmp_path))


# ----------------------------------------------------------- settings and Flower's interface ----


def test_settings_that_cannot_be() -> None:
    with pytest.raises(ConfigError, match="quorum"):
        strategy(config(simulation={"quorum": 4}))
    with pytest.raises(ConfigError, match="sites_per_round"):
        strategy(config(simulation={"sites_per_round": 4}))
    with pytest.raises(ConfigError, match="public size"):
        strategy(sizes={"movie": 1})


@pytest.mark.parametrize(
    ("aggregation", "sites_per_round", "least"),
    [
        ({"estimate": "krum", "faulty_sites": 1}, 0, 5),
        ({"estimate": "multi_krum", "faulty_sites": 1}, 0, 5),
        ({"estimate": "bulyan", "faulty_sites": 1}, 0, 7),
        ({"estimate": "trimmed_mean", "faulty_sites": 2}, 0, 5),
        ({"estimate": "median", "faulty_sites": 2}, 0, 5),
        ({"estimate": "krum"}, 2, 3),
    ],
)
def test_sites_that_are_too_few_for_the_estimate(
    aggregation: dict[str, Any], sites_per_round: int, least: int
) -> None:
    asked = config(aggregation=aggregation, simulation={"sites_per_round": sites_per_round})
    with pytest.raises(ConfigError, match=r"too few for aggregation\.estimate") as caught:
        strategy(asked)
    assert caught.value.expected == f"at least {least} sites"


def test_a_round_that_is_too_small_for_the_estimate_leaves_the_one_before(tmp_path: Path) -> None:
    def tired(order: RoundOrder) -> RecordDict:
        return refuses(order) if order.round == 4 else honest(order)

    asked = config(aggregation={"estimate": "krum"})
    with pytest.raises(FederationError, match="krum needs more updates than came"):
        run(asked, ("nyt", tired), checkpoint_dir=tmp_path)
    kept = storage.load(tmp_path)
    assert kept.round == 3
    again = strategy(asked).run(grid(), state(0), resume=kept)
    assert again.state.digest() == run(asked).state.digest()


def test_a_faulty_site_does_not_move_a_robust_run() -> None:
    def wild(order: RoundOrder) -> RecordDict:
        delta = trained(order).delta
        return encode_update(replace(trained(order), delta=(500 / delta.norm()) * delta))

    names = ("amazon", "movie", "nyt", "old", "zoo")
    moved = {}
    for estimate in ("mean", "median", "geometric_median", "krum"):
        asked = config(aggregation={"estimate": estimate, "weighting": "uniform"})
        network = grid(("nyt", wild), names=names)
        result = strategy(asked, names=names).run(network, state(0))
        honest_run = strategy(asked, names=names).run(grid(names=names), state(0))
        moved[estimate] = (result.state - honest_run.state).norm()
    assert moved.pop("mean") > 10
    assert max(moved.values()) < 1


def test_a_partial_adapter_is_no_start() -> None:
    with pytest.raises(FederationError, match="complete"):
        strategy().run(grid(), state(0, ["head.bias"]))


def test_start_is_run_behind_flowers_signature() -> None:
    result = strategy().start(grid(), to_arrays(state(0)))
    assert from_arrays(result.arrays).digest() == run().state.digest()


@pytest.mark.parametrize(
    "given",
    [
        {"num_rounds": 3},
        {"timeout": 1.0},
        {"train_config": ConfigRecord()},
        {"evaluate_config": ConfigRecord()},
        {"evaluate_fn": lambda number, arrays: None},
    ],
)
def test_start_takes_nothing_that_the_configuration_decides(given: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(given))):
        strategy().start(grid(), to_arrays(state(0)), **given)


def test_flowers_own_loop_is_closed_and_no_site_evaluates() -> None:
    federated, network = strategy(), grid()
    with pytest.raises(FederationError, match="configure_train is closed"):
        federated.configure_train(1, ArrayRecord(), ConfigRecord(), network)
    with pytest.raises(FederationError, match="aggregate_train is closed"):
        federated.aggregate_train(1, [])
    assert list(federated.configure_evaluate(1, ArrayRecord(), ConfigRecord(), network)) == []
    assert federated.aggregate_evaluate(1, []) is None
    with pytest.raises(MessageError, match="no adapter"):
        from_arrays(ArrayRecord())


def test_an_estimate_that_guards_against_nobody_says_so(caplog: pytest.LogCaptureFixture) -> None:
    run(config(aggregation={"estimate": "krum"}))
    assert "'krum' guards against nobody here: of 3 updates a round it withstands 0" in caplog.text
    caplog.clear()
    run(config(aggregation={"estimate": "median"}))
    assert "guards" not in caplog.text
