"""Points in several processes of this machine, as many as cores and memory allow."""

from __future__ import annotations

import json
import os
import queue
import subprocess
import sys
import threading
from collections.abc import Generator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

import psutil

from hushtune.common.errors import RunError
from hushtune.simulations.sweep.execute import Outcome, Task
from hushtune.simulations.sweep.points import Point

Event = tuple[Point, dict[str, Any] | Outcome, bool]
"""What was told of a point, and whether it is its outcome."""
SPARE = 0.8
"""Of the memory that is free, what processes may take: others need some, and peaks differ."""
_LAST = 400


def run_in_processes(
    points: Sequence[Point], tasks: Sequence[Task], *, jobs: int | None, logs: Path
) -> Generator[Event]:
    """Run all points; yields what is told of them, and the outcome of each as it ends.

    ``jobs``: how many processes; None for one a core, as far as memory goes round by what the first
    point took. ``logs``: a folder for what the processes print. A process that is killed fails its
    point alone.
    """
    cores = num_cores()
    most = min(jobs or cores, len(points))
    threads = max(1, cores // most)
    pending, by_key = list(points), {task.key: task for task in tasks}
    heard: queue.SimpleQueue[tuple[_Worker, str | None]] = queue.SimpleQueue()
    workers: list[_Worker] = []
    allowed, peak = (1 if jobs is None else most), 0.0
    try:
        while pending or any(worker.point for worker in workers):
            while pending and sum(w.point is not None for w in workers) < allowed:
                free = next((worker for worker in workers if worker.point is None), None)
                if free is None:
                    free = _Worker(heard, logs / f"worker-{len(workers) + 1}.log", threads)
                    workers.append(free)
                busy = {worker.point.shares[0] for worker in workers if worker.point}
                point = next_point(pending, last=free.last, busy=busy)
                pending.remove(point)
                free.begin(point, by_key[point.key])
            worker, line = heard.get()
            point = worker.point
            if line is None:
                workers.remove(worker)
                worker.end()
                if point is not None:
                    yield point, worker.lost(), True
                continue
            message = json.loads(line)
            if point is None or "event" in message:
                if point is not None:
                    yield point, message["event"], False
                continue
            worker.point, outcome = None, message["outcome"]
            peak = max(peak, outcome["peak_megabytes"])
            if jobs is None and outcome["status"] == "done":
                room = free_megabytes() + outcome["peak_megabytes"] * len(workers)
                allowed = fitting(most, peak=peak, room=room)
            yield point, outcome, True
    finally:
        for worker in workers:
            worker.end()


def next_point(pending: Sequence[Point], *, last: Point | None, busy: set[str]) -> Point:
    """The point that shares most with the one before; else of a base and rows that no other process
    is at, of which most are left to do."""
    if last is not None:
        for level in (1, 0):
            for point in pending:
                if point.shares[level] == last.shares[level]:
                    return point
    left = [point.shares[0] for point in pending]
    return max(pending, key=lambda p: (p.shares[0] not in busy, left.count(p.shares[0])))


def fitting(most: int, *, peak: float, room: float) -> int:
    """How many processes of ``peak`` megabytes fit into ``room``; one at least, ``most`` at most.

    >>> fitting(8, peak=1000, room=4000), fitting(2, peak=10, room=4000), fitting(2, peak=9, room=1)
    (3, 2, 1)
    """
    return max(1, min(most, int(SPARE * room / max(peak, 1.0))))


def num_cores() -> int:
    """Cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def free_megabytes() -> float:
    """Memory that can be had without swapping, by what the machine and its container allow."""
    free = float(psutil.virtual_memory().available)
    group = Path("/sys/fs/cgroup")
    try:
        limit = int((group / "memory.max").read_text())
        free = min(free, limit - int((group / "memory.current").read_text()))
    except (OSError, ValueError):  # no such limit
        pass
    return max(0.0, free / 2**20)


class _Worker:
    """One process; ``point``: what it is at, ``last``: what it had last."""

    def __init__(
        self, heard: queue.SimpleQueue[tuple[_Worker, str | None]], log: Path, threads: int
    ) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        self._log = log
        environment = {"OMP_NUM_THREADS": str(threads), **os.environ}
        # Modules are found as this process finds them, from wherever they were put on its path.
        environment["PYTHONPATH"] = os.pathsep.join(filter(None, sys.path))
        with log.open("wb") as errors:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hushtune.simulations.sweep.worker"],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=errors,
                env=environment,
                text=True,
                encoding="utf-8",
            )
        self.point: Point | None = None
        self.last: Point | None = None
        self._reader = threading.Thread(target=self._listen, args=(heard,), daemon=True)
        self._reader.start()

    def _listen(self, heard: queue.SimpleQueue[tuple[_Worker, str | None]]) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if line.endswith("\n"):  # else it ended in the middle of it
                heard.put((self, line))
        heard.put((self, None))

    def begin(self, point: Point, task: Task) -> None:
        """Hand it a point."""
        assert self._process.stdin is not None
        self.point = self.last = point
        with suppress(BrokenPipeError):  # it has ended, which is heard next
            self._process.stdin.write(task.as_json() + "\n")
            self._process.stdin.flush()

    def lost(self) -> Outcome:
        """The outcome of the point that a process was at when it ended."""
        status = self._process.wait()
        how = f"signal {-status}" if status < 0 else f"exit status {status}"
        error = RunError(
            "the process of this point ended before it",
            given=f"{how}; {self._last_words()}",
            remedy="see whether memory was short (fewer --jobs); --retry goes on with the point",
        )
        told = {"code": error.code, "text": str(error)}
        return {"status": "failed", "error": told}

    def _last_words(self) -> str:
        text = self._log.read_text(encoding="utf-8", errors="replace").strip()
        return f"it last said: {text[-_LAST:]}" if text else "it said nothing"

    def end(self) -> None:
        """End the process, whatever it is at."""
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            if pipe is not None:
                with suppress(BrokenPipeError):
                    pipe.close()
