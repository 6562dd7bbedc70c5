"""Damaged files of a finished run: a clear error that names the file, or what is lost made anew."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hushtune.simulations import outputs, run, saved

from ..conftest import Settings, made_up_rows, write_csv


@pytest.fixture(scope="module")
def whole(tiny_bert: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two sites with ledgers and comparisons."""
    folder = tmp_path_factory.mktemp("whole")
    data = write_csv(folder / "rows.csv", made_up_rows({"east": 60, "north": 80}))
    config = Settings(tiny_bert, data).config(
        train__rounds=1,
        train__warmup_rounds=0,
        simulation__baselines=True,
        privacy__trust="site",
    )
    run(config, folder / "out")
    return folder / "out"


def damages(content: bytes) -> Iterator[tuple[str, bytes | None]]:
    """What a crash, a bad disk or a curious editor make of a file."""
    middle = len(content) // 2
    yield "cut off", content[:middle]
    yield "not text", b"\xff\xfe\x00" + content[3:]
    yield "one byte", content[:middle] + bytes([content[middle] ^ 3]) + content[middle + 1 :]
    yield "no key", b"{}"
    yield "deep", b"[" * 50_000
    yield "gone", None


def damaged(whole: Path, folder: Path, name: str) -> Iterator[tuple[str, Path]]:
    """Copies of the run in which one file is damaged, each in its way."""
    for kind, content in damages((whole / name).read_bytes()):
        copy = folder / kind
        shutil.copytree(whole, copy)
        (copy / name).unlink()
        if content is not None:
            (copy / name).write_bytes(content)
        yield kind, copy


def no_fault_of_ours(answer: Any, what: str) -> None:
    assert answer.status in (0, 2), f"{what}: {answer.err}"
    assert "HT000" not in answer.err, f"{what}: {answer.err}"
    assert "Traceback" not in answer.err, what
    if "HT602" in answer.err:
        assert "\n  do: " in answer.err, f"{what}: no remedy in {answer.err}"


@pytest.mark.parametrize(
    "name",
    [
        "hushtune.json",
        "adapter_model.safetensors",
        "head.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
        "README.md",
    ],
)
def test_a_damaged_adapter_is_said_to_be_one(
    whole: Path, hushtune: Any, tmp_path: Path, name: str
) -> None:
    for kind, copy in damaged(whole, tmp_path, f"adapter/{name}"):
        answer = hushtune("predict", copy, "a fine day")
        no_fault_of_ours(answer, f"{kind}: predict")
        if name.endswith(".safetensors") and kind != "one byte":
            assert answer.err.startswith("HT602 "), kind
            assert name in answer.err
        merged = hushtune("export", copy, "--to", tmp_path / f"{kind} merged", "--merged")
        no_fault_of_ours(merged, f"{kind}: export --merged")
        assert (tmp_path / f"{kind} merged").exists() == (merged.status == 0)


@pytest.mark.parametrize(
    "name",
    [
        "summary.json",
        "metrics.jsonl",
        "config.toml",
        "checkpoint/data.json",
        "checkpoint/config.toml",
        "checkpoint/latest.hushtune",
        "ledger/east.sqlite",
        "ledger/east.sqlite.head",
    ],
)
def test_a_damaged_run_is_resumed_or_refused(
    whole: Path, hushtune: Any, tmp_path: Path, name: str
) -> None:
    for kind, copy in damaged(whole, tmp_path, name):
        no_fault_of_ours(hushtune("simulate", "--out", copy, "--resume"), f"{kind}: --resume")
        if name.startswith("ledger"):
            no_fault_of_ours(hushtune("ledger", "show", copy), f"{kind}: ledger show")
            no_fault_of_ours(hushtune("ledger", "verify", copy), f"{kind}: ledger verify")


def test_damaged_comparisons_are_not_taken(whole: Path, hushtune: Any, tmp_path: Path) -> None:
    """They are read where something else of the report has to be written anew."""
    for kind, copy in damaged(whole, tmp_path, "checkpoint/baselines.json"):
        (copy / "summary.json").unlink()
        answer = hushtune("simulate", "--out", copy, "--resume")
        no_fault_of_ours(answer, kind)
        if kind == "cut off":
            assert "baselines.json is damaged" in answer.err
            (copy / "checkpoint" / "baselines.json").unlink()  # as the remedy says
            assert hushtune("simulate", "--out", copy, "--resume").status == 0


def test_a_damaged_summary_is_written_anew(whole: Path, hushtune: Any, tmp_path: Path) -> None:
    before = json.loads((whole / "summary.json").read_text(encoding="utf-8"))
    assert before.keys() - {"missing"} == outputs.SUMMARY_KEYS
    copy = shutil.copytree(whole, tmp_path / "out")
    (copy / "summary.json").write_text('{"metric": "accu', encoding="utf-8")
    assert hushtune("simulate", "--out", copy, "--resume").status == 0
    after = json.loads((copy / "summary.json").read_text(encoding="utf-8"))
    assert after["table"] == before["table"]
    assert after["sites"] == before["sites"]


def test_the_remedy_for_a_damaged_adapter_helps(whole: Path, hushtune: Any, tmp_path: Path) -> None:
    """Removing the folder, or losing its description, has it written anew from the checkpoint."""
    copy = shutil.copytree(whole, tmp_path / "out")
    wanted = saved.load(whole).predict(["a fine day"])
    (copy / "adapter" / "head.safetensors").write_bytes(b"")
    assert "remove its folder adapter" in hushtune("predict", copy, "a fine day").err
    for lost in ("adapter", "adapter/hushtune.json"):
        shutil.rmtree(copy / lost) if lost == "adapter" else (copy / lost).unlink()
        assert hushtune("simulate", "--out", copy, "--resume").status == 0
        assert saved.load(copy).predict(["a fine day"]) == wanted
