"""benchmarks/w.py: every contender does the same work, and what is timed is told by its part."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.optimizer import register_optimizer_step_pre_hook

from hushtune.common.tasks.workspace import open_workspace
from hushtune.simulations import run

from .programs import FOLDER, benchmark

# What transformers says of Opacus' look at all of a model's attributes, and torch of its hooks.
pytestmark = [
    pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing:FutureWarning"),
    pytest.mark.filterwarnings("ignore:Full backward hook is firing:UserWarning"),
]

MICRO = [
    *("data.max_rows_per_site=20", "data.test_fraction=0.2", "privacy.delta=0.01"),
    *("train.rounds=2", "train.warmup_rounds=0", "train.local_steps=2", "train.batch_size=8"),
    *("model.precision=float32", "model.max_tokens=32"),
]
NO_NOISE = ["privacy.trust=off", "train.batch_size=16"]
"""Every row is in every batch, so that whoever draws it computes the same step."""


@pytest.fixture
def events(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where a contender in this process tells what took how long."""
    place = tmp_path / "events.jsonl"
    monkeypatch.setenv(benchmark("w_work").EVENTS, str(place))
    monkeypatch.setenv("PYTHONPATH", str(FOLDER), prepend=":")  # for Ray's workers
    return place


def written(folder: Path, model: Path, *settings: str) -> tuple[Path, Any]:
    """W at micro size as a file, and as hushtune's own configuration."""
    work = folder / "work.json"
    named = [*MICRO, *settings, f"model.name={model}"]
    return work, benchmark("w_work").write_work(work, named)


def told(events: Path) -> Mapping[str, Any]:
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    first = min(line["began"] for line in lines)
    return benchmark("w_processes").by_part(lines, first - 1.0, 1000.0)


def check_whole(events: Path, *, steps: bool = True) -> None:
    found = told(events)
    assert found["evaluations"] == 2
    assert 0 < found["loss"] < 2
    assert min(found["training"], found["evaluation"]) > 0
    lines = [json.loads(line)["part"] for line in events.read_text().splitlines()]
    assert lines.count("training") == 2 * 4
    assert lines.count("step") == 1 or not steps


def test_w_is_the_same_rows_and_numbers_for_all(tmp_path: Path, tiny_bert: Path) -> None:
    path, config = written(tmp_path, tiny_bert)
    work, workspace = benchmark("w_work").Work.read(path), open_workspace(config)
    assert {site: len(rows) for site, rows in work.train.items()} == config.data.public_sizes
    for part in ("train", "test"):
        for site, rows in getattr(work, part).items():
            wanted = workspace.rows(site, part).tolist()
            assert [text for text, _ in rows] == [workspace.data.texts[i] for i in wanted]
            assert [label for _, label in rows] == workspace.data.labels[wanted].tolist()
    assert (work.batch, work.rounds, work.steps) == (8, 2, 2)
    assert work.noise > 0.3
    assert len(work.judged) == 4 * 4


def test_the_plain_loop_trains_as_hushtune_does(
    tmp_path: Path, tiny_bert: Path, events: Path
) -> None:
    """Without noise, and with every row in each batch, both are the same sums."""
    path, config = written(tmp_path, tiny_bert, *NO_NOISE)
    summary = run(config, tmp_path / "run")
    rows = (tmp_path / "run" / "metrics.jsonl").read_text().splitlines()
    ours = [(row["loss"], row["accuracy"]) for row in map(json.loads, rows)]
    assert summary["value"] == ours[-1][1]

    bare, work = benchmark("w_bare"), benchmark("w_work").Work.read(path)
    model, start = bare.build(work), open_workspace(config).initial_state.tensors

    def named(key: str) -> str:
        of_head = key.startswith("head.")
        return key if of_head else f"encoder.base_model.model.{key}.default.weight"

    assert {named(key) for key in start} == {*bare.trained_state(model)}
    bare.install(model, {named(key): value for key, value in start.items()})
    benchmark("w_work").tell_steps()
    theirs = bare.federate(model, bare.Batches(work), work)
    assert [row["accuracy"] for row in theirs] == pytest.approx([right for _, right in ours])
    # Adam divides by the gradient's own size, so that rounding of what is near zero shows.
    assert [row["loss"] for row in theirs] == pytest.approx([loss for loss, _ in ours], abs=2e-4)
    assert ours[0][0] != pytest.approx(ours[1][0], abs=1e-3)  # rounds do change it
    check_whole(events)


