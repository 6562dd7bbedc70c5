"""A ServerApp that outlives its server, or is stopped: what it tells, and how it is ended."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from flwr.serverapp import Grid

from hushtune.common.config_io import dump_toml
from hushtune.common.errors import InterruptedRunError
from hushtune.common.run_context import OUT, TOML
from hushtune.server.deployment import federate as federating
from hushtune.server.deployment.enrol import enrol
from hushtune.server.deployment.home import Home
from hushtune.server.deployment.launch import launch
from hushtune.server.deployment.run_process import SERVER_PROCESS, end_process, process_start
from hushtune.server.deployment.status import read_state, run_status

from .test_server_runs import Server, card, config, home, plan, server, told

__all__ = ["home", "server"]  # fixtures

GONE = f"{2**22 + 1} another 1"
STUBBORN = "import signal; signal.signal(15, signal.SIG_IGN); print(flush=True); input()"


def begun(home: Home) -> Path:
    folder = home.runs / "first"
    folder.mkdir()
    (folder / "config.toml").write_text(dump_toml(config()))
    (folder / "flower.json").write_text('{"run_id": "76"}')
    return folder


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc")
def test_a_process_of_a_killed_server_is_ended_before_its_run_is_taken_up(
    home: Home, server: Server
) -> None:
    enrol(home, card("north"))
    begun(home)
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as old:
        began = process_start(old.pid)
        told(home, status="running", pid=old.pid, process=began, server=GONE, round=1)

        def start() -> None:
            assert old.poll() is not None
            told(home, status="finished", round=4)

        server.on_start = start
        seen: list[str] = []
        launch(home, plan(home, resume=True), on_status=lambda run: seen.append(run["status"]))
    assert (seen, server.stopped, len(server.started)) == (["finished"], [76], 1)


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc")
def test_a_process_is_killed_that_does_not_end_and_no_other(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hushtune.server.deployment.run_process._ASKED", 0.1)
    pipe = subprocess.PIPE
    with subprocess.Popen([sys.executable, "-c", STUBBORN], stdin=pipe, stdout=pipe) as old:
        assert old.stdout is not None
        old.stdout.readline()
        for process in (None, "another 1"):
            end_process({"pid": old.pid, "process": process})
        time.sleep(0.05)
        assert old.poll() is None
        end_process({"pid": old.pid, "process": process_start(old.pid)})
        assert old.wait(5) == -9
    end_process({"pid": os.getpid(), "process": process_start(os.getpid())})


@pytest.mark.parametrize("error", [SystemExit(0), KeyboardInterrupt()])
def test_a_run_that_is_stopped_is_interrupted(
    home: Home, server: Server, monkeypatch: pytest.MonkeyPatch, error: BaseException
) -> None:
    folder = begun(home)

    def stop(*_: Any) -> None:
        raise error

    monkeypatch.setattr(federating, "_run", stop)
    monkeypatch.setattr(federating, "PollingGrid", lambda grid: grid)
    context: Any = SimpleNamespace(run_config={TOML: dump_toml(config()), OUT: str(folder)})
    with pytest.raises(type(error)):
        federating.main(cast(Grid, None), context)
    kept = run_status(folder)
    assert (kept["status"], kept["error"]["code"]) == ("interrupted", "HT604")
    assert kept["error"]["do"] == f"hushtune server run {home.folder} --resume --name first"
    assert None not in kept["error"].values()
    ended = json.dumps(read_state(folder))
    enrol(home, card("north"))

    def start() -> None:
        (folder / "state.json").write_text(ended)

    server.on_start = start
    with pytest.raises(InterruptedRunError, match="stopped before its end"):
        launch(home, plan(home, resume=True))


def test_a_process_whose_server_is_gone_writes_nothing(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = begun(home)
    told(home, status="starting")
    before = (folder / "state.json").read_bytes()
    monkeypatch.setenv(SERVER_PROCESS, GONE)
    monkeypatch.delenv("HUSHTUNE_SERVER", raising=False)
    monkeypatch.setattr(federating, "PollingGrid", lambda grid: grid)
    context: Any = SimpleNamespace(run_config={TOML: dump_toml(config()), OUT: str(folder)})
    with pytest.raises(KeyError):
        federating.main(cast(Grid, None), context)
    assert (folder / "state.json").read_bytes() == before
