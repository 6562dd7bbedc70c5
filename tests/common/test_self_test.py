"""What the machine's self-test finds is kept, and by what it follows from."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from hushtune.common import self_test


@pytest.fixture
def tests_run(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """A cache of its own; which tests were run, each of which finds bfloat16."""
    monkeypatch.setenv("HUSHTUNE_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    ran: list[str] = []

    def measured() -> str:
        ran.append("bfloat16")
        return "bfloat16"

    monkeypatch.setattr(self_test, "measured_precision", measured)
    return ran


def test_the_machine_is_tested_once(tests_run: list[str], tmp_path: Path) -> None:
    assert [self_test.kept_precision() for _ in range(3)] == ["bfloat16"] * 3
    assert len(tests_run) == 1
    path = tmp_path / "cache" / self_test.FILE
    (key,) = json.loads(path.read_text())
    path.write_text(json.dumps({key: "float32"}))
    assert self_test.kept_precision() == "float32"  # so it is what is kept that decides


@pytest.mark.parametrize("change", ["version", "threads", "capability"])
def test_another_torch_or_processor_is_tested_anew(
    change: str, tests_run: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    self_test.kept_precision()
    if change == "version":
        monkeypatch.setattr(torch, "__version__", "9.9")
    elif change == "threads":
        monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    else:
        monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: "another")
    self_test.kept_precision()
    assert len(tests_run) == 2
    kept = json.loads((tmp_path / "cache" / self_test.FILE).read_text())
    assert list(kept.values()) == ["bfloat16"] * 2  # the first is still known


@pytest.mark.parametrize("content", ["", "{", "[]", '{"x": 1}'])
def test_a_damaged_file_only_costs_another_test(
    content: str, tests_run: list[str], tmp_path: Path
) -> None:
    self_test.kept_precision()
    path = tmp_path / "cache" / self_test.FILE
    key = next(iter(json.loads(path.read_text())))
    path.write_text(content.replace("x", key))
    assert self_test.kept_precision() == "bfloat16"
    assert len(tests_run) == 2
    assert json.loads(path.read_text()) == {key: "bfloat16"}


def test_a_cache_that_cannot_be_written_is_no_error(
    tests_run: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("HUSHTUNE_CACHE", str(tmp_path / "file"))
    assert [self_test.kept_precision() for _ in range(2)] == ["bfloat16"] * 2
    assert len(tests_run) == 2


def test_flags_decide_and_no_name() -> None:
    flags = "processor : 0\nmodel name : {}\nflags\t\t: fpu {}\n\nprocessor : 1\n"
    same = {self_test.machine_key(flags.format(name, "amx_bf16")) for name in ("one", "two")}
    assert len(same) == 1
    assert self_test.machine_key(flags.format("one", "avx2")) not in same
    arm = "Features\t: fp asimd {}\n"
    assert self_test.machine_key(arm.format("bf16")) != self_test.machine_key(arm.format(""))


def test_the_machine_at_hand_is_one_or_the_other() -> None:
    assert self_test.measured_precision() in ("float32", "bfloat16")
