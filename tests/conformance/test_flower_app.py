"""What Flower's own command line does with the repository: ``flwr build`` and ``flwr run .``."""

from __future__ import annotations

import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
import zipfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hushtune.common.environment import QUIET
from hushtune.simulations import run

ROOT = Path(__file__).resolve().parents[2]
BUNDLED = (
    "LICENSE",
    "README.md",
    "hushtune_clientapp.py",
    "hushtune_serverapp.py",
    "pyproject.toml",
)
BIN = Path(sys.executable).parent


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a fresh clone holds, as far as Flower is concerned, and some things it must leave."""
    folder = tmp_path / "hushtune-app"
    folder.mkdir()
    for name in BUNDLED:
        shutil.copy(ROOT / name, folder / name)
    for name in ("client", "common", "server", "simulations"):
        ignored = shutil.ignore_patterns("__pycache__")
        shutil.copytree(ROOT / name, folder / name, ignore=ignored)
    (folder / "runs" / "demo").mkdir(parents=True)
    (folder / "runs" / "demo" / "notes.md").write_text("a patient's text\n", encoding="utf-8")
    (folder / "patients.csv").write_text("text,label\n", encoding="utf-8")
    (folder / "secrets.py").write_text("TOKEN = 1\n", encoding="utf-8")
    return folder


def flower_environment(home: Path) -> dict[str, str]:
    kept = {k: v for k, v in os.environ.items() if not k.startswith("FLWR_")}
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**kept, **QUIET, "FLWR_HOME": str(home), "PATH": path, "OMP_NUM_THREADS": "1"}


@pytest.mark.parametrize("where", ["checkout", "root"])
def test_a_bundle_holds_what_it_needs_and_nothing_else(
    where: str, checkout: Path, tmp_path: Path
) -> None:
    """The code is what each site has installed and reviewed; a bundle only names it."""
    folder = checkout if where == "checkout" else ROOT
    at = tmp_path / "bundle"
    at.mkdir()
    done = subprocess.run(
        [BIN / "flwr", "build", "--app", folder],
        cwd=at,
        env=flower_environment(tmp_path / "home"),
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (bundle,) = at.glob("*.fab")
    with zipfile.ZipFile(bundle) as archive:
        names = sorted(n for n in archive.namelist() if not n.startswith(".info/"))
        shim = archive.read("hushtune_clientapp.py").decode()
    assert names == sorted(BUNDLED)
    assert "from hushtune.client.app import app" in shim
    assert bundle.stat().st_size < 100_000


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture
def superlink(tmp_path: Path) -> Iterator[dict[str, str]]:
    """A SuperLink of our own on free ports, with the environment to reach it; ended afterwards."""
    home = tmp_path / "flower-home"
    home.mkdir()
    port, control, health = free_port(), free_port(), free_port()
    environment = flower_environment(home)
    (home / "config.toml").write_text(
        '[superlink]\ndefault = "own"\n\n'
        f'[superlink.own]\naddress = "127.0.0.1:{port}"\ninsecure = true\n',
        encoding="utf-8",
    )
    log = home / "superlink.txt"
    with log.open("w", encoding="utf-8") as output:
        process = subprocess.Popen(
            [
                *(BIN / "flower-superlink", "--insecure", "--simulation"),
                *("--isolation", "subprocess", "--host", "127.0.0.1", "--port", str(port)),
                *("--control-api-address", f"127.0.0.1:{control}"),
                *("--health-server-address", f"127.0.0.1:{health}"),
            ],
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,  # so that what it starts can be ended with it
        )
    try:
        deadline = time.monotonic() + 90
        while time.monotonic() < deadline:
            assert process.poll() is None, log.read_text(encoding="utf-8")
            with socket.socket() as probe:
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    break
            time.sleep(0.3)
        yield environment
    finally:
        os.killpg(process.pid, signal.SIGTERM)
        try:
            process.wait(timeout=20)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def flwr(checkout: Path, environment: dict[str, str], *arguments: str) -> dict[str, Any]:
    done = subprocess.run(
        [BIN / "flwr", *arguments, "--format", "json"],
        cwd=checkout,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(done.stdout[done.stdout.index("{") :])


@pytest.mark.slow
def test_flwr_run_gives_the_adapter_of_the_in_process_engine(
    checkout: Path, superlink: dict[str, str], settings: Any, tmp_path: Path
) -> None:
    toml, out = settings.file(tmp_path), tmp_path / "flower-out"
    started = flwr(
        checkout,
        superlink,
        *("run", ".", "--federation-config", "num-supernodes=3 client-resources-num-cpus=1"),
        *("--run-config", f'config="{toml}" out="{out}"'),
    )
    number = str(started["run-id"])
    status, deadline, asked = "", time.monotonic() + 300, time.monotonic()
    while not status.startswith("finished") and time.monotonic() < deadline:
        time.sleep(1)  # to ask is to start a process: at once when the run is over, seldom before
        if not (out / "summary.json").is_file() and time.monotonic() < asked + 20:
            continue
        asked = time.monotonic()
        status = flwr(checkout, superlink, "list", "--run-id", number)["runs"][0]["status"]
    log = Path(superlink["FLWR_HOME"], "superlink.txt").read_text(encoding="utf-8")
    assert status == "finished:completed", f"{status}\n{log[-4000:]}"

    run(settings.config(), tmp_path / "here")
    for name in ("adapter_model.safetensors", "head.safetensors"):
        left = load_file(tmp_path / "here" / "adapter" / name)
        right = load_file(out / "adapter" / name)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert (tensor - right[key]).abs().max() <= 1e-6, key
    assert (out / "config.toml").read_text() == (tmp_path / "here" / "config.toml").read_text()
