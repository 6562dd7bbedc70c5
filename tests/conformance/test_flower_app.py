"""What Flower's own command line does with the repository: ``flwr build`` and ``flwr run .``."""

from __future__ import annotations

import subprocess
import zipfile
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from hushtune.simulations import run

from .flower_commands import (
    BIN,
    BUNDLED,
    ROOT,
    copied_checkout,
    flower_environment,
    flwr,
    superlink,
    wait_for_run,
)

LAST = "adapter_model.safetensors"


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """What a fresh clone holds, as far as Flower is concerned, and some things it must leave."""
    folder = copied_checkout(tmp_path / "hushtune-app")
    (folder / "runs" / "demo").mkdir(parents=True)
    (folder / "runs" / "demo" / "notes.md").write_text("a patient's text\n", encoding="utf-8")
    (folder / "patients.csv").write_text("text,label\n", encoding="utf-8")
    (folder / "secrets.py").write_text("TOKEN = 1\n", encoding="utf-8")
    return folder


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


@pytest.mark.slow
def test_flwr_run_gives_the_adapter_of_the_in_process_engine(
    checkout: Path, settings: Any, tmp_path: Path
) -> None:
    toml, out, home = settings.file(tmp_path), tmp_path / "flower-out", tmp_path / "flower-home"
    with superlink(home, "--simulation"):
        started = flwr(
            checkout,
            home,
            *("run", ".", "--federation-config", "num-supernodes=3 client-resources-num-cpus=1"),
            *("--run-config", f'config="{toml}" out="{out}"'),
        )
        wait_for_run(checkout, home, str(started["run-id"]), out / "adapter" / LAST)
    run(settings.config(), tmp_path / "here")
    for name in ("adapter_model.safetensors", "head.safetensors"):
        left = load_file(tmp_path / "here" / "adapter" / name)
        right = load_file(out / "adapter" / name)
        assert left.keys() == right.keys()
        for key, tensor in left.items():
            assert (tensor - right[key]).abs().max() <= 1e-6, key
    assert (out / "config.toml").read_text() == (tmp_path / "here" / "config.toml").read_text()
