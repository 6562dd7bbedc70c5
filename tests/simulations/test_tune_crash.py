"""A search that is killed in the middle: what has ended stays, what was begun goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hushtune.client.site import ledger_path
from hushtune.common.files import read_json_lines
from hushtune.common.privacy.ledger import Ledger
from hushtune.simulations.searching.record import read_record

from ..conftest import Command, Settings, made_up_rows, write_csv

ROUNDS, PATIENCE = 12, 240.0
SITES = ("east", "north", "south")


def rounds(trial: Path) -> int:
    path = trial / "metrics.jsonl"
    return path.read_text(encoding="utf-8").count("\n") if path.is_file() else 0


def test_what_kill_9_leaves_of_a_search_is_gone_on_with(
    settings: Settings, hushtune: Command, tmp_path: Path
) -> None:
    """No trial is lost or run twice, and no round is charged twice."""
    config = settings.file(
        tmp_path,
        privacy={"trust": "site", "epsilon": 4.0, "delta": 1e-3},
        train__rounds=ROUNDS,
        train__warmup_rounds=ROUNDS,
    )
    rows = write_csv(tmp_path / "public.csv", made_up_rows(dict.fromkeys(SITES, 60), seed=5))
    public, space, out = (tmp_path / name for name in ("public.toml", "space.toml", "out"))
    public.write_text(f'[data]\nfile = "{rows}"\nsite = "site"\n', encoding="utf-8")
    space.write_text("[train]\nwarmup_learning_rate = { low = 0.01, high = 0.3 }\n", "utf-8")
    command = ["tune", "--config", str(config), "--space", str(space), "--trials", "3"]
    command += ["--choice", "public", "--public", str(public), "--out", str(out)]
    process = subprocess.Popen(
        [sys.executable, "-m", "hushtune.simulations.cli", *command],
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    first, second = out / "trials" / "0000", out / "trials" / "0001"
    try:
        until = time.monotonic() + PATIENCE
        while not rounds(second):
            assert process.poll() is None, "the search has ended by itself"
            assert time.monotonic() < until
            time.sleep(0.005)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
    assert 0 < rounds(second) < ROUNDS
    before = read_record(out)
    assert before is not None
    assert [trial.done for trial in before.trials] == [True, False]
    written = (first / "summary.json").stat().st_mtime_ns

    answer = hushtune(*command, "--resume")
    assert answer.status == 0, answer.err
    after = read_record(out)
    assert after is not None
    assert [(t.number, t.done) for t in after.trials] == [(0, True), (1, True), (2, True)]
    assert after.trials[0] == before.trials[0]
    assert after.trials[1].settings == before.trials[1].settings
    assert all(trial.value is not None for trial in after.trials)
    assert (first / "summary.json").stat().st_mtime_ns == written
    for number in range(3):
        trial = out / "trials" / f"{number:04}"
        told = read_json_lines(trial / "metrics.jsonl", remedy="")
        assert [row["round"] for row in told] == [*range(1, ROUNDS + 1)]
        for site in SITES:
            assert len(Ledger(ledger_path(trial, site)).entries()) == ROUNDS
