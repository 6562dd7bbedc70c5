"""The README's promises: its blocks run, its links and paths exist, its commands are there."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import cache
from itertools import takewhile
from pathlib import Path

import pytest

from hushtune.common.environment import QUIET

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BIN = Path(sys.executable).parent
RUNNABLE = re.compile(r"<!-- test -->\n```(\w+)\n(.*?)```", re.DOTALL)
FENCED = re.compile(r"```(\w*)\n(.*?)```", re.DOTALL)
PAGES = [
    ROOT / "README.md",
    ROOT / "CONTRIBUTING.md",
    ROOT / "CHANGELOG.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]
MAX_LINES = 220


def _environment() -> dict[str, str]:
    path = f"{BIN}{os.pathsep}{os.environ['PATH']}"
    return {**os.environ, "PATH": path, "COLUMNS": "200", "NO_COLOR": "1"}


def _write_reviews(folder: Path) -> None:
    kinds = {"good": ("kind", "warm", "careful"), "bad": ("rude", "cold", "careless")}
    rows = [
        f"The {place} staff were {word} on day {day},{rating},{place}"
        for place in ("north", "south")
        for day in range(20)
        for rating, words in kinds.items()
        for word in words
    ]
    text = "review,rating,hospital\n" + "\n".join(rows) + "\n"
    (folder / "reviews.csv").write_text(text, encoding="utf-8")


# ------------------------------------------------------------------------------ what runs ----


def _run_block(language: str, code: str, folder: Path) -> None:
    """Run a block as a reader would, in a folder that holds reviews.csv."""
    _write_reviews(folder)
    command = ["bash", "-euo", "pipefail", "-c", code]
    if language == "python":
        command = [sys.executable, "-c", code]
    done = subprocess.run(
        command, cwd=folder, env=_environment(), capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def _block(language: str) -> str:
    (code,) = [code for found, code in RUNNABLE.findall(README) if found == language]
    return code


def test_both_ways_to_run_are_tested() -> None:
    """A marker that is lost would leave its block untested."""
    assert sorted(language for language, _ in RUNNABLE.findall(README)) == ["python", "sh"]
    assert README.count("<!-- test -->") == 2


@pytest.mark.slow
def test_the_example_of_the_page_on_training_runs(tmp_path: Path) -> None:
    page = (ROOT / "docs" / "training.md").read_text(encoding="utf-8")
    ((language, code),) = RUNNABLE.findall(page)
    _run_block(language, code, tmp_path)
    summary = json.loads((tmp_path / "runs" / "craft" / "summary.json").read_text())
    assert {row["train_rows"] for row in summary["sites"].values()} == {32}
    assert summary["stopped"] is not None
    told = json.loads((tmp_path / "runs" / "folds" / "folds.json").read_text())
    assert list(told["folds"]) == ["fold-1", "fold-2"]


@pytest.mark.slow
def test_the_commands_run_on_ones_own_data(tmp_path: Path) -> None:
    _run_block("sh", _block("sh"), tmp_path)
    table = README.split("## What a run leaves")[1].split("\n## ")[0]
    named = [name for row in re.findall(r"^\| (`.*?) \|", table, re.MULTILINE) for name in
             re.findall(r"`([^`]+)`", row)]  # fmt: skip
    assert len(named) >= 9
    run = tmp_path / "runs" / "mine"
    assert [name for name in named if not (run / name).exists()] == []
    # Nothing is left there that the table does not name.
    assert {path.name for path in run.iterdir()} == {name.rstrip("/") for name in named}
    assert (tmp_path / "exported" / "modules.json").is_file()


@pytest.mark.slow
def test_the_same_from_python(tmp_path: Path) -> None:
    _run_block("python", _block("python"), tmp_path)
    assert (tmp_path / "runs" / "tiny" / "summary.json").is_file()


def test_the_configuration_in_the_readme_is_one(tmp_path: Path) -> None:
    """The quick part of the above: no key that hushtune does not know."""
    from hushtune.common.config_io import load_config

    toml = _block("sh").split("<<'TOML'\n")[1].split("TOML\n")[0]
    path = tmp_path / "run.toml"
    path.write_text(toml, encoding="utf-8")
    assert load_config(path).data.site == tomllib.loads(toml)["data"]["site"]


# ---------------------------------------------------------------------- commands, options ----


@cache
def _help(*command: str) -> str:
    done = subprocess.run(
        [str(BIN / "hushtune"), *command, "--help"],
        env=_environment(),
        capture_output=True,
        text=True,
        check=False,
    )
    return done.stdout if done.returncode == 0 else ""


def _called() -> list[tuple[tuple[str, ...], list[str]]]:
    """Each `hushtune` command in the README, with the options that it is given there."""
    blocks = "\n".join(code for _, code in FENCED.findall(README))
    lines = re.findall(r"^\s*(?:\S*/)?hushtune (.*)$", blocks, re.MULTILINE)
    lines += re.findall(r"`hushtune ([^`]+)`", FENCED.sub("", README))
    calls: list[tuple[tuple[str, ...], list[str]]] = []
    for line in lines:
        words = shlex.split(line, comments=True)
        words = list(takewhile(lambda word: word not in (">", "|"), words))
        depth = 2 if words[0] in ("config", "data") else 1
        options = [word.split("=")[0] for word in words if word.startswith("--")]
        calls.append((tuple(words[:depth]), options))
    return calls


def test_every_command_and_option_exists() -> None:
    calls = _called()
    assert {("simulate",), ("predict",), ("export",), ("config", "new")} <= {c for c, _ in calls}
    for command, options in calls:
        page = _help(*command)
        assert page, f"there is no hushtune {' '.join(command)}"
        for option in options:
            assert re.search(rf"(?<![\w-]){option}(?![\w-])", page), f"{command} has no {option}"


def test_options_named_in_passing_are_those_of_simulate() -> None:
    text = FENCED.sub("", README).split("## Your own data")[1].split("\n## ")[0]
    named = re.findall(r"`(--[\w-]+)[^`]*`", text)
    assert {"--dry-run", "--set", "--resume", "--overwrite", "--json"} <= set(named)
    assert [option for option in named if option not in _help("simulate")] == []


def test_settings_named_in_passing_exist() -> None:
    from hushtune.common.config import RunConfig

    sections = set(RunConfig.model_fields) - {"seed"}
    keys = re.findall(rf"`((?:{'|'.join(sorted(sections))})\.\w+)[^`]*`", README)
    keys = [key for key in keys if not key.endswith((".md", ".json", ".jsonl", ".html"))]
    assert "data.public_sizes" in keys
    for key in keys:
        section, name = key.split(".")
        kind = RunConfig.model_fields[section].annotation
        assert name in getattr(kind, "model_fields", {}), f"there is no setting {key}"


def test_make_has_the_targets_that_are_named() -> None:
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    named = set(re.findall(r"\bmake ([a-z]+)\b(?=[ `\n)]| +#)", "\n".join(_code(README))))
    assert {"demo", "test", "setup", "bench"} <= named
    assert [name for name in named if not re.search(rf"^{name}:", makefile, re.MULTILINE)] == []


def _code(text: str) -> list[str]:
    """What stands in fences or backticks."""
    return [code for _, code in FENCED.findall(text)] + re.findall(
        r"`[^`\n]+`", FENCED.sub("", text)
    )


def test_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    named = set(re.findall(r"`\.\[(\w+)\]`", README))
    assert named == set(project["optional-dependencies"])


# ---------------------------------------------------------------------------- links, tree ----


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_links_lead_somewhere(page: Path) -> None:
    targets = re.findall(r"\]\(([^)#\s]+)[^)]*\)", page.read_text(encoding="utf-8"))
    local = [target for target in targets if "://" not in target]
    assert [target for target in local if not (page.parent / target).exists()] == []


def test_codes_of_errors_have_their_section() -> None:
    pages = (ROOT / "docs" / "errors.md").read_text(encoding="utf-8")
    codes = re.findall(r"\bHT\d{3}\b", README)
    assert codes
    assert [code for code in codes if f"\n## {code} " not in pages] == []


def test_the_tree_names_what_is_there() -> None:
    page = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    tree = page.split("## Where things go")[1].split("```")[1]
    lines = tree.strip().splitlines()
    named = [line.split()[0] for line in lines]
    assert [name for name in named if not (ROOT / name).exists()] == []
    assert [line for line in lines if len(line.split()) < 3] == []  # each has its note
    folders = {
        path.name
        for path in ROOT.iterdir()
        if path.is_dir() and not path.name.startswith(".") and not _is_ignored(path.name)
    }
    assert folders == {name.split("/")[0] for name in named if "/" in name}
    packages = {
        path.parent.relative_to(ROOT).as_posix() + "/"
        for root in ("client", "common", "server", "simulations")
        for path in (ROOT / root).rglob("__init__.py")
    }
    assert packages <= set(named)


def _is_ignored(name: str) -> bool:
    """Whether git leaves a folder out, such as runs/."""
    ignored = (ROOT / ".gitignore").read_text(encoding="utf-8").split()
    return f"{name}/" in ignored or name.endswith(".egg-info")


def test_flower_s_own_command_is_told_to_be_quiet() -> None:
    """What Flower starts imports nothing of hushtune before it reads these."""
    (block,) = re.findall(r"```sh\n(export .*?\nflwr run .*?)```", README, re.DOTALL)
    for name, value in QUIET.items():
        assert (f"{name}={value}" in block) is name.startswith("FLWR_")


def test_it_stays_short() -> None:
    text = README
    for table in ("five-seeds", "trust", "tasks"):
        begin, end = f"<!-- {table}:begin -->", f"<!-- {table}:end -->"
        assert text.count(begin) == text.count(end) == 1
        head, rest = text.split(begin)
        text = head + rest.split(end)[1]
    assert len(text.splitlines()) <= MAX_LINES
