"""A sweep: rows as runs end, going on after a stop, failures kept, what changed in the study."""

from __future__ import annotations

import csv
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config_io import load_config
from hushtune.common.errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    HushtuneError,
    MissingFileError,
    OutputExistsError,
)
from hushtune.server.deployment.lock import held
from hushtune.simulations import report
from hushtune.simulations.study import run
from hushtune.simulations.sweep import rows_frame, sweep
from hushtune.simulations.sweep.points import Point, points_of
from hushtune.simulations.sweep.results import flat_row, read_rows
from hushtune.simulations.sweep.running import Unheard
from hushtune.simulations.sweep.study_file import read_study

from ...conftest import Command, Settings
from ...e2e.test_resume import tree
from .test_study_file import study

KEYS = {
    *("point", "name", "settings", "seed", "epsilon_asked", "status", "error"),
    *("config_hash", "code_commit"),
    *("seconds", "cpu_seconds", "bytes_up", "bytes_down", "summary"),
}


class Heard(Unheard):
    """An observer that remembers."""

    def __init__(self) -> None:
        self.notes: list[str] = []
        self.events: list[tuple[str, dict[str, Any]]] = []

    def note(self, text: str) -> None:
        self.notes.append(text)

    def told(self, point: Point, event: dict[str, Any]) -> None:
        self.events.append((point.name, event))


def test_rows_come_as_runs_end_and_stay(settings: Settings, tmp_path: Path) -> None:
    fixed = {"privacy": {"trust": "site", "delta": 1e-3}}
    file = study(settings, tmp_path, set=fixed, grid={"privacy.epsilon": [4.0, 8.0], "seed": [3]})
    out = tmp_path / "out"
    rows = []
    for row in sweep(file, out=out, jobs=1):
        rows.append(row)
        assert read_rows(out)[: len(rows)] == rows  # on disk before it is told
    assert [row["name"] for row in rows] == ["epsilon=4.0 seed=3", "epsilon=8.0 seed=3"]
    for row, epsilon in zip(rows, (4.0, 8.0), strict=True):
        assert row.keys() == KEYS
        assert row["status"] == "done"
        assert row["settings"] == {"privacy.epsilon": epsilon}
        assert row["seed"] == 3
        folder = out / "points" / row["point"]
        assert row["config_hash"].startswith(row["point"])
        assert row["summary"] == json.loads((folder / "summary.json").read_text())
        assert row["summary"]["config_hash"] == row["config_hash"]
        assert (folder / "privacy.md").is_file()
        rounds = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
        assert row["bytes_up"] == sum(x["bytes_up"] for x in rounds) > 0
        assert row["cpu_seconds"] > 0
        told = max(site["epsilon"] for site in row["summary"]["sites"].values())
        assert told == pytest.approx(epsilon, abs=0.01)
    # What it began with lies beside it, and would begin it again from anywhere.
    begun = load_config(out / "base.toml")
    assert begun == load_config(tmp_path / "run.toml")
    assert [row["epsilon_asked"] for row in rows] == [4.0, 8.0]
    before = tree(out)
    assert list(sweep(file, out=out, jobs=1)) == rows
    assert tree(out) == before
    table = list(csv.DictReader((out / "results.csv").read_text(encoding="utf-8").splitlines()))
    assert [float(row["privacy.epsilon"]) for row in table] == [4.0, 8.0]
    frame = rows_frame(out)
    assert list(frame["value"]) == [row["summary"]["value"] for row in rows]
    assert list(frame.columns) == list(table[0]) == list(flat_row(rows[0]))
    with pytest.raises(MissingFileError):
        rows_frame(tmp_path)


