"""The probe of public texts: nothing for a model that is as it was, much for one in ruins."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server import checkpoint
from hushtune.simulations import forgetting as probe
from hushtune.simulations import run
from hushtune.simulations.overfit import forgetting_line

from ..client.words import make_words, write_conversations
from ..conftest import Settings


def test_the_passages_are_many_distinct_and_of_all_topics() -> None:
    found = probe.passages()
    assert 150 <= len(found) <= 200
    assert {topic for topic, _ in found} == set(probe.TOPICS)
    assert len({text for _, text in found}) == len(found)
    assert probe.passages() == found


def test_nearest_neighbours_on_points_written_down() -> None:
    angles = np.deg2rad([0, 1, 2, 3, 4, 5, 90, 91, 92, 93, 94, 95])
    points = torch.tensor(np.stack([np.cos(angles), np.sin(angles)], axis=1))
    labels = np.array([0] * 6 + [1] * 6)
    assert probe.nearest_accuracy(points, labels) == 1.0
    one_off = labels.copy()
    one_off[0] = 1
    assert probe.nearest_accuracy(points, one_off) == pytest.approx(11 / 12)


def test_a_model_as_it_was_has_not_drifted_and_a_wrecked_one_has(settings: Any) -> None:
    workspace = open_workspace(resolve(settings.config()))
    state = workspace.initial_state
    same = probe.forgetting(workspace, state)
    assert same is not None
    assert same["drift"] == pytest.approx(0.0, abs=1e-9)
    assert same["accuracy_before"] == same["accuracy_after"]
    torch.manual_seed(0)
    wrecked = state.map(lambda tensor: tensor + 5.0 * torch.randn(tensor.shape))
    far = probe.forgetting(workspace, wrecked)
    assert far is not None
    assert far["drift"] > 0.05
    assert far["accuracy_before"] == same["accuracy_before"]
    assert probe.forgetting(workspace, state) == same


@pytest.mark.parametrize("head", ["mean", "own"])
def test_a_run_tells_it_of_the_model_that_it_hands_out(
    settings: Any, tmp_path: Path, head: str
) -> None:
    config = settings.config(model__head=head, train__learning_rate=0.3, train__warmup_rounds=0)
    summary = run(config, tmp_path / "out")
    told = summary["forgetting"]
    last = checkpoint.load(tmp_path / "out" / "checkpoint")
    assert told == probe.forgetting(open_workspace(resolve(config)), last.shown)
    assert told["drift"] > 1e-4
    assert json.loads((tmp_path / "out" / "summary.json").read_text())["forgetting"] == told
    assert "before training" in (forgetting_line(told) or "")
    off = config.model_copy(
        update={"simulation": config.simulation.model_copy(update={"forgetting": False})}
    )
    again = run(off, tmp_path / "off")
    assert again["forgetting"] is None
    assert again["adapter_digest"] == summary["adapter_digest"]


def test_a_python_without_its_documentation_has_no_probe(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def missing(name: str) -> Any:
        raise ImportError(name)

    monkeypatch.setattr(probe, "import_module", missing)
    workspace = open_workspace(resolve(settings.config()))
    assert probe.forgetting(workspace, workspace.initial_state) is None
    assert forgetting_line(None) is None


def test_a_language_model_is_probed_too_and_one_of_two_parts_is_not(tmp_path: Path) -> None:
    rows = write_conversations(tmp_path / "all.csv", {"east": 40, "north": 50})
    found: dict[str, Any] = {}
    for family, kind in (("llama", "causal-lm"), ("t5", "seq2seq")):
        model = make_words(tmp_path / family, family)
        changes: dict[str, Any] = {"task__kind": kind, "train__warmup_rounds": None}
        config = Settings(model, rows).config(**changes)
        workspace = open_workspace(resolve(config))
        found[family] = probe.forgetting(workspace, workspace.initial_state)
    assert found["llama"]["drift"] == pytest.approx(0.0, abs=1e-9)
    assert found["t5"] is None
