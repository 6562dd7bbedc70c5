"""Rounds under trust = server: charges, resuming, secret draws, turns, drop-outs."""

from __future__ import annotations

import stat
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from hushtune.common.config import RunConfig
from hushtune.common.config_federation import AggregationConfig, MetricsConfig, SimulationConfig
from hushtune.common.config_privacy import PrivacyConfig, check_together
from hushtune.common.errors import CheckpointError, QuorumError
from hushtune.common.messages import RoundOrder
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.server import central
from hushtune.server import checkpoint as storage
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.strategy import FederatedStrategy, FederationResult, RoundResult

from .fake_grid import SPEC, FakeGrid, altered, honest, state

NAMES = tuple(f"c{place:02}" for place in range(12))


def settings(**others: Mapping[str, Any]) -> RunConfig:
    privacy = {"trust": "server", "unit": "client", "delta": 1e-3, "insecure_seeded_noise": True}
    train = {"rounds": 4, "warmup_rounds": 1, "local_steps": 2} | dict(others.pop("train", {}))
    data = {"source": "demo", "public_sizes": dict.fromkeys(NAMES, 50)}
    sections = {"data": data, "adapter": {"rank": SPEC.rank}, **others}
    return RunConfig.model_validate(
        {**sections, "train": train, "privacy": privacy | dict(others.get("privacy", {}))}
    )


def strategy(config: RunConfig, **others: Any) -> FederatedStrategy:
    made: dict[str, Any] = {
        "run": "run",
        "config": config,
        "config_hash": "c" * 64,
        "plans": site_plans(config),
        "sizes": config.data.public_sizes,
        "aggregator": make_aggregator(config.aggregation),
        "connect_timeout": 0.0,
    }
    return FederatedStrategy(**{**made, **others})


def grid(**bad: Any) -> FakeGrid:
    return FakeGrid(({name: honest for name in NAMES} | bad).items())


def run(config: RunConfig, network: FakeGrid | None = None, **others: Any) -> FederationResult:
    return strategy(config, **others).run(network or grid(), state(0))


def plan_of(config: RunConfig) -> PrivacyPlan:
    return site_plans(config)[NAMES[0]]


# -------------------------------------------------------------------------------- charges ----


def test_each_round_is_charged_to_the_server_in_a_chain_and_nothing_to_sites() -> None:
    config = settings()
    result = run(config)
    entries = [LedgerEntry.from_dict(row) for row in result.ledger]
    assert [entry.round for entry in entries] == [1, 2, 3, 4]
    assert [entry.previous for entry in entries] == [GENESIS, *(e.hash for e in entries[:-1])]
    assert {entry.unit for entry in entries} == {"client"}
    assert {entry.event for entry in entries} == {plan_of(config).event(1)}
    assert dict(result.charges) == {}
    spent = epsilon([e.event for e in entries], delta=1e-3, relation=plan_of(config).relation)
    assert spent <= 3.0
    assert result.history[-1]["epsilon"] == dict.fromkeys(NAMES, spent)


def test_the_charge_is_durable_before_anybody_looks_at_the_model(tmp_path: Path) -> None:
    seen: list[tuple[int, int, bool]] = []

    def look(outcome: RoundResult) -> dict[str, Any]:
        kept = storage.load(tmp_path)
        same = kept.state.digest() == outcome.state.digest()
        seen.append((kept.round, len(kept.ledger), same))
        return {}

    run(settings(), checkpoint_dir=tmp_path, on_round=look)
    assert seen == [(number, number, True) for number in range(1, 5)]


def test_a_run_that_was_stopped_noises_and_charges_no_released_round_again(tmp_path: Path) -> None:
    config = settings(privacy={"insecure_seeded_noise": False})

    def stop(outcome: RoundResult) -> dict[str, Any]:
        if outcome.round == 2:
            released.append(outcome.state.digest())
            raise KeyboardInterrupt
        return {}

    released: list[str] = []
    with pytest.raises(KeyboardInterrupt):
        run(config, checkpoint_dir=tmp_path, on_round=stop)
    kept = storage.load(tmp_path)
    assert (kept.round, len(kept.ledger), kept.state.digest()) == (2, 2, released[0])
    network = grid()
    result = strategy(config).run(network, state(0), resume=kept)
    assert sorted({order.round for order in network.orders}) == [3, 4]
    assert list(result.ledger[:2]) == list(kept.ledger)
    assert [row["round"] for row in result.ledger] == [1, 2, 3, 4]