def test_a_sweep_that_was_left_goes_on(settings: Settings, tmp_path: Path) -> None:
    file = study(settings, tmp_path, grid={"seed": [0, 1]})
    out = tmp_path / "out"
    first = next(iter(sweep(file, out=out, jobs=1)))
    assert [row["point"] for row in read_rows(out)] == [first["point"]]
    report(out)  # a look at what there is takes nothing away
    assert [row["seed"] for row in sweep(file, out=out, jobs=1)] == [0, 1]
    # A run that ended just before its row was written is found, and a folder that never began.
    kept = [row for row in read_rows(out) if row["seed"] == 1]
    (out / "results.jsonl").unlink()
    place = out / "points" / first["point"]
    shutil.rmtree(place)
    (place / "empty").mkdir(parents=True)
    statement = out / "points" / kept[0]["point"] / "privacy.json"
    told = json.loads(statement.read_text(encoding="utf-8"))
    statement.write_text(json.dumps({**told, "source_commit": "1" * 40}), encoding="utf-8")
    rows = list(sweep(file, out=out, jobs=1))
    assert [row["status"] for row in rows] == ["done", "done"]
    assert rows[1]["summary"] == kept[0]["summary"]
    # Each row names the code that ran it, which may not be the code that found it finished.
    assert [row["code_commit"] for row in rows] == [first["code_commit"], "1" * 40]
    assert not (place / "empty").exists()


def test_a_failed_point_is_kept_until_it_is_tried_again(settings: Settings, tmp_path: Path) -> None:
    file = study(settings, tmp_path, grid={"adapter.layers": [1, 9]})
    out = tmp_path / "out"
    good, bad = sweep(file, out=out, jobs=1)
    assert (good["status"], bad["status"]) == ("done", "failed")
    assert bad["error"]["code"].startswith("HT")
    assert "layers" in bad["error"]["text"]
    assert bad["summary"] is None
    stamp = (out / "results.jsonl").read_text()
    assert list(sweep(file, out=out, jobs=1)) == [good, bad]
    assert (out / "results.jsonl").read_text() == stamp
    again = list(sweep(file, out=out, jobs=1, retry=True))
    assert again[0] == good
    assert again[1]["error"] == bad["error"]
    assert again[1]["cpu_seconds"] != bad["cpu_seconds"]


def test_a_changed_study_adds_points_and_keeps_rows(settings: Settings, tmp_path: Path) -> None:
    out = tmp_path / "out"
    old = list(sweep(study(settings, tmp_path, grid={"seed": [0, 1]}), out=out, jobs=1))
    changed = study(settings, tmp_path, grid={"adapter.rank": [2, 1]}, set={"seed": 1})
    heard = Heard()
    rows = list(sweep(changed, out=out, jobs=1, observer=heard))
    assert heard.notes == [
        "1 row of points that the study has no more is left out; what they ran stays"
    ]
    # Seed 1 at rank 2 is the run that was there, now by what this study varies.
    assert rows[0] == {**old[1], "name": "rank=2", "settings": {"adapter.rank": 2}}
    assert {name for name, _ in heard.events} == {"rank=1"}
    # A report must not draw what the study does not have.
    assert [row["point"] for row in read_rows(out)] == [row["point"] for row in rows]
    back = list(sweep(study(settings, tmp_path, grid={"seed": [0, 1]}), out=out, jobs=1))
    of_seeds = {row["seed"]: row["summary"] for row in back}
    assert of_seeds == {row["seed"]: row["summary"] for row in old}  # their runs are there still


def test_nothing_runs_before_all_points_are_sound(settings: Settings, tmp_path: Path) -> None:
    fixed = {"privacy": {"trust": "site"}}
    file = study(settings, tmp_path, set=fixed, grid={"privacy.delta": [1e-3, 0.5]})
    with pytest.raises(HushtuneError, match=r"point 2: privacy\.delta = 0\.5"):
        next(iter(sweep(file, out=tmp_path / "out", jobs=1)))
    assert not (tmp_path / "out" / "points").exists()
    assert not (tmp_path / "out" / "results.jsonl").exists()


