"""Frozen states that runs share: only those that are equal, to the bit, and no more than fit."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch

from hushtune.common.planning import POOLED
from hushtune.common.tasks import shared_states, workspace
from hushtune.common.tasks.shared_states import SharedStates, share_states
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.workspace import Workspace, open_workspace, resolve

from ...conftest import Settings


@pytest.fixture
def sharing() -> Iterator[None]:
    workspace._workspaces.clear()  # of earlier tests, which has its states already
    share_states(64)
    yield
    share_states(0)


class Passes:
    """The same task, counting the rows that it computes."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.asked: list[tuple[bool, bool]] = []
        computed = Supervised._computed

        def counted(task: Supervised, rows: Any, **how: Any) -> Any:
            self.asked.append((how["hidden"], how["features"]))
            return computed(task, rows, **how)

        monkeypatch.setattr(Supervised, "_computed", counted)

    def of(self, config: Any, *, layers: bool = False) -> tuple[Workspace, list[tuple[bool, bool]]]:
        self.asked.clear()
        opened = open_workspace(resolve(config), layers=layers)
        opened.warm()
        return opened, [*self.asked]


NOTHING = [(False, False)]
OTHER: dict[str, Any] = {
    "rows": {"data__max_rows_per_site": 40},
    "tokens": {"model__max_tokens": 6},
    "scale": {"model__feature_scale": 3.0},
    "precision": {"model__precision": "bfloat16"},
    "cut": {"model__layer": 1},
    "padding": {"speed__pad": "max_tokens"},
}


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize("what", [*OTHER, "weights"])
def test_what_states_follow_from_is_in_their_names(
    settings: Settings, another_bert: Path, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    passes = Passes(monkeypatch)
    _, first = passes.of(settings.config())
    assert first == [(True, True)]
    other = OTHER.get(what) or {"model__name": str(another_bert)}
    opened, asked = passes.of(settings.config(**other))
    assert any(features for _, features in asked)
    kept = opened.task._kept
    alone, _ = opened.task._computed(opened.task._all, hidden=True, features=True)
    assert kept is not None
    assert torch.equal(kept.features, alone.features)
    if what == "cut":  # nothing below its one block is worth keeping
        assert kept.hidden is None
    else:
        assert torch.equal(kept.hidden, alone.hidden)


@pytest.mark.usefixtures("sharing")
@pytest.mark.parametrize(
    "same", [{"seed": 8}, {"adapter__rank": 1}, {"data__test_fraction": 0.3}, {"train__rounds": 2}]
)
def test_equal_states_are_computed_once(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, same: dict[str, Any]
) -> None:
    passes = Passes(monkeypatch)
    first, _ = passes.of(settings.config())
    kept = first.task._kept
    again, asked = passes.of(settings.config(**same))
    if again is not first:  # a workspace of its own
        assert asked == NOTHING
    assert again.task._kept.features is kept.features
    assert again.task._kept.hidden is kept.hidden
    rows = again.rows(POOLED, "test")
    found = again.task.figures(again.initial_state, rows)
    share_states(0)
    alone = Workspace(resolve(settings.config(**same)), again.data, None)
    assert torch.equal(found, alone.task.figures(alone.initial_state, rows))


@pytest.mark.usefixtures("sharing")
def test_only_what_lacks_is_computed(settings: Settings, monkeypatch: pytest.MonkeyPatch) -> None:
    passes = Passes(monkeypatch)
    passes.of(settings.config())
    _, lower = passes.of(settings.config(adapter__layers=0))  # adapters from the first block on
    assert lower == NOTHING  # there is nothing below it, and the features are there
    heads, layers = passes.of(settings.config(seed=9), layers=True)
    assert layers == [(False, True)]  # the features of other layers
    again, asked = passes.of(settings.config(seed=10), layers=True)
    assert asked == NOTHING
    for layer in again.task.readable_layers:
        assert again.task._of_layers[layer] is heads.task._of_layers[layer]
        with again.task.reading(layer):
            assert torch.equal(again.task._features(again.task._all), again.task._of_layers[layer])


def test_the_oldest_go_where_there_is_no_room() -> None:
    kept = SharedStates(most_bytes=12)
    for name in "abc":
        kept.put(name, torch.ones(1))
    assert kept.get("a") is not None
    kept.put("d", torch.ones(1))
    assert kept.get("b") is None
    assert all(kept.get(name) is not None for name in "acd")
    kept.put("large", torch.ones(4))
    assert kept.get("large") is None
    assert kept.get("a") is not None


def test_nothing_is_shared_unasked() -> None:
    assert shared_states._shared is None
