"""Cross-validation: folds as runs, their table, what they cost together, and going on with them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune.client.site import ledger_path
from hushtune.common.errors import CheckpointError, ConfigError, OutputExistsError
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server import checkpoint
from hushtune.simulations.cross_validation import fold_configs, run_folds, spread

from ..conftest import Command
from ..e2e.test_resume import StopAt, tree

PRIVATE = {"trust": "site", "epsilon": 8.0, "delta": 1e-3}
SITES = ("east", "north", "south")


def test_k_folds_are_runs_with_a_table_and_a_cost_of_all(settings: Any, tmp_path: Path) -> None:
    config = settings.config(privacy=PRIVATE, train__rounds=2, train__warmup_rounds=2)
    told = run_folds(config, tmp_path / "out", "3")
    assert list(told["folds"]) == ["fold-1", "fold-2", "fold-3"]
    values = []
    for name, row in told["folds"].items():
        summary = json.loads((tmp_path / "out" / name / "summary.json").read_text())
        assert row["value"] == summary["value"]
        values.append(summary["value"])
        assert (tmp_path / "out" / name / "privacy.md").is_file()
    assert sum(row["test_rows"] for row in told["folds"].values()) == 210
    assert told["table"]["federated"] == spread(values)
    # By the folds' own ledgers, all of them together, whatever their public sizes are.
    plan = site_plans(resolve(fold_configs(config, "3")["fold-1"]))["east"]
    entries = [
        entry
        for name in told["folds"]
        for entry in Ledger(ledger_path(tmp_path / "out" / name, "east")).entries()
    ]
    assert len(entries) == 6
    both = epsilon([e.event for e in entries], delta=plan.delta, relation=plan.relation)
    assert told["sites"]["east"]["epsilon"] == pytest.approx(both)
    assert both > 1.5 * max(row["epsilon"]["east"] for row in told["folds"].values())
    most = max(row["epsilon"] for row in told["sites"].values())
    assert f"at most epsilon {most:.3f}" in told["privacy"]
    assert json.loads((tmp_path / "out" / "folds.json").read_text()) == told


def test_a_site_is_judged_by_a_model_that_never_saw_it(settings: Any, tmp_path: Path) -> None:
    sizes = {"east": 40, "north": 50, "south": 45}
    config = settings.config(data__public_sizes=sizes)
    told = run_folds(config, tmp_path / "out", "sites")
    assert list(told["folds"]) == [f"site-{name}" for name in SITES]
    for site in SITES:
        place = tmp_path / "out" / f"site-{site}"
        summary = json.loads((place / "summary.json").read_text())
        assert sorted(summary["sites"]) == [name for name in SITES if name != site]
        workspace = open_workspace(resolve(fold_configs(config, "sites")[f"site-{site}"]))
        state = checkpoint.load(place / "checkpoint").shown
        data = workspace.data
        assert {data.texts[i] for i in data.left_out}.isdisjoint(
            data.texts[i] for split in data.sites.values() for i in split.train
        )
        logits = workspace.task.figures(state, data.left_out)[:, :-1]
        right = (logits.argmax(1).numpy() == data.labels[data.left_out]).mean()
        assert told["folds"][f"site-{site}"]["value"] == pytest.approx(right, abs=1e-6)
        assert (
            told["folds"][f"site-{site}"]["test_rows"]
            == {"east": 60, "north": 80, "south": 70}[site]
        )
    assert told["sites"]["east"]["folds"] == 2
    assert "NO PRIVACY" in told["privacy"]


def test_an_interrupted_cross_validation_goes_on_in_its_fold(settings: Any, tmp_path: Path) -> None:
    config = settings.config()
    whole = run_folds(config, tmp_path / "whole", "2")
    with pytest.raises(KeyboardInterrupt):
        run_folds(config, tmp_path / "out", "2", observer=StopAt(2))
    assert not (tmp_path / "out" / "fold-2").exists()
    with pytest.raises(OutputExistsError):
        run_folds(config, tmp_path / "out", "2")
    with pytest.raises(CheckpointError, match="other folds"):
        run_folds(config, tmp_path / "out", "3", resume=True)
    told = run_folds(config, tmp_path / "out", "2", resume=True)
    assert told["table"] == whole["table"]
    before = tree(tmp_path / "out")
    assert run_folds(config, tmp_path / "out", "2", resume=True) == told
    assert tree(tmp_path / "out") == before
    run_folds(config, tmp_path / "out", "sites", overwrite=True)
    assert not (tmp_path / "out" / "fold-1").exists()
    (tmp_path / "out" / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError):
        run_folds(config, tmp_path / "out", "2", overwrite=True)
    assert (tmp_path / "out" / "site-north" / "summary.json").is_file()


@pytest.mark.parametrize("how", ["1", "0", "many", "-3", "2.5"])
def test_what_is_no_number_of_folds(settings: Any, how: str) -> None:
    with pytest.raises(ConfigError, match="--folds"):
        fold_configs(settings.config(), how)


def test_the_command_shows_the_folds(settings: Any, tmp_path: Path, hushtune: Command) -> None:
    file = settings.file(tmp_path, privacy=PRIVATE, train__rounds=1, train__warmup_rounds=1)
    out = tmp_path / "out"
    answer = hushtune("simulate", "--config", file, "--folds", "2", "--out", out)
    assert answer.status == 0, answer.err
    assert "Accuracy over folds" in answer.out
    assert "fold-2" in answer.out
    assert "all folds together" in answer.out
    again = hushtune("simulate", "--resume", "--folds", "2", "--out", out)
    assert again.status == 0, again.err
    dry = hushtune("simulate", "--config", file, "--folds", "2", "--dry-run")
    assert dry.status == 2
    kept = settings.config(aggregation__rule="fedsa")
    with pytest.raises(ConfigError, match="no part"):
        fold_configs(kept, "sites")