def test_the_plain_loop_clips_and_adds_its_noise(tmp_path: Path, tiny_bert: Path) -> None:
    path, _ = written(tmp_path, tiny_bert)
    bare, work = benchmark("w_bare"), benchmark("w_work").Work.read(path)
    model, batches = bare.build(work), bare.Batches(work)
    seen: list[torch.Tensor] = []

    def keep(optimizer: torch.optim.Optimizer, *_: Any) -> None:
        found = [p.grad for group in optimizer.param_groups for p in group["params"]]
        seen.append(torch.cat([gradient.flatten() for gradient in found]))

    handle = register_optimizer_step_pre_hook(keep)
    try:
        bare.train(model, next(iter(work.train.values())), batches, work, 0)
    finally:
        handle.remove()
    scale = work.noise * work.clip / work.batch
    clipped = work.clip  # the mean of clipped gradients is no longer than the clip norm
    for gradient in seen:
        noise = scale * gradient.numel() ** 0.5
        assert 0.9 * noise < gradient.norm() < 1.1 * noise + clipped


def test_hushtune_s_own_command_is_clocked(
    tmp_path: Path, tiny_bert: Path, events: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hushtune.client import rounds
    from hushtune.simulations import study
    from hushtune.simulations.judge import Judge

    for place, name in (
        (rounds, "train_locally"),
        (Judge, "_evaluate"),
        *((study, name) for name in ("compare", "final_figures", "samples")),
        (study.outputs, "write_all"),
        (sys, "argv"),
    ):
        monkeypatch.setattr(place, name, getattr(place, name))  # put back when the test is over
    asked = [f"--set={setting}" for setting in (*MICRO, f"model.name={tiny_bert}")]
    command = ["--", "simulate", "--preset=bench-w", f"--out={tmp_path / 'run'}", *asked]
    with pytest.raises(SystemExit) as ended:
        benchmark("w_hushtune").main(command)
    assert not ended.value.code
    check_whole(events)
    assert told(events)["report"] > 0


@pytest.mark.slow
def test_flower_does_w(tmp_path: Path, tiny_bert: Path, events: Path) -> None:
    path, _ = written(tmp_path, tiny_bert)
    benchmark("w_flower").main([str(path)])
    check_whole(events, steps=False)


def test_pfl_does_w(tmp_path: Path, tiny_bert: Path, events: Path) -> None:
    pytest.importorskip("pfl")
    path, _ = written(tmp_path, tiny_bert)
    benchmark("w_pfl").main([str(path)])
    check_whole(events)


def result(contender: str, wall: float, memory: float, **more: Any) -> dict[str, Any]:
    table = benchmark("w_table")
    parts = {**dict.fromkeys(table._FIGURES, 1.0), "start": 2.0, **more}
    return {
        **{"contender": contender, "repetition": 0, "load": 0.5, "commit": "c0ffee"},
        **{**parts, "wall": wall, "memory_mb": memory},
    }


def test_ratios_are_of_the_floor_that_does_the_same_work(tmp_path: Path) -> None:
    w, table = benchmark("w"), benchmark("w_table")
    rows = [
        *(result("hushtune", wall, 400.0) for wall in (30.0, 10.0, 20.0)),
        result("bare", 80.0, 1000.0),
        result("hushtune-top", 30.0, 400.0),
        result("bare-top", 50.0, 500.0),
        result("off-eager", 60.0, 800.0),
    ]
    everyone = {**w.contenders("bfloat16"), **w.switched_off("bfloat16")}
    about = {"processor": "one", "torch": "2", "python": "3", "date": "today"}
    made = table.as_markdown(rows, everyone, about)
    lines = {line.split("|")[1].strip(): line for line in made.splitlines() if "|" in line}
    assert "| 3 | 20.0 |" in lines["hushtune, bfloat16"]
    assert "| 400 | 0.25 | 0.40 |" in lines["hushtune, bfloat16"]
    assert "| 400 | 0.60 | 0.80 |" in lines["hushtune, top two layers"]
    assert (
        "| 60.0 | 3.00 | 800 | 2.00 |" in lines["fused attention, texts of one width by themselves"]
    )
    assert lines["wall, of the plain loop's"].endswith("| 0.35 | 0.25 | yes |")
    assert lines["orchestration, of the wall"].endswith("| 0.03 | 0.05 | **no** |")
    table.plot(rows, everyone, tmp_path / "speed.png")
    assert (tmp_path / "speed.png").stat().st_size > 5000


def test_what_is_measured_is_told_with_its_memory(tmp_path: Path) -> None:
    """A child that holds 200 MB for a while and fails or not."""
    processes = benchmark("w_processes")
    program = (
        "import time, w_work\n"
        "held = bytearray(200 * 2**20)\n"
        "with w_work.timed('training'): time.sleep(3)\n"
        "with w_work.timed('evaluation') as more: more.update(loss=0.5, accuracy=1.0)\n"
        "w_work.tell('step', began=time.time())\n"
    )
    found = processes.measured(
        [sys.executable, "-c", program], tmp_path / "a", core=None, timeout=60
    )
    assert 200 < found["memory_mb"] < 300
    assert 3 <= found["training"] < found["wall"]
    assert found["cpu"] < found["wall"] + 0.5
    with pytest.raises(SystemExit, match="no such thing"):
        processes.measured(
            [sys.executable, "-c", "raise SystemExit('no such thing')"],
            tmp_path / "b",
            core=None,
            timeout=60,
        )
