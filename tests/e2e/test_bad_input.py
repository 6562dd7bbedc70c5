"""Bad input ends in one clear error with a code, and leaves nothing half written."""

from __future__ import annotations

import errno
import json
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hushtune.client.site import ledger_path
from hushtune.common.errors import DiskFullError
from hushtune.common.privacy.ledger import Ledger
from hushtune.server import checkpoint
from hushtune.simulations import run, study
from hushtune.simulations.observer import Silent

DOCS = Path(__file__).resolve().parents[2] / "docs" / "errors.md"


def refused(answer: Any, code: str, *named: str) -> None:
    """One error with its code, the things it must name, and no stack trace."""
    said = answer.err
    assert answer.status == 2, said
    assert said.startswith(f"{code} "), said
    assert re.search(rf"^## {code} ", DOCS.read_text(encoding="utf-8"), re.MULTILINE)
    assert "Traceback" not in said + answer.out
    assert "HT000" not in said
    for text in named:
        assert text in said, f"{text!r} is not in:\n{said}"


def untouched(out: Path) -> None:
    assert not out.exists()
    assert not list(out.parent.glob(f"{out.name}*"))


def csv(path: Path, text: str | bytes) -> Path:
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def sentences(number: int, label: str = "good", site: str = "a") -> str:
    return "".join(f"{site},{label} {site} sentence number {i},{label}\n" for i in range(number))


HEAD = "site,text,label\n"
WHOLE = HEAD + "".join(sentences(20, label, site) for label in ("bad", "good") for site in "ab")

# name -> (content of the file, settings, code, what the error must name)
DATA: dict[str, tuple[str | bytes | None, dict[str, Any], str, tuple[str, ...]]] = {
    "a missing file": (None, {}, "HT201", ("rows.csv",)),
    "an empty file": ("", {}, "HT202", ("rows.csv",)),
    "a header and no rows": (HEAD, {}, "HT202", ("rows.csv",)),
    "no such text column": (WHOLE, {"data__text": "review"}, "HT203", ("rows.csv", "'review'")),
    "no such label column": (WHOLE, {"data__label": "labels"}, "HT203", ("'labels'", "'label'")),
    "no such site column": (WHOLE, {"data__site": "hospital"}, "HT203", ("'hospital'",)),
    "a label at one site only": (
        WHOLE + sentences(6, "odd", "b"),
        {},
        "HT205",
        ("'odd'", "'b'", "6 rows"),
    ),
    "a label that occurs once": (
        WHOLE + sentences(1, "odd", "b"),
        {},
        "HT205",
        ("'odd'", "rows.csv:82", "once"),
    ),
    "one label only": (HEAD + sentences(20), {}, "HT205", ("good",)),
    "a site smaller than its batch": (
        WHOLE,
        {"train__batch_size": 64, "train__sampling_probability": None},
        "HT206",
        ("site a", "64", "train.batch_size"),
    ),
    "a site too small to split": (WHOLE + sentences(1, "good", "c"), {}, "HT206", ("'c'",)),
    "NaN in all of a numeric column": (
        "site,text,label\n" + "".join(f"a,sentence {i},nan\n" for i in range(9)),
        {},
        "HT207",
        ("rows.csv", "'label'", "NaN"),
    ),
    "NaN in one row of a numeric column": (
        WHOLE.replace(",bad\n", ",0\n").replace(",good\n", ",1\n") + "a,a sentence,NaN\n",
        {},
        "HT207",
        ("rows.csv", "row 82", "'label'", "NaN", 'data.missing = "drop"'),
    ),
    "NaN among numbers of sites": (
        WHOLE.replace("\na,", "\n1,").replace("\nb,", "\n2,") + "nan,a sentence,good\n",
        {},
        "HT207",
        ("rows.csv", "row 82", "'site'", "nan"),
    ),
    "a number where the text should be": (
        '{"site": "a", "text": 3.5, "label": 1}\n',
        {"file": "rows.jsonl"},
        "HT207",
        ("rows.jsonl", "row 1", "'text'", "3.5"),
    ),
    "infinity in a numeric column": (
        '{"site": "a", "text": "x", "label": 1}\n{"site": "a", "text": "y", "label": Infinity}\n',
        {"file": "rows.jsonl"},
        "HT207",
        ("rows.jsonl", "row 2", "'label'", "infinite"),
    ),
    "half a character": (
        '{"site": "a", "text": "x \\ud800", "label": 1}\n',
        {"file": "rows.jsonl"},
        "HT207",
        ("rows.jsonl", "row 1", "'text'", "half a character"),
    ),
    "a row without a site": (
        WHOLE + ",another sentence,good\n",
        {},
        "HT207",
        ("rows.csv", "row 82", "'site'"),
    ),
    "mixed encodings": (
        WHOLE.encode() + "a,a caf\u00e9 sentence,good\n".encode("latin-1"),
        {},
        "HT204",
        ("rows.csv", "row 82", "0xe9", "iconv"),
    ),
    "UTF-16 without its mark": (
        WHOLE.encode("utf-16-le"),
        {},
        "HT204",
        ("rows.csv", "UTF-16"),
    ),
    "a quote that is not closed": (WHOLE + 'a,"open,good\n', {}, "HT207", ("rows.csv", "row 82")),
    "another number of cells": (
        WHOLE + "a,a sentence, with a comma,good\n",
        {},
        "HT207",
        ("row 82", "4 cells"),
    ),
    "a file where a data set is named": (
        WHOLE,
        {"data__file": None, "data__dataset": str(Path(__file__))},
        "HT208",
        ("test_bad_input.py", "set data.file", "CSV"),
    ),
    "a spreadsheet": (b"PK\x03\x04", {"file": "rows.xlsx"}, "HT208", ("rows.xlsx", "CSV")),
}


