"""benchmarks/five_seeds.py, and the table that it made for the README."""

from __future__ import annotations

import json
import statistics
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config_io import config_hash
from hushtune.common.names import METHODS, OURS
from hushtune.common.tasks.workspace import resolve

from .programs import benchmark

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture(scope="module")
def five_seeds() -> Any:
    return benchmark("five_seeds")


def summary(seed: int, value: float, *, epsilon: float = 2.5, **changes: Any) -> dict[str, Any]:
    """As much of a run's summary as the table shows; every baseline is 0.1 below, or more."""
    names = [name for name in METHODS if name not in OURS]
    return {
        "seed": seed,
        "value": value,
        "baselines": {name: value - 0.1 - place / 100 for place, name in enumerate(names)},
        "sites": {
            "a": {"epsilon": epsilon, "delta": 1e-5},
            "b": {"epsilon": 2.0, "delta": 1e-6},
        },
        "source_commit": "c0ffee",
        **changes,
    }


def rows_of(table: str) -> dict[str, list[str]]:
    """The cells of each row of a Markdown table by its label, header and rule left out."""
    lines = [line for line in table.splitlines() if line.startswith("|")][2:]
    split = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]
    return {label.strip("*"): cells for label, *cells in split}


def test_the_table_shows_each_seed_their_mean_and_spread(five_seeds: Any) -> None:
    values = [0.8, 0.7, 0.9]
    table = five_seeds.as_markdown([summary(seed, value) for seed, value in enumerate(values)])
    header = table.splitlines()[0]
    assert [cell.strip() for cell in header.strip("|").split("|")][1:] == [
        *(f"seed {seed}" for seed in range(3)),
        *("mean", "sd"),
    ]
    rows = rows_of(table)
    left_out = ("personal", "head_best")
    assert list(rows) == [label for name, label in METHODS.items() if name not in left_out]
    assert "| **federated, private** | 0.800 | 0.700 | 0.900 | 0.800 | 0.100 |" in table
    assert rows["most frequent label"] == ["0.700", "0.600", "0.800", "0.700", "0.100"]
    assert rows["untrained model"] == ["0.690", "0.590", "0.790", "0.690", "0.100"]
    assert rows_of(five_seeds.as_markdown([summary(4, 0.8)]))["federated, private"] == [
        *("0.800", "0.800", "0.000")
    ]


def test_below_the_table_stand_the_worst_promise_and_the_code(five_seeds: Any) -> None:
    runs = [summary(0, 0.8), summary(1, 0.8, epsilon=10.00001, source_commit="beef")]
    told = five_seeds.as_markdown(runs).splitlines()[-3:]
    assert told == [
        "",
        "Epsilon at every site: at most 10.001, delta 1e-05.",
        "Source commit of these runs: beef; c0ffee.",
    ]
    unknown = five_seeds.as_markdown([summary(0, 0.8, source_commit=None)])
    assert unknown.endswith("Source commit of these runs: unknown.")


def test_a_run_of_other_settings_is_refused(
    five_seeds: Any, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(five_seeds, "run", lambda *_, **__: pytest.fail("it is finished"))
    config = settings.config()
    done = {"value": 0.8, "config_hash": config_hash(resolve(config))}
    (tmp_path / "summary.json").write_text(json.dumps(done), encoding="utf-8")
    (tmp_path / "privacy.json").write_text('{"source_commit": "c0ffee"}', encoding="utf-8")
    assert five_seeds.finished(tmp_path, config) == {**done, "source_commit": "c0ffee"}
    for other in (settings.config(seed=8), settings.config(train__learning_rate=0.02)):
        with pytest.raises(SystemExit) as caught:
            five_seeds.finished(tmp_path, other)
        # A text as the code of SystemExit is printed, and the exit status is 1.
        assert str(tmp_path / "summary.json") in str(caught.value.code)
        assert "other settings" in str(caught.value.code)
    del done["config_hash"]
    (tmp_path / "summary.json").write_text(json.dumps(done), encoding="utf-8")
    with pytest.raises(SystemExit):
        five_seeds.finished(tmp_path, config)


def test_what_is_not_finished_is_run(
    five_seeds: Any, settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    begun: list[bool] = []

    def run(config: Any, out: Path, *, resume: bool) -> dict[str, Any]:
        begun.append(resume)
        (out / "privacy.json").write_text("{}", encoding="utf-8")
        return {"seed": config.seed}

    monkeypatch.setattr(five_seeds, "run", run)
    config = settings.config(seed=8)
    assert five_seeds.finished(tmp_path, config) == {"seed": 8, "source_commit": None}
    (tmp_path / "config.toml").write_text("", encoding="utf-8")
    five_seeds.finished(tmp_path, config)
    assert begun == [False, True]


def test_the_readme_s_table_keeps_what_is_said_of_it(five_seeds: Any) -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    table = readme.split(five_seeds.BEGIN)[1].split(five_seeds.END)[0]
    rows = rows_of(table)
    assert list(rows) == list(rows_of(five_seeds.as_markdown([summary(0, 0.8)])))
    means: dict[str, float] = {}
    for label, cells in rows.items():
        *values, mean, spread = map(float, cells)
        assert len(values) == 5
        # The table rounds to three decimals: half a thousandth in each value and in the figure.
        assert abs(statistics.mean(values) - mean) <= 1e-3
        assert abs(statistics.stdev(values) - spread) <= 1.5e-3
        means[label] = mean
    assert means["federated, private"] >= 0.79
    assert means["federated, private"] >= means["each site alone, private"] + 0.03
