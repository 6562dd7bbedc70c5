"""Points as tasks of Ray: on two nodes, and what each of their processes does."""

from __future__ import annotations

import json
import os
import sys
import types
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import RunError
from hushtune.common.tasks.shared_states import share_states
from hushtune.simulations.sweep import sweep
from hushtune.simulations.sweep.execute import Task
from hushtune.simulations.sweep.points import points_of
from hushtune.simulations.sweep.ray_engine import run_on_ray, run_point
from hushtune.simulations.sweep.study_file import read_study

from ...conftest import Settings
from .test_study_file import study


def test_a_task_is_a_point_and_its_outcome_is_json(settings: Settings, tmp_path: Path) -> None:
    file = study(settings, tmp_path, grid={"adapter.layers": [1, 9]})
    outcomes: list[dict[str, Any]] = []
    try:
        for point in points_of(read_study(file), precision="float32")[0]:
            task = Task(
                key=point.key, name=point.name, toml=point.toml, folder=str(tmp_path / point.key)
            )
            outcomes.append(json.loads(run_point(task.as_json())))
    finally:
        share_states(0)
    good, bad = outcomes
    assert good["status"] == "done"
    assert good["summary"]["out"].startswith(str(tmp_path))
    assert bad["status"] == "failed"
    assert bad["error"]["code"].startswith("HT")


def test_without_ray_it_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(RunError, match="needs Ray") as caught:
        list(run_on_ray([], [], jobs=None, address=None))
    assert "hushtune[ray]" in str(caught.value)


class Nodes:
    """As much of Ray as hands tasks to nodes: what was asked of memory, and how many at once."""

    def __init__(self, megabytes: float) -> None:
        self.memory: list[int] = []
        self.at_once: list[int] = []
        self._megabytes = megabytes

    def module(self) -> types.ModuleType:
        errors = types.ModuleType("ray.exceptions")
        errors.RayError = OSError  # pyright: ignore[reportAttributeAccessIssue]
        ray = types.ModuleType("ray")
        told = {"Alive": True, "Resources": {"memory": self._megabytes * 2**20}}
        for name, value in {
            "exceptions": errors,
            "is_initialized": lambda: True,
            "remote": lambda **_: lambda task: self,
            "nodes": lambda: [told],
            "wait": self._wait,
            "get": lambda text: text,
        }.items():
            setattr(ray, name, value)
        return ray

    def options(self, *, memory: int) -> Nodes:
        self.memory.append(memory >> 20)
        return self

    def remote(self, text: str) -> str:
        task = json.loads(text)
        return json.dumps({"status": "done", "peak_megabytes": 800.0, "key": task["key"]})

    def _wait(self, running: list[str], *, num_returns: int) -> tuple[list[str], list[str]]:
        self.at_once.append(len(running))
        return running[:num_returns], running[num_returns:]


@pytest.mark.parametrize(
    ("jobs", "has", "memory", "at_once"),
    [
        (None, 4000.0, [0, 1000, 1000, 1000], [1, 3, 2, 1]),
        (None, 900.0, [0, 900, 900, 900], [1, 3, 2, 1]),  # else it would wait for ever
        (2, 4000.0, [0, 0, 0, 0], [2, 2, 2, 1]),
    ],
)
def test_the_first_point_tells_how_much_memory_the_others_need(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    jobs: int | None,
    has: float,
    memory: list[int],
    at_once: list[int],
) -> None:
    nodes = Nodes(has)
    module: Any = nodes.module()
    monkeypatch.setitem(sys.modules, "ray", module)
    monkeypatch.setitem(sys.modules, "ray.exceptions", module.exceptions)
    (tmp_path / "summary.json").write_text("{}")
    tasks = [Task(key=str(n), name=str(n), toml="", folder=str(tmp_path)) for n in range(4)]
    points: list[Any] = [task.key for task in tasks]
    told = list(run_on_ray(points, tasks, jobs=jobs, address=None))
    assert [outcome["key"] for _, outcome, _ in told] == points
    assert nodes.memory == memory
    assert nodes.at_once == at_once


@pytest.mark.nightly
def test_points_on_a_cluster_of_two_nodes(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Each node has one core, so that two points at once are on both."""
    import ray
    from ray.cluster_utils import Cluster

    file = study(settings, tmp_path, grid={"seed": [0, 1]}, point=[{"adapter.layers": 1}])
    here = list(sweep(file, out=tmp_path / "here", jobs=1))
    # Ray's workers give way to all others, and on a busy machine would never come to anything.
    monkeypatch.setenv("RAY_worker_niceness", "0")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, sys.path)))
    cluster = Cluster(initialize_head=True, head_node_args={"num_cpus": 1})
    try:
        cluster.add_node(num_cpus=1)
        there = list(sweep(file, out=tmp_path / "there", engine="ray", address=cluster.address))
        assert not ray.is_initialized()
        assert len(cluster.list_all_nodes()) == 2
    finally:
        cluster.shutdown()
    found = {row["point"]: row for row in there}
    assert found.keys() == {row["point"] for row in here}
    for row in here:
        again = found[row["point"]]
        assert again["status"] == row["status"]
        assert (again["error"] or {}).get("code") == (row["error"] or {}).get("code")
        if row["status"] == "done":  # without noise, the same model wherever it was trained
            assert again["summary"]["adapter_digest"] == row["summary"]["adapter_digest"]
            assert (tmp_path / "there" / "points" / row["point"] / "privacy.md").is_file()
