"""Flower's own commands on this machine's loopback: started, reached and ended by their ids."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from hushtune.common.environment import QUIET
from hushtune.common.ports import free_port

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = (
    "LICENSE",
    "README.md",
    "hushtune_clientapp.py",
    "hushtune_serverapp.py",
    "pyproject.toml",
)
BIN = Path(sys.executable).parent


def copied_checkout(folder: Path) -> Path:
    """What a fresh clone holds, as far as Flower is concerned."""
    folder.mkdir()
    for name in BUNDLED:
        shutil.copy(ROOT / name, folder / name)
    for name in ("client", "common", "server", "simulations"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    return folder


def flower_environment(home: Path) -> dict[str, str]:
    """Quiet, and with a home of its own for all that Flower keeps."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **QUIET, "FLWR_HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"}


def wait_until(there: Callable[[], bool], *, seconds: float, every: float = 0.3) -> None:
    """AssertionError if it is not so in that time."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(every)


@contextmanager
def started(*command: str | Path, home: Path, cwd: Path) -> Iterator[subprocess.Popen[bytes]]:
    """A process in a session of its own, so that what it starts can be ended with it.

    Its output goes to ``output.txt`` in ``home``.
    """
    with (home / "output.txt").open("wb") as output:
        process = subprocess.Popen(
            command,
            cwd=cwd,
            env=flower_environment(home),
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        yield process
    finally:
        end(process)


def end(process: subprocess.Popen[bytes]) -> None:
    """Ask a process and what it started to end, and see to it."""
    for how in (signal.SIGTERM, signal.SIGKILL):
        try:
            os.killpg(process.pid, how)
        except ProcessLookupError:
            break
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            continue
    process.wait()


@contextmanager
def superlink(home: Path, *arguments: str) -> Iterator[int]:
    """A SuperLink of our own on free ports, told of in ``home``; its port."""
    home.mkdir()
    port, control, health = free_port(), free_port(), free_port()
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "own"\n\n'
        f'[superlink.own]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    command = (
        *(BIN / "flower-superlink", "--insecure", *arguments),
        *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)),
        *("--control-api-address", f"127.0.0.1:{control}"),
        *("--health-server-address", f"127.0.0.1:{health}"),
    )

    def listens() -> bool:
        assert process.poll() is None, (home / "output.txt").read_text(encoding="utf-8")
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", port)) == 0

    with started(*command, home=home, cwd=home) as process:
        wait_until(listens, seconds=90)
        yield port


def flwr(checkout: Path, home: Path, *arguments: str) -> dict[str, Any]:
    """What a ``flwr`` command answers."""
    done = subprocess.run(
        [BIN / "flwr", *arguments, "--format", "json"],
        cwd=checkout,
        env=flower_environment(home),
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


def wait_for_run(checkout: Path, home: Path, number: str, done: Path) -> None:
    """Until a run is over, with success; ``done`` is the file that it writes last."""
    status, deadline, asked = "", time.monotonic() + 300, time.monotonic()
    while not status.startswith("finished") and time.monotonic() < deadline:
        time.sleep(1)  # to ask is to start a process: at once when the run is over, seldom before
        if not done.is_file() and time.monotonic() < asked + 20:
            continue
        asked = time.monotonic()
        status = flwr(checkout, home, "list", "--run-id", number)["runs"][0]["status"]
    log = (home / "output.txt").read_text(encoding="utf-8")
    assert status == "finished:completed", f"{status}\n{log[-4000:]}"