def test_folders_that_are_not_its_own_are_refused(settings: Settings, tmp_path: Path) -> None:
    file = study(settings, tmp_path, grid={"seed": [0, 1]})
    out = tmp_path / "out"
    out.mkdir()
    with held(out / ".lock", busy=BusyError("held")), pytest.raises(BusyError, match="another"):
        next(iter(sweep(file, out=out, jobs=1)))
    (out / "results.jsonl").write_text('{"point": 1}\n')
    with pytest.raises(CheckpointError, match="line 1"):
        next(iter(sweep(file, out=out, jobs=1)))
    (out / "mine.txt").write_text("mine")
    with pytest.raises(OutputExistsError, match=r"mine\.txt"):
        next(iter(sweep(file, out=out, jobs=1)))
    with pytest.raises(ConfigError, match="--jobs"):
        sweep(file, out=out, jobs=0)
    with pytest.raises(ConfigError, match="--address"):
        sweep(file, out=out, address="127.0.0.1:6379")


def test_points_of_one_base_compute_its_states_once(settings: Settings, tmp_path: Path) -> None:
    """Other privacy, rules, ranks and seeds need no new pass; other rows and layers do."""
    points = [
        {"name": "first"},
        {"name": "epsilon", "privacy": {"trust": "site", "epsilon": 8.0}},
        {"name": "rule", "aggregation": {"rule": "fedit"}},
        {"name": "rank", "adapter": {"rank": 1}},
        {"name": "seed", "seed": 5},
        {"name": "dealt", "data": {"partition": "iid", "sites": 2}},
        {"name": "tokens", "model": {"max_tokens": 6}},
    ]
    heard = Heard()
    rows = list(
        sweep(
            study(settings, tmp_path, set={"train": {"rounds": 2}}, point=points),
            out=tmp_path / "out",
            jobs=1,
            observer=heard,
        )
    )
    assert [row["status"] for row in rows] == ["done"] * 7, rows
    filled = {name for name, event in heard.events if event.get("preparing") == "frozen features"}
    assert filled == {"first", "tokens"}
    # To the bit what a run of its own computes, on the head's features and the adapter's states.
    point = points_of(read_study(tmp_path / "study.toml"), precision="float32")[0][4]
    alone = run(point.config, tmp_path / "alone")
    assert alone["adapter_digest"] == rows[4]["summary"]["adapter_digest"]


def test_the_command(settings: Settings, tmp_path: Path, hushtune: Command) -> None:
    fixed = {"privacy": {"trust": "site", "delta": 1e-3}}
    file = study(settings, tmp_path, set=fixed, grid={"privacy.epsilon": [4.0, 8.0]})
    dry = hushtune("sweep", file, "--dry-run", "--json")
    assert dry.status == 0, dry.err
    told = json.loads(dry.out.splitlines()[-1])
    assert [round(point["epsilon"]) for point in told["points"]] == [4, 8]
    assert told["minutes"] > 0
    assert "epsilon=4.0" in dry.err
    assert "spends the sum" in dry.err
    none = hushtune("sweep", file)
    assert none.status == 2
    assert "--out" in none.err
    done = hushtune("sweep", file, "--out", tmp_path / "out", "--jobs", 1, "--json")
    assert done.status == 0, done.err
    assert json.loads(done.out.splitlines()[-1]) == {
        **{"points": 2, "failed": 0},
        "out": str(tmp_path / "out"),
    }
    assert "epsilon=8.0: accuracy" in done.err
    bad = study(settings, tmp_path, grid={"adapter.layers": [9]})
    dry = hushtune("sweep", bad, "--dry-run")
    assert dry.status == 2
    assert "(in the point layers=9, which a sweep would fail)" in " ".join(dry.err.split())
    failed = hushtune("sweep", bad, "--out", tmp_path / "out", "--jobs", 1)
    assert failed.status == 1
    assert "1 of 1 points failed" in failed.out
    note = "note: 2 rows of points that the study has no more are left out; what they ran stays"
    assert note in failed.out