@pytest.mark.parametrize("name", DATA)
def test_data_that_cannot_be_used(name: str, settings: Any, hushtune: Any, tmp_path: Path) -> None:
    content, changes, code, named = DATA[name]
    file = tmp_path / changes.get("file", "rows.csv")
    if content is not None:
        csv(file, content)
    changes = {key: value for key, value in changes.items() if key != "file"}
    toml = settings.file(tmp_path, **{"data__file": str(file), **changes})
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    refused(answer, code, *named)
    untouched(tmp_path / "out")


def test_nan_in_some_rows_leaves_them_out_and_says_which_if_told_to(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    rows = WHOLE.replace(",bad\n", ",0\n").replace(",good\n", ",1.0\n")
    file = csv(tmp_path / "rows.csv", rows + "a,a sentence without a rating,NaN\n")
    toml = settings.file(tmp_path, data__file=str(file), data__missing="drop")
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out", "--json")
    assert answer.status == 0, answer.err
    notes = " ".join(json.loads(answer.out.splitlines()[-1])["data_notes"])
    assert "1 row left out: no label" in notes
    assert "rows.csv:82" in notes
    assert str(tmp_path) not in notes


def test_fractions_are_classes_like_any_other_label(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    """As the template says: text or a number, each different value a class."""
    rows = WHOLE.replace(",bad\n", ",0.5\n").replace(",good\n", ",1.5\n")
    toml = settings.file(tmp_path, data__file=str(csv(tmp_path / "rows.csv", rows)))
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out", "--json")
    assert answer.status == 0, answer.err
    answers = json.loads(hushtune("predict", tmp_path / "out", "a", "--json").out.splitlines()[-1])
    assert set(answers[0]["probabilities"]) == {"0.5", "1.5"}
    assert "text or a number" in hushtune("config", "new").out


SETTINGS: dict[str, tuple[dict[str, Any], str, tuple[str, ...]]] = {
    "epsilon 0": ({"privacy__epsilon": 0.0}, "HT100", ("privacy.epsilon", "0.0")),
    "epsilon -1": ({"privacy__epsilon": -1.0}, "HT100", ("privacy.epsilon", "-1")),
    "delta 0": ({"privacy__delta": 0.0}, "HT100", ("privacy.delta",)),
    "delta of 1/n": (
        {"privacy__trust": "site", "privacy__delta": 0.05},
        "HT403",
        ("east", "0.05", "privacy.delta"),
    ),
    "rounds 0": ({"train__rounds": 0}, "HT100", ("train.rounds", "0")),
    "rounds as text": ({"train__rounds": "many"}, "HT100", ("train.rounds", "many")),
    "an unknown key": ({"train__round": 3}, "HT101", ("train.round", "rounds")),
    "a target that the model lacks": (
        {"adapter__targets": ["attention.self.valu"]},
        "HT302",
        ("attention.self.valu", "attention.self.value"),
    ),
    "DoRA": ({"adapter__dora": True}, "HT100", ("DoRA", "adapter.dora")),
    "more sites a round than there are": (
        {"simulation__sites_per_round": 9},
        "HT100",
        ("sites_per_round", "9"),
    ),
    "longer texts than the model takes": (
        {"model__max_tokens": 512},
        "HT303",
        ("model.max_tokens", "512", "128"),
    ),
    "a rank larger than the model is wide": (
        {"adapter__rank": 33},
        "HT302",
        ("adapter.rank = 33", "1 to 32"),
    ),
    "a layer below the model": ({"model__layer": 9}, "HT303", ("model.layer", "9")),
}


@pytest.mark.parametrize("name", SETTINGS)
def test_settings_that_cannot_be_used(
    name: str, settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    changes, code, named = SETTINGS[name]
    toml = settings.file(tmp_path, **changes)
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    refused(answer, code, *named)
    untouched(tmp_path / "out")


def test_a_model_folder_without_weights(
    settings: Any, hushtune: Any, tmp_path: Path, tiny_bert: Path
) -> None:
    bare = tmp_path / "bare"
    bare.mkdir()
    for path in tiny_bert.iterdir():
        if path.suffix != ".safetensors":
            (bare / path.name).write_bytes(path.read_bytes())
    toml = settings.file(tmp_path, model__name=str(bare))
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    refused(answer, "HT301", str(bare), "safetensors")
    untouched(tmp_path / "out")


def test_a_model_folder_that_is_empty(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    (tmp_path / "nothing").mkdir()
    toml = settings.file(tmp_path, model__name=str(tmp_path / "nothing"))
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    assert answer.status == 2
    assert re.match(r"HT30\d ", answer.err), answer.err
    assert str(tmp_path / "nothing") in answer.err
    untouched(tmp_path / "out")


def test_a_model_folder_without_a_tokenizer(
    settings: Any, hushtune: Any, tmp_path: Path, tiny_bert: Path
) -> None:
    folder = tmp_path / "mute"
    folder.mkdir()
    for path in tiny_bert.iterdir():
        if not path.name.startswith("tokenizer"):
            (folder / path.name).write_bytes(path.read_bytes())
    toml = settings.file(tmp_path, model__name=str(folder))
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    refused(answer, "HT300", str(folder), "tokenizer.json")
    untouched(tmp_path / "out")


def test_an_output_below_a_file(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    (tmp_path / "notes.txt").write_text("mine", encoding="utf-8")
    toml = settings.file(tmp_path)
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "notes.txt" / "out")
    refused(answer, "HT601", "notes.txt")
    assert (tmp_path / "notes.txt").read_text(encoding="utf-8") == "mine"


def test_a_dry_run_finds_what_a_run_would(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    for changes, code in (
        ({"simulation__sites_per_round": 9}, "HT100"),
        ({"data__public_sizes": {"east": 40, "north": 50}}, "HT100"),
    ):
        toml = settings.file(tmp_path, **changes)
        refused(hushtune("simulate", "--config", toml, "--dry-run"), code)


def test_weights_that_are_only_pickled_are_never_loaded(
    settings: Any, hushtune: Any, tmp_path: Path, tiny_bert: Path
) -> None:
    """A pickle runs code when it is read."""
    import torch
    from safetensors.torch import load_file

    folder = tmp_path / "pickled"
    folder.mkdir()
    for path in tiny_bert.iterdir():
        if path.suffix == ".safetensors":
            torch.save(load_file(path), folder / "pytorch_model.bin")
        else:
            (folder / path.name).write_bytes(path.read_bytes())
    toml = settings.file(tmp_path, model__name=str(folder))
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    refused(answer, "HT301", str(folder))


def test_an_output_folder_of_another_run(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings.config(), out)
    before = {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*"))}
    toml = settings.file(tmp_path, seed=9)
    refused(hushtune("simulate", "--config", toml, "--out", out), "HT601", str(out))
    refused(hushtune("simulate", "--config", toml, "--out", out, "--resume"), "HT602", "seed")
    assert {path: path.stat().st_mtime_ns for path in sorted(out.rglob("*"))} == before


def test_settings_that_changed_since_the_run_began_are_named_with_both_values(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    out = tmp_path / "out"
    run(settings.config(), out)
    other = settings.file(tmp_path, train__learning_rate=0.5, train__optimizer="sgd")
    told = 'train.learning_rate: 0.01 there, 0.5 asked; train.optimizer: "adamw" there, "sgd" asked'
    answer = hushtune("simulate", "--config", other, "--out", out, "--resume")
    refused(answer, "HT602", told, "--overwrite", "another --out")
    # The run's own file edited, which is what one does first.
    text = (out / "config.toml").read_text(encoding="utf-8")
    edited = text.replace("\nlearning_rate = 0.01", "\nlearning_rate = 0.5")
    assert edited != text
    (out / "config.toml").write_text(edited, encoding="utf-8")
    answer = hushtune("simulate", "--out", out, "--resume")
    refused(answer, "HT602", "train.learning_rate: 0.01 there, 0.5 asked", "--overwrite")


def test_a_damaged_checkpoint(settings: Any, hushtune: Any, tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(settings.config(), out)
    path = out / "checkpoint" / checkpoint.FILE
    data = bytearray(path.read_bytes())
    data[-5] ^= 1
    path.write_bytes(bytes(data))
    answer = hushtune("simulate", "--config", settings.file(tmp_path), "--out", out, "--resume")
    refused(answer, "HT602", "damaged", str(path))


# ------------------------------------------------------------------------------ full disk ----


class FullDisk:
    """``os.fsync`` that fails like a full disk for files whose path has ``part``, from the
    ``after``-th call on."""

    def __init__(self, part: str, after: int) -> None:
        self._part, self._after = part, after
        self._real: Callable[[int], None] = os.fsync
        self.failed = 0

    def __call__(self, handle: int) -> None:
        path = os.readlink(f"/proc/self/fd/{handle}")
        if self._part in path and not Path(path).is_dir():
            self._after -= 1
            if self._after < 0:
                self.failed += 1
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), path)
        self._real(handle)


@pytest.fixture
def full_disk(monkeypatch: pytest.MonkeyPatch) -> Callable[[str, int], FullDisk]:
    """Fills the disk for some files; ``monkeypatch.undo`` frees it."""

    def fill(part: str, after: int = 0) -> FullDisk:
        disk = FullDisk(part, after)
        monkeypatch.setattr(os, "fsync", disk)
        return disk

    return fill


def leftovers(out: Path) -> list[str]:
    """What a write that failed half-way would leave."""
    return [path.name for path in out.rglob(".*") if path.is_file()]


def test_a_disk_that_is_full_for_a_round_s_line_alone(settings: Any, tmp_path: Path) -> None:
    """From Python, too, it is an error of hushtune's own."""

    class Full(Silent):
        def started(self, rounds: int, done: int) -> None:
            (tmp_path / "out" / "metrics.jsonl").unlink()
            (tmp_path / "out" / "metrics.jsonl").symlink_to("/dev/full")

    with pytest.raises(DiskFullError, match="the disk is full"):
        run(settings.config(), tmp_path / "out", observer=Full())


def test_a_disk_that_is_full_from_the_start(
    settings: Any, hushtune: Any, tmp_path: Path, full_disk: Any
) -> None:
    disk = full_disk("config.toml")
    toml = settings.file(tmp_path, "settings.toml")
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    refused(answer, "HT603", "config.toml")
    assert disk.failed == 1
    assert not [path for path in (tmp_path / "out").rglob("*") if path.is_file()]


def test_a_disk_that_fills_up_in_the_middle_keeps_the_last_checkpoint(
    settings: Any,
    hushtune: Any,
    tmp_path: Path,
    full_disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = run(settings.config(), tmp_path / "whole")
    out, toml = tmp_path / "out", settings.file(tmp_path)
    full_disk(f"out/checkpoint/.{checkpoint.FILE}", 2)  # round 0 and round 1 are written
    answer = hushtune("simulate", "--config", toml, "--out", out)
    refused(answer, "HT603", "checkpoint", "--resume")
    assert leftovers(out) == []
    assert checkpoint.load(out / "checkpoint").round == 1
    assert not (out / "summary.json").exists()
    monkeypatch.undo()
    assert run(settings.config(), out, resume=True)["adapter_digest"] == whole["adapter_digest"]


def test_a_full_disk_that_only_shows_when_a_file_is_moved_into_place(
    settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.replace

    def replace(source: Any, target: Any, **options: Any) -> None:
        if str(target).endswith("privacy.md"):
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(target))
        real(source, target, **options)

    monkeypatch.setattr(os, "replace", replace)
    out = tmp_path / "out"
    answer = hushtune("simulate", "--config", settings.file(tmp_path), "--out", out)
    refused(answer, "HT603", "privacy.md")
    assert leftovers(out) == []
    assert not (out / "summary.json").exists()


def test_a_disk_that_is_full_when_the_adapter_is_written(
    settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody may take a half written adapter for a finished one: the run can be gone on with."""
    from hushtune.common import adapter_folder

    def full(*_: Any, **__: Any) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), "adapter_model.safetensors")

    out, toml = tmp_path / "out", settings.file(tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(adapter_folder, "save_adapter", full)
        refused(hushtune("simulate", "--config", toml, "--out", out), "HT603", "adapter_model")
    assert not (out / "summary.json").exists()
    answer = hushtune("simulate", "--config", toml, "--out", out, "--resume", "--json")
    assert answer.status == 0, answer.err
    assert (out / "adapter" / "adapter_model.safetensors").is_file()


def test_a_ledger_that_cannot_be_written_releases_nothing(
    settings: Any,
    hushtune: Any,
    tmp_path: Path,
    full_disk: Any,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The disk is full when round 2 of every site is being recorded."""
    out, toml = tmp_path / "out", settings.file(tmp_path, privacy__trust="site")
    disk = full_disk("out/ledger/", 6)  # each made its ledger, and charged a round
    answer = hushtune("simulate", "--config", toml, "--out", out)
    assert disk.failed == 3
    refused(answer, "HT501", "disk is full", "east", "north", "south", "--resume")
    assert checkpoint.load(out / "checkpoint").round == 1
    monkeypatch.undo()
    summary = run(settings.config(privacy__trust="site"), out, resume=True)
    assert summary["refusals"] == {}
    for site in ("east", "north", "south"):
        rounds = [entry.round for entry in Ledger(ledger_path(out, site)).entries()]
        assert rounds == [1, 2, 3]


def test_ctrl_c_says_how_to_go_on(
    settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out, toml = tmp_path / "out", settings.file(tmp_path)
    real = study.Judge.__call__

    def stop(self: Any, outcome: Any) -> Any:
        if outcome.round == 2:
            raise KeyboardInterrupt
        return real(self, outcome)

    with monkeypatch.context() as patch:
        patch.setattr(study.Judge, "__call__", stop)
        answer = hushtune("simulate", "--config", toml, "--out", out)
    assert answer.status == 130
    assert answer.err.startswith("HT604 ")
    assert "--resume" in answer.err
    assert "Traceback" not in answer.err
    assert checkpoint.load(out / "checkpoint").round == 1
    assert hushtune("simulate", "--config", toml, "--out", out, "--resume").status == 0


def test_an_unforeseen_error_shows_no_stack_trace_and_fails(
    settings: Any, hushtune: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any, **__: Any) -> None:
        raise RuntimeError("a fault of ours")

    monkeypatch.setattr(study, "open_workspace", broken)
    monkeypatch.delenv("HUSHTUNE_DEBUG", raising=False)
    toml = settings.file(tmp_path)
    answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
    assert answer.status == 1
    assert answer.err.startswith("HT000 ")
    assert "a fault of ours" in answer.err
    assert "Traceback" not in answer.err
