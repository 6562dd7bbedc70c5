"""What a run is compared with, beyond its own rows of the table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import tomli_w

from hushtune.common.adapter import AdapterState
from hushtune.common.config_io import loads_config
from hushtune.common.errors import CheckpointError
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import Workspace, open_workspace, resolve
from hushtune.simulations import run
from hushtune.simulations.baselines import compare, heads_by_layer
from hushtune.simulations.observer import Silent

from ..pictures import picture_folder, vision_model


def test_the_best_frozen_layer_is_chosen_by_validation_rows(settings: Any, tmp_path: Path) -> None:
    config = settings.config(
        simulation__baselines=True, privacy__trust="site", train__rounds=2, train__warmup_rounds=1
    )
    out = tmp_path / "run"
    summary = run(config, out)
    layers = summary["head_by_layer"]
    assert set(layers) == {"1", "2"}  # the tiny model has two blocks
    best = max(layers, key=lambda layer: (layers[layer]["validation"], int(layer)))
    assert summary["baselines"]["head_best"] == layers[best]["test"]
    assert summary["baselines"]["head_private"] == layers["2"]["test"]
    assert not any("head_layer" in name for name in summary["table"])
    # What was compared is not trained again.
    kept = (out / "checkpoint" / "baselines.json").read_bytes()
    (out / "summary.json").unlink()
    again = run(config, out, resume=True)
    assert again["head_by_layer"] == layers
    assert (out / "checkpoint" / "baselines.json").read_bytes() == kept


def test_heads_on_other_layers_are_trained_where_those_features_are(
    settings: Any, tmp_path: Path
) -> None:
    """Under Flower sites train in processes of their own, which know of no layer."""
    config = resolve(
        settings.config(
            simulation__engine="flower", simulation__baselines=True, privacy__trust="site"
        )
    )
    workspace = open_workspace(config, layers=True)
    engines: dict[int | None, set[str]] = {}

    def federate(context: RunContext, place: Workspace) -> AdapterState:
        layer = place.task._layer  # pyright: ignore[reportPrivateUsage]
        engines.setdefault(layer, set()).add(context.config.simulation.engine)
        return place.initial_state

    compare(
        config,
        workspace=workspace,
        federate=federate,
        kept=tmp_path / "kept.json",
        observer=Silent(),
    )
    assert workspace.task.readable_layers
    assert engines == {
        None: {"flower"},
        **{layer: {"inprocess"} for layer in workspace.task.readable_layers},
    }


def test_without_validation_rows_no_layer_can_be_chosen(settings: Any, tmp_path: Path) -> None:
    config = settings.config(
        simulation__baselines=True,
        data__validation_fraction=0.0,
        train__rounds=2,
        train__warmup_rounds=1,
    )
    summary = run(config, tmp_path / "run")
    assert summary["head_by_layer"] == {}
    assert summary["baselines"]["head_best"] is None


def test_of_changed_examples_nothing_is_kept_that_a_layer_could_be_read_from(
    settings: Any, tmp_path: Path
) -> None:
    config = settings.config(
        simulation__baselines=True,
        augment__word_dropout=0.2,
        train__rounds=1,
        train__warmup_rounds=1,
    )
    summary = run(config, tmp_path / "run")
    assert summary["head_by_layer"] == {}
    assert summary["baselines"]["head_private"] is not None


def test_a_convolutional_model_has_no_blocks_to_compare_heads_on(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "pictures", each=12)
    model = vision_model(tmp_path / "model", "resnet")
    tree = {
        "task": {"kind": "image-classification"},
        "data": {"folder": str(folder), "validation_fraction": 0.2},
        "model": {"name": str(model), "precision": "float32"},
        "adapter": {"rank": 2},
        "privacy": {"trust": "off"},
        "train": {"rounds": 1, "warmup_rounds": 1, "local_steps": 1, "sampling_probability": 0.5},
    }
    summary = run(loads_config(tomli_w.dumps(tree)), tmp_path / "run")
    assert summary["head_by_layer"] == {}
    assert summary["baselines"]["head_private"] is not None


def test_where_lower_is_better_the_lowest_is_best() -> None:
    row = {"pooled": 0.5}
    table = {"head_layer/1": row, "head_layer/1/validation": {"pooled": 0.4}, "majority": row}
    assert heads_by_layer(table) == {1: {"validation": 0.4, "test": 0.5}}


@pytest.mark.parametrize(
    "damage", ['{"head_layer/1/validation": {"east": 0.5}}', '{"head_private": {"pooled": 0.5}}']
)
def test_a_damaged_file_of_comparisons_is_named(settings: Any, tmp_path: Path, damage: str) -> None:
    out = tmp_path / "run"
    short = {"train__rounds": 1, "train__warmup_rounds": 1, "simulation__baselines": True}
    run(settings.config(**short), out)
    (out / "summary.json").unlink()
    (out / "checkpoint" / "baselines.json").write_text(damage, encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"baselines\.json is damaged"):
        run(settings.config(**short), out, resume=True)
