"""How the command ends: quietly where nobody reads on, and with a code and a remedy otherwise."""

from __future__ import annotations

import io
import os
import subprocess
import sys
import tomllib
from importlib.metadata import PackagePath
from pathlib import Path
from typing import Any

import pytest

from hushtune.simulations import exits, run

ROOT = Path(__file__).resolve().parents[2]


# ---------------------------------------------------------------------------- a closed pipe ----


QUICK = (
    ["--help"],
    ["config", "show", "--preset", "demo"],
    ["plan", "--sites", "900", "--rounds", "1"],
    ["config", "schema"],
    ["policy", "check", "policy.toml", "--json"],
)


@pytest.mark.parametrize(
    ("arguments", "buffered"),
    [*((quick, how) for quick in QUICK for how in (True, False)), (["doctor"], False)],
)
def test_a_reader_that_leaves_ends_the_command_quietly(
    tmp_path: Path, arguments: list[str], buffered: bool
) -> None:
    """Whether the pipe is found closed while something is printed, or as the rest is flushed."""
    (tmp_path / "policy.toml").write_text("max_epsilon = 3.0\nmax_delta = 1e-5\n")
    reading, writing = os.pipe()
    os.close(reading)
    environment = {**os.environ, "PYTHONUNBUFFERED": "" if buffered else "1"}
    done = subprocess.run(
        [sys.executable, "-m", "hushtune.simulations.cli", *arguments],
        stdout=writing,
        stderr=subprocess.PIPE,
        env=environment,
        cwd=tmp_path,
        text=True,
        check=False,
    )
    os.close(writing)
    for noise in ("Error", "Exception", "Broken", "HT"):
        assert noise not in done.stderr
    assert (done.stderr == "") == ("--json" not in arguments)  # else what people read is there
    assert done.returncode == exits.CLOSED_PIPE


def test_a_full_disk_is_told_where_output_is_flushed_last() -> None:
    if not Path("/dev/full").exists():
        pytest.skip("no /dev/full here")
    with Path("/dev/full").open("w", encoding="utf-8") as full:
        done = subprocess.run(
            [sys.executable, "-m", "hushtune.simulations.cli", "config", "new"],
            stdout=full,
            stderr=subprocess.PIPE,
            text=True,
            check=False,
        )
    assert done.stderr.startswith("HT603 ")
    assert done.returncode == exits.USER_ERROR


# ------------------------------------------------------------------------------ usage errors ----


@pytest.mark.parametrize(
    ("arguments", "wanted"),
    [
        (["predict", "DIR"], ("HT202 there is no text", "hushtune predict DIR")),
        (["predict", "DIR", ""], ("HT202 text 1 is empty", "hushtune predict DIR")),
        (["predict", "DIR", "a", " \t"], ("HT202 text 2 is empty", "hushtune predict DIR")),
        (["predict"], ("HT100 Missing argument", "`hushtune predict --help`")),
        (["simulate", "--preset", "tiny"], ("HT100 a run needs a folder", "--out runs/tiny")),
        (["simulate", "--bogus"], ("HT100 No such option", "`hushtune simulate --help`")),
        (["plan"], ("HT100 a plan is either for", "`hushtune plan --help`")),
        (["no-such-command"], ("HT100 No such command", "`hushtune --help`")),
    ],
)
def test_what_is_missing_has_a_code_and_a_remedy(
    hushtune: Any, arguments: list[str], wanted: tuple[str, str]
) -> None:
    answer = hushtune(*arguments)
    assert answer.status == exits.USER_ERROR
    assert answer.err.startswith(wanted[0])
    assert f"\n  do: {wanted[1]}" in answer.err
    assert answer.out == ""


def test_without_a_command_there_is_the_help_alone(hushtune: Any) -> None:
    answer = hushtune()
    assert answer.status == exits.USER_ERROR
    assert "simulate" in answer.out + answer.err
    assert "HT" not in answer.out + answer.err


def test_texts_from_standard_input(
    settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run(settings.config(train__rounds=1, train__warmup_rounds=0), tmp_path / "out")
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fine day\nan awful song\n"))
    answer = hushtune("predict", tmp_path / "out", "-", "a coat")
    assert answer.status == 0, answer.err
    for text in ("a fine day", "an awful song", "a coat"):
        assert text in answer.out
    monkeypatch.setattr(sys, "stdin", io.StringIO("a fine day\n\nan awful song\n"))
    assert hushtune("predict", tmp_path / "out", "-").err.startswith("HT202 text 2 is empty")
    bad = io.TextIOWrapper(io.BytesIO(b"caf\xe9\n"), encoding="utf-8")
    monkeypatch.setattr(sys, "stdin", bad)
    assert hushtune("predict", tmp_path / "out", "-").err.startswith("HT204 standard input")


# ---------------------------------------------------------------------------- where to read ----


def test_the_page_of_errors_is_there_from_any_folder(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(ROOT)
    assert exits.errors_page() == "docs/errors.md"
    monkeypatch.chdir(tmp_path)
    assert Path(exits.errors_page()) == ROOT / "docs" / "errors.md"


def test_a_wheel_brings_the_page_of_errors_along(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    build = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    targets = build["tool"]["hatch"]["build"]["targets"]
    place = targets["wheel"]["shared-data"]["docs/errors.md"]
    assert "docs" in targets["sdist"]["only-include"]

    class File(PackagePath):
        def locate(self) -> Path:
            return tmp_path / place

    # As installed: no repository around the package, and the page among the package's files.
    library = tmp_path / "lib" / "site-packages" / "hushtune" / "simulations"
    monkeypatch.setattr(exits, "__file__", str(library / "exits.py"))
    monkeypatch.setattr(exits.metadata, "files", lambda _: [File(f"../../../{place}")])
    assert exits.errors_page() == "docs/errors.md"  # not there: the name alone
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).write_text("# Error codes\n", encoding="utf-8")
    assert Path(exits.errors_page()) == tmp_path / place


def test_a_picture_that_was_not_drawn_names_the_extra(
    settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hushtune.simulations import outputs

    monkeypatch.setattr(outputs, "find_spec", lambda _: None)
    answer = hushtune("simulate", "--config", settings.file(tmp_path), "--out", tmp_path / "out")
    told = " ".join(answer.out.split())
    assert "not drawn: curve.png and sites.png: pip install 'hushtune[plots]'" in told
    assert f"{tmp_path}/out/privacy.md" in told
    assert f"{tmp_path}/out/curve.png" not in told  # only what is there is listed
