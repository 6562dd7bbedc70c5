"""Places that cannot be used are refused by name before anything long begins, and left alone."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import RunError
from hushtune.common.files import check_writable, write_text
from hushtune.simulations import run, study

LONG = "a" * 300


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, three_sites: Path) -> Path:
    from ..conftest import Settings

    folder = tmp_path_factory.mktemp("finished") / "out"
    run(Settings(tiny_bert, three_sites).config(privacy__trust="site", train__rounds=1), folder)
    return folder


def refused(answer: Any, code: str, *named: str) -> None:
    assert answer.status == 2, answer.err
    assert answer.err.startswith(f"{code} "), answer.err
    for text in named:
        assert text in answer.err, answer.err


@pytest.mark.parametrize("place", ["/proc/x", "/proc/x/y", LONG, f"new/{LONG}"])
def test_an_output_that_cannot_be_written_is_refused_before_anything_is_prepared(
    place: str, settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(study, "open_workspace", lambda *_: pytest.fail("a model was loaded"))
    toml = settings.file(tmp_path)
    out = tmp_path / place
    refused(hushtune("simulate", "--config", toml, "--out", out), "HT600", str(out))
    refused(
        hushtune(
            *("simulate", "--config", toml, "--out", tmp_path / "out"),
            *("--set", f"simulation.ledgers={out}"),
        ),
        "HT600",
        str(out),
    )
    assert [path.name for path in tmp_path.iterdir()] == [toml.name]


@pytest.mark.parametrize("place", ["/proc/x", "rows.csv/x"])
def test_what_is_exported_to_a_place_that_cannot_be_written(
    place: str, finished: Path, hushtune: Any, tmp_path: Path
) -> None:
    (tmp_path / "rows.csv").write_text("mine", encoding="utf-8")
    to = tmp_path / place
    refused(hushtune("export", finished, "--to", to), "HT600", str(to))
    refused(hushtune("export", finished, "--to", to, "--merged"), "HT600", str(to))
    refused(hushtune("ledger", "export", finished, "--to", to), "HT600", str(to))
    assert [path.name for path in tmp_path.iterdir()] == ["rows.csv"]


def test_a_picture_that_cannot_be_written_is_refused_first(hushtune: Any) -> None:
    answer = hushtune("plan", "--sites", "900", "--plot", "/proc/x.png")
    refused(answer, "HT600", "/proc")
    assert "signal" not in answer.out


def test_an_adapter_is_not_exported_over_a_file_or_into_itself(
    finished: Path, hushtune: Any, tmp_path: Path
) -> None:
    file = tmp_path / "rows.csv"
    file.write_text("mine", encoding="utf-8")
    refused(hushtune("export", finished, "--to", file), "HT601", "there is a file of that name")
    before = sorted(finished.rglob("*"))
    inside = finished / "adapter" / "x"
    refused(hushtune("export", finished, "--to", inside), "HT601", "into itself", str(inside))
    assert sorted(finished.rglob("*")) == before


def test_an_argument_that_is_no_text_is_the_user_s_error(finished: Path, hushtune: Any) -> None:
    bad = os.fsdecode(b"\xff\xfe")
    refused(hushtune("predict", finished, "fine", bad), "HT204", "argument 4", "xff")
    refused(hushtune("simulate", "--out", bad), "HT204")


def test_nothing_to_resume(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    out = tmp_path / "nothere"
    for given in ((), ("--config", settings.file(tmp_path))):
        answer = hushtune("simulate", *given, "--out", out, "--resume")
        refused(answer, "HT602", "no run to resume", "leave --resume out")
        assert "config new" not in answer.err


def test_a_run_that_was_stopped_has_no_adapter_yet(
    settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: Any) -> Any:
        raise KeyboardInterrupt

    out = tmp_path / "out"
    with monkeypatch.context() as patch:
        patch.setattr(study.Judge, "__call__", stop)
        assert hushtune("simulate", "--config", settings.file(tmp_path), "--out", out).status == 130
    said = "not finished", f"hushtune simulate --out {out} --resume"
    refused(hushtune("predict", out, "a text"), "HT201", *said)
    refused(hushtune("export", out, "--to", tmp_path / "to"), "HT201", *said)


def test_what_is_tried_is_left_as_it_was(tmp_path: Path) -> None:
    check_writable(tmp_path / "a" / "b")
    assert not list(tmp_path.iterdir())
    (tmp_path / "file").touch()
    with pytest.raises(RunError, match="cannot be written"):
        check_writable(tmp_path / "file" / "b")
    with pytest.raises(RunError, match=r"(?s)cannot be written.*file/b"):
        write_text(tmp_path / "file" / "b", "x")
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
