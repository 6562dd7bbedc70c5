"""A small network on columns from file to answers, and beside a language model as a comparison."""

from __future__ import annotations

import json
import random
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
from safetensors.numpy import load_file

from hushtune.common.config_io import loads_config
from hushtune.common.errors import MissingColumnError
from hushtune.common.tasks import partition
from hushtune.common.tasks.column_rows import COLUMNS_FILE
from hushtune.simulations import plots, run
from hushtune.simulations.baselines import trained_baselines
from hushtune.simulations.outputs import SUMMARY_KEYS
from hushtune.simulations.saved import export, load

from ..conftest import SITES, Settings, write_csv

HEADER = ("site", "age", "job", "label")
JOBS = ("clerk", "nurse", "pilot")
PUBLIC = {
    "data__columns": ["age", "job"],
    "data__column_ranges": {"age": [0, 100]},
    "data__column_values": {"job": list(JOBS)},
}


@pytest.fixture(autouse=True)
def no_pictures(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn in one test below, with both kinds of model side by side."""
    if request.node.get_closest_marker("pictures"):
        return
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)


def table(kind: str, *, count: int = 150) -> list[tuple[Any, ...]]:
    """The label follows from both columns, and from neither alone; some cells are missing or
    odd."""
    drawn = random.Random(4)
    found: list[tuple[Any, ...]] = []
    for site in SITES:
        for _ in range(count):
            age, job = drawn.randint(1, 99), drawn.choice(JOBS)
            high = (age > 50) == (job == "pilot")
            label = ("yes" if high else "no") if kind == "classes" else (8.0 if high else 2.0)
            found.append((site, age, job, label))
    found[0] = (SITES[0], 400, "diver", found[0][3])
    found[1] = (SITES[0], "", "", found[1][3])
    return found


def config_of(settings: Settings, folder: Path, kind: str = "classes", **changes: Any) -> Any:
    path = write_csv(folder / "rows.csv", table(kind), HEADER)
    of_kind: dict[str, Any] = {"task__kind": "tabular-classification"}
    if kind == "number":
        of_kind = {"task__kind": "tabular-regression", "task__range": [0.0, 10.0]}
    network = {
        "model__name": "columns",
        "train__warmup_rounds": None,
        "train__rounds": 15,
        "train__local_steps": 4,
        "train__sampling_probability": 0.5,
        "train__learning_rate": 0.05,
    }
    return settings.config(**{"data__file": str(path), **of_kind, **PUBLIC, **network, **changes})


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_it_learns_what_takes_two_columns(settings: Settings, tmp_path: Path, kind: str) -> None:
    """A linear model on the columns does no better than a constant answer here."""
    summary = run(config_of(settings, tmp_path, kind), tmp_path / "run")
    told, constant = summary["value"], summary["baselines"]["majority"]
    assert told > 0.85 if kind == "classes" else told < 0.6 * constant
    assert any("outside its range" in line for line in summary["data_notes"])
    assert any("not in its list" in line for line in summary["data_notes"])


@pytest.mark.parametrize("kind", ["classes", "number"])
def test_a_private_run_has_all_that_others_have_and_its_card_is_enough(
    settings: Settings, tmp_path: Path, kind: str
) -> None:
    """The code of the card, which needs numpy alone, gives the outputs that were trained."""
    out = tmp_path / "run"
    config = config_of(settings, tmp_path, kind, privacy__trust="site", train__rounds=3)
    summary = run(config, out)
    assert summary.keys() >= SUMMARY_KEYS
    assert all(0 < row["epsilon"] <= 3.0 for row in summary["sites"].values())
    assert json.loads((out / "privacy.json").read_text())["guarantee"] is True
    export(out, tmp_path / "exported", merged=True)
    names = {path.name for path in (tmp_path / "exported").iterdir()}
    assert {"head.safetensors", COLUMNS_FILE, "README.md"} <= names
    card = (tmp_path / "exported" / "README.md").read_text(encoding="utf-8")
    found = re.search(r"```python\n(.*?)```", card, re.DOTALL)
    assert found is not None
    space: dict[str, Any] = {}
    exec(found[1].replace("FOLDER", str(tmp_path / "exported")), space)
    outputs = cast("Callable[[Any], Any]", space["outputs"])
    cells = [
        {"age": 30, "job": "pilot"},
        {"age": 400, "job": "diver"},
        {"age": None, "job": None},
        {"age": 71.5, "job": "nurse"},
    ]
    trained = load(out)
    expected = trained.logits([json.dumps(row) for row in cells]).detach().numpy()
    np.testing.assert_allclose([outputs(row) for row in cells], expected, rtol=1e-4, atol=1e-5)
    with pytest.raises(MissingColumnError, match="did you mean 'age'"):
        trained.predict(["agee: 3"])
    (answer,) = trained.predict([json.dumps(cells[0])])
    if kind == "classes":
        assert answer["label"] in ("no", "yes")
    else:
        assert 0 <= answer["answer"] <= 10
    assert load_file(out / "adapter" / "head.safetensors")["hidden.weight"].shape[0] == 32


def test_it_goes_on_as_it_would_have(settings: Settings, tmp_path: Path) -> None:
    config = config_of(settings, tmp_path, train__rounds=3)
    whole = run(config, tmp_path / "whole")
    assert whole["adapter_digest"] == run(config, tmp_path / "again")["adapter_digest"]
    (tmp_path / "again" / "summary.json").unlink()
    resumed = run(config, tmp_path / "again", resume=True)
    assert resumed["adapter_digest"] == whole["adapter_digest"]


@pytest.mark.parametrize("trust", ["server", "distributed"])
@pytest.mark.parametrize("rule", ["fedit", "fedsgd"])
def test_under_every_trust_model(settings: Settings, tmp_path: Path, trust: str, rule: str) -> None:
    changes: dict[str, Any] = {"privacy__trust": trust, "aggregation__rule": rule}
    if trust == "server":
        changes |= {"privacy__unit": "client", "privacy__epsilon": 50.0, "privacy__delta": 1e-2}
        changes |= {"aggregation__rule": "fedit"}
    config = config_of(settings, tmp_path, train__rounds=2, **changes)
    assert run(config, tmp_path / "run")["rounds"] == 2


@pytest.mark.pictures
def test_beside_a_language_model_on_the_same_rows_and_budget(
    settings: Settings, tmp_path: Path
) -> None:
    language: dict[str, Any] = {
        "model__name": str(settings.model),
        "train__rounds": 3,
        "privacy__trust": "site",
        "simulation__baselines": True,
    }
    config = config_of(settings, tmp_path, **language)
    summary = run(config, tmp_path / "run")
    compared = summary["table"]
    assert compared["columns_private"].keys() == {*SITES, "pooled"} == compared["columns"].keys()
    assert summary["baselines"]["columns"] == compared["columns"]["pooled"]
    assert summary["baselines"]["columns_private"] is not None
    card = (tmp_path / "run" / "adapter" / "README.md").read_text(encoding="utf-8")
    assert "small network on columns, federated, private" in card
    runs = trained_baselines(loads_config((tmp_path / "run" / "config.toml").read_text()))
    network, ours = runs["columns_private"], config
    assert network.model.name == "columns"
    assert (network.privacy, network.train.rounds) == (ours.privacy, ours.train.rounds)
    assert network.train.sampling_probability == ours.train.sampling_probability
    assert runs["columns"].privacy.trust == "off"


def test_without_public_columns_nothing_is_compared_with_them(
    settings: Settings, tmp_path: Path
) -> None:
    config = config_of(
        settings, tmp_path, model__name=str(settings.model), data__column_values=None
    )
    sizes = {"public_sizes": dict.fromkeys(SITES, 100)}
    sized = config.model_copy(update={"data": config.data.model_copy(update=sizes)})
    assert not {"columns", "columns_private"} & trained_baselines(sized).keys()


def test_dry_run(settings: Settings, tmp_path: Path, hushtune: Any) -> None:
    config_of(settings, tmp_path)
    found = hushtune(
        "simulate",
        *("--config", settings.file(tmp_path, **_tree(tmp_path)), "--dry-run", "--json"),
    )
    assert found.status == 0, found.err
    assert json.loads(found.out)["data_notes"]


def _tree(folder: Path) -> dict[str, Any]:
    return {
        "data__file": str(folder / "rows.csv"),
        "task__kind": "tabular-classification",
        "model__name": "columns",
        "train__warmup_rounds": None,
        **PUBLIC,
    }
