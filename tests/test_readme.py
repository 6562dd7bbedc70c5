"""The README's promises: its blocks run, its links and paths exist, its commands are there."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
BLOCK = re.compile(r"<!-- test -->\n```(\w+)\n(.*?)```", re.DOTALL)


def _environment() -> dict[str, str]:
    return {**os.environ, "PATH": f"{BIN}{os.pathsep}{os.environ['PATH']}", "COLUMNS": "100"}


def _write_reviews(folder: Path) -> None:
    kinds = {"good": ["kind", "warm", "careful"], "bad": ["rude", "cold", "careless"]}
    rows = [
        f"The {place} staff were {word} on day {day},{rating},{place}"
        for place in ("north", "south")
        for day in range(40)
        for rating, words in kinds.items()
        for word in words
    ]
    text = "review,rating,hospital\n" + "\n".join(rows) + "\n"
    (folder / "reviews.csv").write_text(text, encoding="utf-8")


@pytest.mark.slow
@pytest.mark.parametrize("place", range(len(BLOCK.findall(README))))
def test_marked_blocks_run(place: int, tmp_path: Path) -> None:
    language, code = BLOCK.findall(README)[place]
    _write_reviews(tmp_path)
    command = ["bash", "-euo", "pipefail", "-c", code]
    if language == "python":
        command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=tmp_path, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    made = {path.name for path in tmp_path.rglob("summary.json")}
    assert made == {"summary.json"}


def test_there_are_marked_blocks() -> None:
    assert [language for language, _ in BLOCK.findall(README)] == ["sh", "python"]


def test_links_lead_somewhere() -> None:
    targets = re.findall(r"\]\(([^)#]+)[^)]*\)", README)
    local = [target for target in targets if "://" not in target]
    assert local
    assert [target for target in local if not (ROOT / target).exists()] == []


def test_the_tree_names_what_is_there() -> None:
    tree = README.split("## Source tree")[1].split("```")[1]
    named = re.findall(r"^(\w[\w./]*)", tree, re.MULTILINE)
    assert [name for name in named if not (ROOT / name).exists()] == []
    tracked = {"client/", "server/", "common/", "simulations/", "tests/", "benchmarks/", "docs/"}
    assert tracked <= set(named)


@pytest.mark.parametrize(
    ("command", "options"),
    [
        ("simulate", ["--preset", "--config", "--set", "--out", "--resume", "--overwrite",
                      "--json", "--dry-run"]),
        ("data preview", ["--text", "--label", "--site"]),
        ("predict", ["--json"]),
        ("export", ["--to", "--merged"]),
        ("doctor", ["--json"]),
        ("config new", []),
    ],
)  # fmt: skip
def test_commands_have_the_options_that_are_named(command: str, options: list[str]) -> None:
    done = subprocess.run(
        [str(BIN / "hushtune"), *command.split(), "--help"],
        env={**_environment(), "COLUMNS": "200", "NO_COLOR": "1"},
        capture_output=True,
        text=True,
        check=True,
    )
    assert [option for option in options if option not in done.stdout] == []
