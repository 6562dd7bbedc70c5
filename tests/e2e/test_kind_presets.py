"""The presets of each kind of supervision, on their real data, at tiny size and a random model."""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config_io import load_config
from hushtune.common.kinds import KINDS, Inputs, Kind, Targets, higher_is_better
from hushtune.common.names import METHODS, OF_TABLES, OURS
from hushtune.common.presets import PRESETS
from hushtune.common.tasks import partition
from hushtune.common.tasks.sources import SOURCES
from hushtune.simulations import plots, run
from hushtune.simulations.outputs import SUMMARY_KEYS

from ..client.words import make_words
from ..pictures import vision_model

DEMO = {"demo", "clients", "tiny", "bench-w"}
OF_KINDS = sorted({*PRESETS} - DEMO)
BY_DAY = ("text-pair", "tabular-classification", "image-classification", "causal-lm")
"""One of each way to read; tests/e2e/test_kinds.py runs every kind, on made-up rows."""
BASELINES = {*METHODS, *OF_TABLES} - {*OURS}
TINY = (
    "data.max_rows_per_site=60",
    "model.precision=float32",
    "privacy.epsilon=20",  # of sites this small
    "train.rounds=2",
    "train.local_steps=1",
    "train.sampling_probability=0.5",
)


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)


@pytest.mark.parametrize("preset", OF_KINDS)
def test_a_preset_is_of_real_data_at_the_usual_epsilon(preset: str) -> None:
    config = load_config(preset=preset, presets=PRESETS)
    assert config.data.source in SOURCES
    assert config.privacy.epsilon == 3.0
    assert config.privacy.trust in ("site", "distributed")
    assert config.simulation.baselines
    if preset in ("tabular-classification", "recommendation"):  # a person has several rows
        assert config.privacy.unit == "group"


@pytest.fixture(scope="module")
def tiny_models(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[Inputs, Path]:
    """Random models by what they read; all others read texts."""
    folder = tmp_path_factory.mktemp("tiny")
    vision_model(folder / "images", "dinov2")
    return {
        Inputs.TEXT: tiny_bert,
        Inputs.MESSAGES: make_words(folder / "words", "llama"),
        Inputs.IMAGE: folder / "images",
    }


def left_out(kind: Kind) -> set[str]:
    """What the models of a kind are not compared with."""
    columns = kind.inputs is Inputs.COLUMNS and kind.name != "recommendation"
    return {
        *(() if columns else OF_TABLES),
        *(() if kind.has_head else ("head_private", "head_best")),
        *(("head_best",) if kind.targets is Targets.TAGS else ()),  # reads words, not features
    }


@pytest.mark.slow
@pytest.mark.parametrize(
    "preset",
    [
        pytest.param(preset, marks=[] if preset in BY_DAY else pytest.mark.nightly)
        for preset in OF_KINDS
    ],
)
def test_a_preset_runs_with_all_that_it_is_compared_with(
    preset: str, tiny_models: Mapping[Inputs, Path], tmp_path: Path
) -> None:
    if preset == "token-classification" and shutil.which("npm") is None:
        pytest.skip("the Brown Corpus comes with npm")
    kind = KINDS[load_config(preset=preset, presets=PRESETS).task.kind]
    reads = Inputs.MESSAGES if kind.targets is Targets.ANSWER else kind.inputs
    model = tiny_models.get(reads, tiny_models[Inputs.TEXT])
    few = [*TINY, f"model.name={model}"]
    if preset == "text-classification":  # a topic is one row in 150
        few.append("data.max_rows_per_site=500")
    if kind.inputs is Inputs.IMAGE:
        few += ["model.image_size=32", "train.warmup_rounds=1"]
    else:
        few.append("model.max_tokens=16")
    config = load_config(preset=preset, presets=PRESETS, overrides=few)
    summary: dict[str, Any] = run(config, tmp_path / "run")
    assert json.loads((tmp_path / "run" / "summary.json").read_text()) == summary
    assert summary.keys() - {"missing"} == SUMMARY_KEYS
    assert summary["task"] == config.task.kind
    assert summary["metric"] == config.task.main_metric in summary["metrics"]
    assert summary["higher_is_better"] == higher_is_better(summary["metric"])
    assert summary["rounds"] == 2
    assert all(0 < row["epsilon"] <= 20.0 for row in summary["sites"].values())
    baselines = summary["baselines"]
    assert baselines.keys() == BASELINES
    assert {name for name, value in baselines.items() if value is None} == left_out(kind)
    assert json.loads((tmp_path / "run" / "privacy.json").read_text())["guarantee"] is True
