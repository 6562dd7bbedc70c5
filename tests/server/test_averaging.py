"""The average of iterates: its formula, what it is shown to, and that training does not see it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.server import checkpoint as storage
from hushtune.server import distributed, federation
from hushtune.server.aggregation.averaging import AVERAGE, follow, shown
from hushtune.server.aggregation.optimizers import AggState, sgd
from hushtune.server.joined import Joined
from hushtune.server.metrics import Released
from hushtune.server.strategy import FederationResult, RoundResult

from . import test_central as central
from .fake_grid import SHAPES, config, state
from .test_robust import flat
from .test_strategy import grid, strategy, timeless

HEAD = ("head.bias", "head.weight")
B = "layer.q.lora_B"


def settings(average: float, **others: Any) -> RunConfig:
    aggregation = {"average": average} | others.pop("aggregation", {})
    return config(aggregation=aggregation, **others)


def run(asked: RunConfig, **others: Any) -> tuple[FederationResult, dict[int, AdapterState]]:
    """The result, and what was shown after each round."""
    seen: dict[int, AdapterState] = {}

    def look(outcome: RoundResult) -> dict[str, Any]:
        seen[outcome.round] = outcome.state
        return {"digest": outcome.state.digest()}

    return strategy(asked, on_round=look, **others).run(grid(), state(0)), seen


def closed_formula(iterates: list[AdapterState], decay: float) -> np.ndarray:
    weights = np.array([decay ** (len(iterates) - 1 - i) for i in range(len(iterates))])
    return weights @ np.array([flat(iterate) for iterate in iterates]) / weights.sum()


@given(st.floats(0.01, 0.999), st.integers(1, 12))
def test_it_is_the_closed_formula(decay: float, rounds: int) -> None:
    start = state(0)
    memory = sgd(1.0).init(start)
    iterates = [state(seed) for seed in range(1, rounds + 1)]
    for count, now in enumerate(iterates, start=1):
        memory = follow(memory, AggState(count, {}), now, trained=SHAPES, decay=decay)
        assert (memory.averaged, memory.step) == (count, count)
    got = flat(shown(memory, iterates[-1]))
    np.testing.assert_allclose(got, closed_formula(iterates, decay), atol=1e-5)


def test_the_first_of_a_phase_is_the_iterate_itself_bit_for_bit() -> None:
    memory = follow(AggState(0, {}), AggState(1, {}), state(1), trained=HEAD, decay=0.9)
    assert shown(memory, state(1)).digest() == state(1).digest()
    memory = follow(memory, AggState(2, {}), state(2), trained=HEAD, decay=0.9)
    assert shown(memory, state(2)).digest() != state(2).digest()
    memory = follow(memory, AggState(3, {}), state(3), trained=(*HEAD, B), decay=0.9)
    assert memory.averaged == 1
    assert memory.moments[AVERAGE].keys == (*HEAD, B)
    assert shown(memory, state(3)).digest() == state(3).digest()


def test_where_factors_take_turns_it_begins_once_for_each_and_goes_on() -> None:
    a, b = (*HEAD, "layer.q.lora_A"), (*HEAD, B)
    memory, counts = AggState(0, {}), list[int]()
    for number, trained in enumerate([b, a, b, a, HEAD, b], start=1):
        memory = follow(memory, AggState(number, {}), state(number), trained=trained, decay=0.5)
        counts.append(memory.averaged)
    assert counts == [1, 1, 2, 3, 4, 5]
    expected = closed_formula([state(number) for number in range(2, 7)], 0.5)
    np.testing.assert_allclose(flat(shown(memory, state(6))), expected, atol=1e-6)


def test_other_moments_stay() -> None:
    after = AggState(1, {"first": state(5)})
    memory = follow(AggState(0, {}), after, state(1), trained=SHAPES, decay=0.9)
    assert memory.moments["first"].digest() == state(5).digest()
    assert follow(AggState(0, {}), after, state(1), trained=SHAPES, decay=0.0) is after


# -------------------------------------------------------------------------------- in a run ----


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi", "adagrad"])
def test_training_goes_on_from_the_iterate_and_the_average_is_shown(optimizer: str) -> None:
    others = {"aggregation": {"optimizer": optimizer, "learning_rate": 0.5}}
    plain, iterates = run(settings(0.0, **others))
    averaged, seen = run(settings(0.8, **others))
    for number in range(1, 7):
        begun = 1 if number <= 2 else 3  # rounds 1 and 2 are the warm-up
        phase = [iterates[k] for k in range(begun, number + 1)]
        np.testing.assert_allclose(flat(seen[number]), closed_formula(phase, 0.8), atol=1e-5)
    assert averaged.state.digest() == seen[6].digest()
    assert plain.state.digest() == iterates[6].digest() != averaged.state.digest()
    norms = [[row["update_norm"] for row in result.history] for result in (plain, averaged)]
    assert norms[0] == norms[1]


def test_sites_are_sent_the_iterate() -> None:
    digests = []
    for average in (0.0, 0.9):
        network = grid()
        strategy(settings(average)).run(network, state(0))
        digests.append([order.adapter.digest() for order in network.orders])
    assert digests[0] == digests[1]


def test_without_it_nothing_is_kept_and_nothing_changes(tmp_path: Path) -> None:
    default, seen = run(config(), checkpoint_dir=tmp_path / "default")
    off, same = run(settings(0.0), checkpoint_dir=tmp_path / "off")
    assert default.state.digest() == off.state.digest() == seen[6].digest() == same[6].digest()
    kept = storage.load(tmp_path / "off")
    assert (dict(kept.agg.moments), kept.agg.averaged) == ({}, 0)
    assert kept.shown is kept.state


@pytest.mark.parametrize("optimizer", ["sgd", "momentum", "adam", "yogi", "adagrad"])
@pytest.mark.parametrize("stop", [1, 2, 3, 5])
def test_a_resumed_run_is_the_run_that_was_never_stopped(
    tmp_path: Path, optimizer: str, stop: int
) -> None:
    asked = settings(0.7, aggregation={"optimizer": optimizer, "learning_rate": 0.5})
    whole, seen = run(asked)

    def interrupted(outcome: RoundResult) -> dict[str, Any]:
        if outcome.round == stop + 1:
            raise KeyboardInterrupt
        return {"digest": outcome.state.digest()}

    with pytest.raises(KeyboardInterrupt):
        strategy(asked, checkpoint_dir=tmp_path, on_round=interrupted).run(grid(), state(0))
    kept = storage.load(tmp_path)
    assert kept.round == stop
    assert kept.shown.digest() == seen[stop].digest()
    later: dict[int, str] = {}

    def look(outcome: RoundResult) -> dict[str, Any]:
        later[outcome.round] = outcome.state.digest()
        return {"digest": later[outcome.round]}

    again = strategy(asked, on_round=look).run(grid(), state(0), resume=kept)
    assert later == {number: seen[number].digest() for number in range(stop + 1, 7)}
    assert again.state.digest() == whole.state.digest()
    assert [timeless(r) for r in again.history] == [timeless(r) for r in whole.history]


def test_a_finished_run_hands_out_its_average_again(tmp_path: Path) -> None:
    whole, _ = run(settings(0.7), checkpoint_dir=tmp_path)
    kept = storage.load(tmp_path)
    again = strategy(settings(0.7)).run(grid(), state(0), resume=kept)
    assert again.state.digest() == whole.state.digest() == kept.shown.digest()
    assert kept.state.digest() != kept.shown.digest()


def test_sites_tell_figures_of_the_average(monkeypatch: pytest.MonkeyPatch) -> None:
    asked_for: dict[int, str] = {}

    def ask(grid: object, state: AdapterState, *, round: int, **others: object) -> Released:
        asked_for[round] = state.digest()
        return Released({}, {}, {})

    monkeypatch.setattr(federation, "ask_for_metrics", ask)
    asked = settings(
        0.7,
        metrics={"release": "noised", "every": 1},
        data={"source": "demo", "validation_fraction": 0.2},
    )
    _, seen = run(asked)
    assert asked_for == {number: state.digest() for number, state in seen.items()}


def test_with_the_noise_at_the_server() -> None:
    plain: dict[int, AdapterState] = {}
    averaged: dict[int, AdapterState] = {}
    found = [
        central.run(central.settings(aggregation={"average": average}), on_round=collect(seen))
        for average, seen in ((0.0, plain), (0.6, averaged))
    ]
    for number in range(1, 5):
        begun = 1 if number == 1 else 2  # round 1 is the warm-up
        phase = [plain[k] for k in range(begun, number + 1)]
        expected = closed_formula(phase, 0.6)
        scale = np.abs(expected).max()
        np.testing.assert_allclose(flat(averaged[number]), expected, atol=1e-5 * scale)
    assert found[1].state.digest() == averaged[4].digest()
    assert found[0].ledger == found[1].ledger


def test_with_secure_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    def exchange(now: storage.Checkpoint, *_: object, **others: object) -> Joined:
        moved = now.state.merge(state(100 + now.round).select((*HEAD, B)))
        return Joined(
            state=moved,
            agg=AggState(now.agg.step + 3, now.agg.moments),
            rejected={},
            noise={},
            charges=now.charges,
            refusals=now.refusals,
            bytes_down=0,
            bytes_up=0,
            seconds={"training": 0.0, "aggregation": 0.0},
            accepted=(),
        )

    monkeypatch.setattr(distributed, "exchange", exchange)
    names = ("amazon", "movie", "nyt")
    asked = settings(
        0.6,
        privacy={"trust": "distributed"},
        data={"source": "demo", "public_sizes": dict.fromkeys(names, 100)},
        train={"rounds": 4, "warmup_rounds": 0},
    )
    _, seen = run(asked)
    for number in range(1, 5):
        phase = [state(0).merge(state(100 + k).select((*HEAD, B))) for k in range(number)]
        np.testing.assert_allclose(flat(seen[number]), closed_formula(phase, 0.6), atol=1e-5)


def collect(seen: dict[int, AdapterState]) -> Callable[[RoundResult], dict[str, Any]]:
    def look(outcome: RoundResult) -> dict[str, Any]:
        seen[outcome.round] = outcome.state
        return {}

    return look
