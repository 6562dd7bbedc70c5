"""Points in processes: who gets which, and what is left when they are killed."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

from hushtune.client.site import ledger_path
from hushtune.common.privacy.ledger import Ledger
from hushtune.simulations.sweep import sweep, worker
from hushtune.simulations.sweep.execute import Task
from hushtune.simulations.sweep.points import Point
from hushtune.simulations.sweep.running import Unheard
from hushtune.simulations.sweep.workers import (
    fitting,
    free_megabytes,
    next_point,
    run_in_processes,
)

from ...conftest import Settings
from .test_study_file import study

PRIVATE = {"trust": "site", "delta": 1e-3}
ROUNDS = 20


@dataclass(frozen=True)
class Shares:
    """As much of a point as is asked for to choose one."""

    shares: tuple[str, str]
    key: str = ""


def test_a_process_goes_on_with_what_shares_most() -> None:
    names = ("a1", "a2", "b1", "b2", "b3")
    a1, a2, b1, b2, b3 = points = [Shares((name[0], name)) for name in names]

    def chosen(pending: list[Any], last: Any, busy: set[str]) -> Any:
        return next_point(pending, last=last, busy=busy)

    assert chosen(points, None, set()) is b1  # the most are left of it
    assert chosen(points, None, {"b"}) is a1  # where no other process is at work
    assert chosen([a2, b1, b2], a1, {"b"}) is a2
    assert chosen([a1, b3, b2], b2, {"a"}) is b2  # the same workspace
    assert chosen([b1, b3], a1, {"b"}) is b1  # rather than stand idle


def test_processes_are_as_many_as_memory_is_for() -> None:
    assert fitting(8, peak=1000.0, room=4000.0) == 3
    assert fitting(2, peak=1.0, room=4000.0) == 2
    assert fitting(8, peak=5000.0, room=100.0) == 1
    assert 0 < free_megabytes() < 1e8


def alive(out: Path) -> list[psutil.Process]:
    """Workers of a sweep into ``out`` that still run."""
    found = []
    for process in psutil.process_iter():
        try:
            logs = (
                [file.path for file in process.open_files()] if process.pid != os.getpid() else []
            )
        except psutil.Error:
            continue
        found += [process] if any(Path(path).is_relative_to(out) for path in logs) else []
    return found


@pytest.mark.slow
def test_what_kill_9_leaves_is_gone_on_with(settings: Settings, tmp_path: Path) -> None:
    """The command is killed in the middle of its points: its processes end with it, each point goes
    on from its checkpoint, and no round is charged twice."""
    train = {"rounds": ROUNDS, "warmup_rounds": ROUNDS, "local_steps": 1}
    file = study(
        settings, tmp_path, set={"privacy": PRIVATE, "train": train}, grid={"seed": [0, 1]}
    )
    out = tmp_path / "out"
    command = [sys.executable, "-m", "hushtune.simulations.cli", "sweep", str(file)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    process = subprocess.Popen(
        [*command, "--out", str(out), "--jobs", "2"],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:
        _wait(lambda: len([*(out / "logs").glob("*")]) == 2, process)
        workers = alive(out / "logs")
        assert len(workers) == 2
        _wait(lambda: _rounds(out) >= 1, process)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    gone, left = psutil.wait_procs(workers, timeout=30)
    assert (len(gone), left) == (2, [])
    begun = _rounds(out)
    assert begun < 2 * ROUNDS
    rows = list(sweep(file, out=out, jobs=1))
    assert [row["status"] for row in rows] == ["done"] * 2, rows
    assert _rounds(out) == 2 * ROUNDS
    for row in rows:
        for site in row["summary"]["sites"]:
            entries = Ledger(ledger_path(out / "points" / row["point"], site)).entries()
            assert len(entries) == ROUNDS


def _rounds(out: Path) -> int:
    files = (out / "points").glob("*/metrics.jsonl")
    return sum(file.read_text(encoding="utf-8").count("\n") for file in files)


def _wait(ready: Any, process: subprocess.Popen[bytes]) -> None:
    end = time.monotonic() + 240
    while not ready():
        assert time.monotonic() < end, "nothing began"
        assert process.poll() is None, "it ended too early"
        time.sleep(0.02)


class Killer(Unheard):
    """Kills the process that is at the first round it hears of: the first point runs alone."""

    def __init__(self) -> None:
        self.killed: str | None = None

    def told(self, point: Point, event: dict[str, Any]) -> None:
        if self.killed is None and event.get("round"):
            self.killed = point.name
            children = psutil.Process().children()
            (process,) = [child for child in children if worker.__name__ in child.cmdline()]
            process.kill()


def test_a_process_that_ends_in_the_middle_of_a_line_fails_its_point_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "worker"
    program.write_text('#!/bin/sh\nread line\nprintf \'{"event": {"rou\'\nexit 7\n')
    program.chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(program))
    points: list[Any] = [Shares(("a", name), name) for name in ("one", "two")]
    tasks = [Task(key=name, name=name, toml="", folder="") for name in ("one", "two")]
    told = list(run_in_processes(points, tasks, jobs=1, logs=tmp_path / "logs"))
    assert [point.key for point, _, _ in told] == ["one", "two"]
    for _, outcome, is_outcome in told:
        assert is_outcome
        assert outcome["status"] == "failed"
        assert "exit status 7" in outcome["error"]["text"]


@pytest.mark.slow
def test_a_process_that_is_killed_fails_its_point_alone(settings: Settings, tmp_path: Path) -> None:
    train = {"rounds": ROUNDS, "warmup_rounds": ROUNDS, "local_steps": 1}
    file = study(
        settings, tmp_path, set={"privacy": PRIVATE, "train": train}, grid={"seed": [0, 1]}
    )
    out = tmp_path / "out"
    killer = Killer()
    rows = {row["name"]: row for row in sweep(file, out=out, observer=killer)}
    assert killer.killed is not None
    failed = rows.pop(killer.killed)
    assert [row["status"] for row in rows.values()] == ["done"]
    assert failed["status"] == "failed"
    assert failed["error"]["code"] == "HT600"
    assert "signal 9" in failed["error"]["text"]
    again = list(sweep(file, out=out, jobs=1, retry=True))
    assert [row["status"] for row in again] == ["done", "done"]
    assert _rounds(out) == 2 * ROUNDS
