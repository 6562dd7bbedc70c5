"""What `make` would run; nothing is run."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A repository whose setup is done."""
    if shutil.which("make") is None:
        pytest.skip("no make here")
    for name in ("Makefile", "pyproject.toml"):
        shutil.copy(ROOT / name, tmp_path / name)
    (tmp_path / ".venv").mkdir()
    (tmp_path / ".venv" / ".stamp").touch()
    return tmp_path


def make(folder: Path, *arguments: str) -> str:
    return subprocess.run(
        ["make", "--no-print-directory", "-C", folder, *arguments],
        capture_output=True,
        text=True,
        check=True,
    ).stdout


def test_a_demo_that_was_begun_goes_on(folder: Path) -> None:
    first = make(folder, "-n", "demo")
    assert "simulate --out runs/demo --preset demo" in first
    assert "--resume" not in first
    (folder / "runs" / "demo").mkdir(parents=True)
    (folder / "runs" / "demo" / "config.toml").touch()
    second = make(folder, "-n", "demo")
    assert "simulate --out runs/demo --resume\n" in second
    assert "--overwrite" not in second
    assert "AGAIN=1" in second  # how to train it anew, said behind what is left as it is
    again = make(folder, "-n", "demo", "AGAIN=1")
    assert "--preset demo --overwrite" in again
    assert "--resume" not in again


def test_help_says_how_to_begin_anew(folder: Path) -> None:
    (line,) = (line for line in make(folder).splitlines() if "make demo " in line)
    assert "AGAIN=1" in line
