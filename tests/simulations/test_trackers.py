"""Figures of a run in TensorBoard and MLflow are those of its own files, in real local stores."""

from __future__ import annotations

import json
import shutil
import threading
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import CheckpointError, ConfigError, RunError
from hushtune.common.files import read_json_lines
from hushtune.simulations.outputs import METRICS, SUMMARY
from hushtune.simulations.study import run
from hushtune.simulations.trackers import EXPERIMENT, run_name, scalars, track

from ..conftest import Command, Settings

pytest.importorskip("tensorboard")
pytest.importorskip("mlflow")

pytestmark = pytest.mark.filterwarnings(  # within MLflow itself
    "ignore:.*noload.*:DeprecationWarning",
    "ignore:.*noload.*:sqlalchemy.exc.SADeprecationWarning",
)

Told = dict[str, list[tuple[int, float]]]


@pytest.fixture(scope="module")
def finished(tiny_bert: Path, three_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A private run of three rounds."""
    folder = tmp_path_factory.mktemp("tracked") / "three rounds"
    private = {"trust": "site", "epsilon": 8.0, "delta": 1e-3}
    run(Settings(tiny_bert, three_sites).config(privacy=private), folder)
    return folder


def rows_of(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (folder / METRICS).read_text().splitlines()]


def in_tensorboard(folder: Path) -> Told:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder))
    events.Reload()
    return {
        tag: [(event.step, event.value) for event in events.Scalars(tag)]
        for tag in events.Tags()["scalars"]
    }


def in_mlflow(uri: str) -> tuple[dict[str, Any], dict[str, str]]:
    """The metrics' histories and the settings of the one run that is there."""
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=uri)
    experiment = client.get_experiment_by_name(EXPERIMENT)
    assert experiment is not None
    (found,) = client.search_runs([experiment.experiment_id])
    assert found.info.status == "FINISHED"
    histories = {
        key: [
            (point.step, point.value) for point in client.get_metric_history(found.info.run_id, key)
        ]
        for key in found.data.metrics
    }
    return histories, found.data.params


def test_both_hold_every_figure_of_every_round(
    finished: Path, tmp_path: Path, hushtune: Command
) -> None:
    uri, board = f"sqlite:///{tmp_path}/m.db", tmp_path / "board"
    for _ in range(2):  # the second time replaces the first
        to = ("--to", f"tensorboard:{board}", "--to", f"mlflow:{uri}")
        done = hushtune("track", finished, *to)
        assert done.status == 0, done.err
    told, (logged, params) = in_tensorboard(board / run_name(finished)), in_mlflow(uri)
    rows, summary = rows_of(finished), json.loads((finished / SUMMARY).read_text())
    for key in {key for row in rows for key in scalars(row)}:
        wanted = {row["round"]: scalars(row)[key] for row in rows if key in scalars(row)}
        assert dict(told[key]) == pytest.approx(wanted, rel=1e-6)  # TensorBoard keeps float32
        assert dict(logged[key]) == pytest.approx(wanted)
        assert len(told[key]) == len(logged[key]) == len(wanted)
    for site in summary["sites"]:
        assert len(told[f"epsilon/{site}"]) == 3
    assert logged["final/metrics/accuracy"] == [(3, summary["value"])]
    assert params["train.rounds"] == "3"
    assert params["privacy.epsilon"] == "8.0"


def test_a_run_is_followed_until_it_is_finished(finished: Path, tmp_path: Path) -> None:
    going = tmp_path / "going"
    shutil.copytree(finished, going, ignore=shutil.ignore_patterns(SUMMARY))
    lines = (finished / METRICS).read_text().splitlines(keepends=True)
    (going / METRICS).write_text(lines[0] + lines[1][:40])  # the second is being written
    found: list[int] = []
    watch = threading.Thread(
        target=lambda: found.append(track(going, [f"tensorboard:{tmp_path}/b"], follow=True))
    )
    watch.start()
    watch.join(2.5)
    assert watch.is_alive()
    assert [step for step, _ in in_tensorboard(tmp_path / "b" / run_name(going))["bytes_up"]] == [1]
    (going / METRICS).write_text("".join(lines))
    shutil.copy(finished / SUMMARY, going)
    watch.join(20)
    assert found == [3]
    assert [step for step, _ in in_tensorboard(tmp_path / "b" / run_name(going))["bytes_up"]] == [
        1,
        2,
        3,
    ]


def test_what_is_no_number_is_not_told() -> None:
    row = {"round": 1, "a": {"b": True, "c": float("nan"), "d": 2}, "e": "f", "g": None, "h": [1]}
    assert scalars(row) == {"a/d": 2.0}


@pytest.mark.parametrize("where", ["wandb:x", "tensorboard", "mlflow:"])
def test_a_place_that_is_none_is_named(finished: Path, where: str) -> None:
    with pytest.raises(ConfigError, match="no such tracker"):
        track(finished, [where])


def test_what_is_somebody_else_s_is_left_alone(finished: Path, tmp_path: Path) -> None:
    mine = tmp_path / run_name(finished) / "notes.txt"
    mine.parent.mkdir()
    mine.write_text("mine")
    with pytest.raises(RunError, match="something else"):
        track(finished, [f"tensorboard:{tmp_path}"])
    assert mine.read_text() == "mine"
    with pytest.raises(RunError, match="did not take"):
        track(finished, ["mlflow:nonsense://"])
    with pytest.raises(CheckpointError):
        track(tmp_path / "none", [f"tensorboard:{tmp_path}"])


def test_a_damaged_line_is_named_and_one_that_is_being_written_waited_for(tmp_path: Path) -> None:
    path = tmp_path / METRICS
    path.write_text('{"round": 1}\n{"rou')
    assert read_json_lines(path, remedy="wait", growing=True) == [{"round": 1}]
    with pytest.raises(CheckpointError, match="is damaged"):
        read_json_lines(path, remedy="begin anew")
    path.write_text('{"rou\n{"round": 2}\n')
    with pytest.raises(CheckpointError, match="is damaged"):
        read_json_lines(path, remedy="begin anew", growing=True)
