"""A contender as a child process on one core: its seconds, its processor's seconds, its memory."""

from __future__ import annotations

import json
import os
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import psutil
from w_work import EVENTS

_EVERY = 0.25
_LOOKING = 0.02
"""The largest share of the time that looking may take: it holds the page tables that it reads."""
_QUIET = {
    "OMP_NUM_THREADS": "1",
    "MKL_NUM_THREADS": "1",
    "TOKENIZERS_PARALLELISM": "false",
    "HF_HUB_OFFLINE": "1",
    "FLWR_TELEMETRY_ENABLED": "0",
    "FLWR_DISABLE_UPDATE_CHECK": "1",
    "RAY_USAGE_STATS_ENABLED": "0",
    "PYTHONWARNINGS": "ignore",
    "PYTHONDONTWRITEBYTECODE": "",  # modules are compiled once, and not in each process
}


class Watcher(threading.Thread):
    """Looks at a process and all below it, four times a second where looking is quick."""

    def __init__(self, pid: int) -> None:
        super().__init__(daemon=True)
        self._root = psutil.Process(pid)
        self._over = threading.Event()
        self.peak = 0
        self.cpu: dict[tuple[int, float], float] = {}

    def run(self) -> None:
        """Until ``end``: the largest sum of memory, and each process's latest CPU seconds."""
        pause = _EVERY
        while not self._over.wait(pause):
            began = time.perf_counter()
            self._look()
            pause = max(_EVERY, (time.perf_counter() - began) / _LOOKING)

    def end(self) -> None:
        """Stop looking."""
        self._over.set()
        self.join()

    def _look(self) -> None:
        total = 0
        try:
            processes = [self._root, *self._root.children(recursive=True)]
        except psutil.NoSuchProcess:
            return
        for process in processes:
            try:
                total += memory_of(process)
                spent = process.cpu_times()
                self.cpu[process.pid, process.create_time()] = spent.user + spent.system
            except (psutil.NoSuchProcess, psutil.AccessDenied):
                continue
        self.peak = max(self.peak, total)


def memory_of(process: psutil.Process) -> int:
    """Bytes of a process, those that it shares counted in part (PSS); all of them elsewhere."""
    try:
        rollup = Path(f"/proc/{process.pid}/smaps_rollup").read_text(encoding="ascii")
    except OSError:
        return process.memory_info().rss
    line = next((line for line in rollup.splitlines() if line.startswith("Pss:")), None)
    return process.memory_info().rss if line is None else int(line.split()[1]) * 1024


def measured(
    command: Sequence[str], folder: Path, *, core: int | None, timeout: float
) -> dict[str, Any]:
    """Run a command to its end; what ``watched`` tells, and ``by_part`` of its events."""
    events = folder / "events.jsonl"
    events.unlink(missing_ok=True)
    seen = watched(command, folder, core=core, timeout=timeout)
    lines = [json.loads(line) for line in events.read_text().splitlines()]
    return {**by_part(lines, seen["began"], seen["wall"]), **seen}


def watched(
    command: Sequence[str], folder: Path, *, core: int | None, timeout: float
) -> dict[str, Any]:
    """Run a command to its end; when it began, its wall and CPU seconds, and its peak memory.

    What it says and tells is in ``folder``. SystemExit, with the end of it, for one that fails.
    """
    folder.mkdir(parents=True, exist_ok=True)
    here = str(Path(__file__).parent)
    paths = [here, *os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    environment = {
        **os.environ,
        **_QUIET,
        EVENTS: str((folder / "events.jsonl").absolute()),
        "PYTHONPATH": os.pathsep.join(path for path in paths if path),
    }

    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        began = time.time()
        child = subprocess.Popen(
            command,
            stdout=output,
            stderr=subprocess.STDOUT,
            env=environment,
        )
        if core is not None:
            os.sched_setaffinity(child.pid, {core})  # what it starts is there too
        watcher = Watcher(child.pid)
        watcher.start()
        killer = threading.Timer(timeout, child.kill)
        killer.start()
        _, status, usage = os.wait4(child.pid, 0)
        wall = time.time() - began
        killer.cancel()
        child.returncode = os.waitstatus_to_exitcode(status)
        watcher.end()
    if child.returncode != 0:
        said = (folder / "output.txt").read_text(encoding="utf-8", errors="replace")
        raise SystemExit(f"{' '.join(command)}\nfailed with {child.returncode}:\n{said[-3000:]}")
    # Of daemons, such as Ray's, nobody waits for, so that only the watcher knows them.
    cpu = max(usage.ru_utime + usage.ru_stime, sum(watcher.cpu.values()))
    return {"began": began, "wall": wall, "cpu": cpu, "memory_mb": watcher.peak / 2**20}


def by_part(events: Sequence[Mapping[str, Any]], began: float, wall: float) -> dict[str, Any]:
    """Seconds of each part of a run, its first step after ``began``, and its last figures.

    The start is all before the first local training begins; orchestration is what no part explains.
    """

    def of(part: str) -> list[Mapping[str, Any]]:
        return sorted((e for e in events if e["part"] == part), key=lambda event: event["began"])

    seconds = {
        part: sum(event["seconds"] for event in of(part))
        for part in ("training", "evaluation", "report")
    }
    # A site that waits for what is computed for many at once does nothing meanwhile.
    seconds["training"] += sum(event["seconds"] for event in of("together"))
    seconds["training"] -= sum(event["seconds"] for event in of("waiting"))
    first = of("training")[0]["began"]
    # Some judge the model before they begin, which is evaluation and no start-up.
    early = sum(event["seconds"] for event in of("evaluation") if event["began"] < first)
    start = first - began - early
    last = of("evaluation")[-1]
    return {
        "start": start,
        **seconds,
        "orchestration": wall - start - sum(seconds.values()),
        "first_step": of("step")[0]["began"] - began,
        "evaluations": len(of("evaluation")),
        "loss": last["loss"],
        "accuracy": last["accuracy"],
    }