def test_resuming_is_the_run_that_was_never_stopped(tmp_path: Path) -> None:
    for privacy in ({"adaptive_clipping": True}, {"client_turns": 3}):
        config = settings(privacy=privacy)
        whole = run(config)

        def stop(outcome: RoundResult) -> dict[str, Any]:
            if outcome.round == 2:
                raise KeyboardInterrupt
            return {}

        folder = tmp_path / next(iter(privacy))
        with pytest.raises(KeyboardInterrupt):
            run(config, checkpoint_dir=folder, on_round=stop)
        again = strategy(config).run(grid(), state(0), resume=storage.load(folder))
        assert again.state.digest() == whole.state.digest()
        assert again.ledger == whole.ledger


def test_a_server_s_ledger_that_lost_a_charge_is_no_checkpoint(tmp_path: Path) -> None:
    run(settings(), checkpoint_dir=tmp_path)
    kept = storage.load(tmp_path)
    storage.save(tmp_path, replace(kept, ledger=kept.ledger[1:]))
    with pytest.raises(CheckpointError, match="damaged"):
        storage.load(tmp_path)


# -------------------------------------------------------------------------- what is joined ----


def change(config: RunConfig, network: FakeGrid) -> torch.Tensor:
    moved = run(config, network).state - state(0)
    return torch.cat([tensor.flatten() for tensor in moved.tensors.values()])


def test_declared_sizes_and_weighting_are_nothing_to_it() -> None:
    one = {"train": {"rounds": 1, "warmup_rounds": 0}}
    sizes = {name: 10 ** (place % 5 + 1) for place, name in enumerate(NAMES)}
    by_size = settings(**one, data={"source": "demo", "public_sizes": sizes})
    assert torch.equal(change(settings(**one), grid()), change(by_size, grid()))


def test_a_drop_out_leaves_the_denominator_as_it_is() -> None:
    """With seeded noise two runs differ by the missing client's clipped change over 12 alone."""
    config = settings(train={"rounds": 1, "warmup_rounds": 0}, privacy={"clip_norm": 0.3})
    network = grid()
    network.silent = {NAMES[3]}
    moved = change(config, grid()) - change(config, network)
    assert moved.norm() == pytest.approx(config.privacy.clip_norm / 12, rel=1e-3)


@pytest.mark.parametrize(
    "bad",
    [
        altered(delta=float("nan") * state(1, ("head.bias", "head.weight", "layer.q.lora_B"))),
        altered(delta=state(1, ("head.bias",))),
        altered(num_examples=10**6),
    ],
    ids=["nan", "missing", "size"],
)
def test_a_bad_update_is_left_out_and_told(bad: Any) -> None:
    config = settings(train={"rounds": 1, "warmup_rounds": 0})
    result = run(config, grid(c03=bad))
    assert list(result.history[0]["rejected"]) == ["c03"]
    assert len(result.history[0]["accepted"]) == 11
    assert len(result.ledger) == 1


def test_too_many_failures_stop_the_run_and_charge_nothing(tmp_path: Path) -> None:
    config = settings(simulation={"quorum": 11})
    network = grid()
    network.silent = {NAMES[0]}
    assert len(run(config, network).ledger) == 4
    network.silent = set(NAMES[:2])
    with pytest.raises(QuorumError):
        run(config, network, checkpoint_dir=tmp_path)
    assert storage.load(tmp_path).ledger == ()


def test_the_clip_norm_moves_and_is_told() -> None:
    result = run(settings(privacy={"adaptive_clipping": True, "clip_norm": 5.0}))
    norms = [row["clip_norm"] for row in result.history]
    assert norms[0] == 5.0
    assert len(set(norms)) == 4
    fixed = run(settings())
    assert {row["clip_norm"] for row in fixed.history} == {1.0}


# --------------------------------------------------------------------------- who takes part ----


def test_draws_are_poisson_and_from_no_seed() -> None:
    config = settings(privacy={"client_sampling_probability": 0.3, "insecure_seeded_noise": False})
    orders: dict[str, RoundOrder] = dict.fromkeys(NAMES)  # type: ignore[arg-type]
    counts = [len(central.drawn(orders, config, round=1)) for _ in range(4000)]
    mean = sum(counts) / len(counts)
    variance = sum((count - mean) ** 2 for count in counts) / len(counts)
    assert mean == pytest.approx(12 * 0.3, abs=0.15)
    assert variance == pytest.approx(12 * 0.3 * 0.7, rel=0.15)  # a fixed number would have none
    assert len(set(counts)) > 6


def test_who_was_drawn_is_in_nothing_that_is_kept(tmp_path: Path) -> None:
    config = settings(privacy={"client_sampling_probability": 0.5})
    network = grid(c05=altered(num_examples=1))
    result = run(config, network, checkpoint_dir=tmp_path)
    per_round = {n: [o.site for o in network.orders if o.round == n] for n in range(1, 5)}
    assert len({tuple(sites) for sites in per_round.values()}) > 1
    for row in result.history:
        assert (row["accepted"], row["rejected"]) == ([], {})
        assert row["bytes_up"] == row["bytes_down"] == 0
        assert set(row["noise"]) == {central.SERVER}
        assert set(row["epsilon"]) == set(NAMES)
    assert dict(result.refusals) == {}
    assert {e["event"]["sampling_probability"] for e in result.ledger} == {0.5}
    assert plan_of(config).denominator == 6.0


def test_an_error_names_no_client_that_was_drawn() -> None:
    config = settings(
        privacy={"client_sampling_probability": 0.5, "insecure_seeded_noise": False},
        simulation={"quorum": 11},
    )
    network = grid()
    network.silent = set(NAMES)
    with pytest.raises(QuorumError) as caught:
        run(config, network)
    assert f"{central.UNNAMED} (1 of " in str(caught.value)
    assert "no answer" in str(caught.value)
    assert not [name for name in NAMES if name in str(caught.value)]


def test_a_round_in_which_nobody_is_drawn_is_one_like_any_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hushtune.common.privacy.batch.LEAST_BATCH", 0.0)
    config = settings(privacy={"client_sampling_probability": 1e-6})
    network = grid()
    result = run(config, network)
    assert network.orders == []
    assert len(result.ledger) == 4
    assert all(row["update_norm"] > 0 for row in result.history)


def test_turns_are_fixed_and_the_whole_run_is_one_charge(tmp_path: Path) -> None:
    config = settings(train={"rounds": 6, "warmup_rounds": 2}, privacy={"client_turns": 3})
    network = grid()
    modes: list[int] = []

    def look(outcome: RoundResult) -> dict[str, Any]:
        modes.append(stat.S_IMODE((tmp_path / storage.FILE).stat().st_mode))
        return {}

    result = run(config, network, checkpoint_dir=tmp_path, on_round=look)
    for number in range(1, 7):
        asked = [order.site for order in network.orders if order.round == number]
        assert asked == list(NAMES[(number - 1) % 3 :: 3])
    assert [row["round"] for row in result.ledger] == [1]
    event = LedgerEntry.from_dict(result.ledger[0]).event
    assert (event.sampling_probability, event.steps) == (1.0, 1)
    assert event == plan_of(config).event(1)
    assert plan_of(config).denominator == 4.0
    assert epsilon([event], delta=1e-3, relation=plan_of(config).relation) <= 3.0
    # Noise that a later round takes back is secret, and gone once no later round does.
    assert modes == [0o600] * 5 + [0o644]
    assert storage.load(tmp_path).central is not None
    assert storage.load(tmp_path).central.noises == ()  # type: ignore[union-attr]


def test_a_rule_that_is_no_function_of_the_sum_is_refused() -> None:
    config = settings()
    rule = AggregationConfig.model_construct(rule="flora")  # type: ignore[arg-type]
    with pytest.raises(Exception, match="needs more"):
        check_together(
            config.privacy, rule, SimulationConfig(), MetricsConfig(), rounds=config.train.rounds
        )


@pytest.mark.parametrize(
    ("sections", "reason"),
    [
        ({"simulation": {"sites_per_round": 3}}, "follows from the seed"),
        ({"metrics": {"release": "noised"}}, "not covered by the noise"),
        ({"privacy": {"client_turns": 9}}, "never have a turn"),
        ({"privacy": {"client_turns": 2, "adaptive_clipping": True}}, "takes back"),
        ({"privacy": {"client_turns": 2, "client_sampling_probability": 0.5}}, "either take turns"),
        ({"privacy": {"unit": "example"}}, "unit of privacy"),
    ],
)
def test_what_does_not_go_together_is_refused_with_the_reason(
    sections: Mapping[str, Any], reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        settings(**sections)


@pytest.mark.parametrize(
    "key", ["client_sampling_probability = 0.5", "client_turns = 2", "adaptive_clipping = true"]
)
def test_settings_of_a_trusted_server_are_refused_elsewhere(key: str) -> None:
    import tomllib

    with pytest.raises(ValueError, match="trusted server"):
        PrivacyConfig.model_validate(tomllib.loads(key))


def test_a_site_that_shows_a_charge_is_rejected() -> None:
    def charging(order: RoundOrder) -> Any:
        entry = LedgerEntry.after(
            0, GENESIS, dataset="d", run="run", round=1, unit="client", event=order.plan.event(1)
        )
        return altered(charge=entry)(order)

    result = run(settings(train={"rounds": 1, "warmup_rounds": 0}), grid(c01=charging))
    assert "charge" in result.history[0]["rejected"]["c01"]
    assert dict(result.charges) == {}
