"""One point, run: by the same code as `hushtune simulate`, whichever process does it."""

from __future__ import annotations

import json
import resource
import shutil
import sys
import time
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hushtune.common.config_io import CONFIG, loads_config
from hushtune.common.errors import BusyError, CheckpointError, HushtuneError
from hushtune.common.files import read_json, read_json_lines
from hushtune.common.privacy.report_files import STATEMENT
from hushtune.simulations.observer import Silent
from hushtune.simulations.outputs import METRICS
from hushtune.simulations.study import run

Outcome = dict[str, Any]
"""status, error, summary, code_commit, seconds, cpu_seconds, bytes_up, bytes_down: of a row of
results; and peak_megabytes of the process that ran it."""
Told = Callable[[Mapping[str, Any]], None]
"""Hears of each round of a run: round, rounds, metric, value."""

SHARED_MEGABYTES = 1024
"""Frozen states that the runs of one process share."""
_AGAIN = "run the point again: remove its folder"
_PATIENCE = 120.0
"""Seconds that a point waits for a process of a sweep that was killed, which ends by itself."""


@dataclass(frozen=True, kw_only=True)
class Task:
    """What a process needs to run one point; ``folder``: the run's."""

    key: str
    name: str
    toml: str
    folder: str

    def as_json(self) -> str:
        """One line."""
        return json.dumps(asdict(self))


def task_from(text: str) -> Task:
    """A task from its line."""
    return Task(**json.loads(text))


class _Rounds(Silent):
    """Tells of rounds as they end."""

    def __init__(self, metric: str, told: Told) -> None:
        self._metric, self._told, self._rounds = metric, told, 0

    def preparing(self, what: str, done: int, total: int) -> None:
        """See Observer."""
        self._told({"preparing": what, "done": done, "total": total})

    def started(self, rounds: int, done: int) -> None:
        """See Observer."""
        self._rounds = rounds
        self._told({"round": done, "rounds": rounds})

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See Observer."""
        value = row.get(self._metric)
        told = {"round": row["round"], "rounds": self._rounds, "metric": self._metric}
        self._told({**told, "value": value})

    def comparing(self, name: str, done: int, total: int) -> None:
        """See Observer."""
        self._told({"comparing": name, "done": done, "total": total})


def execute(task: Task, told: Told) -> Outcome:
    """Run a point into its folder, or go on with it there; what goes wrong is told, not raised."""
    began, processor = time.perf_counter(), time.process_time()
    folder = Path(task.folder)
    found: Outcome = dict.fromkeys(("summary", "error", "bytes_up", "bytes_down"))
    try:
        with _alone(folder):
            summary = _run(task, folder, told)
            found |= {"status": "done", "summary": summary, **_traffic(folder)}
            # Of a run that was found finished, the code that ran it.
            found["code_commit"] = read_json(folder / STATEMENT, remedy=_AGAIN)["source_commit"]
    except HushtuneError as error:
        found |= {"status": "failed", "error": {"code": error.code, "text": str(error)}}
    except Exception as error:
        text = f"an unforeseen error: {type(error).__name__}: {error}"
        found |= {"status": "failed", "error": {"code": HushtuneError.code, "text": text}}
    return {
        **found,
        "seconds": time.perf_counter() - began,
        "cpu_seconds": time.process_time() - processor,
        "peak_megabytes": peak_megabytes(),
    }


def _run(task: Task, folder: Path, told: Told) -> dict[str, Any]:
    config = loads_config(task.toml)
    begun = (folder / CONFIG).is_file()
    if not begun and folder.is_dir() and not _has_spent(folder):
        shutil.rmtree(folder)  # it was stopped before its settings were there
    observer = _Rounds(config.task.main_metric, told)
    return run(config, folder, resume=begun, observer=observer)


def _has_spent(folder: Path) -> bool:
    return any((folder / name).exists() for name in ("ledger", "checkpoint"))


@contextmanager
def _alone(folder: Path) -> Generator[None]:
    """Processes of a sweep that was killed may live on for a moment; none is ever beside them."""
    locks = folder.parent / ".locks"
    locks.mkdir(parents=True, exist_ok=True)
    lock = FileLock(locks / f"{folder.name}.lock")
    try:
        lock.acquire(timeout=_PATIENCE)
    except Timeout:
        raise BusyError(
            "another process is at work on this point",
            given=str(folder),
            remedy="end it, or wait until it has ended",
        ) from None
    try:
        yield
    finally:
        lock.release()


def _traffic(folder: Path) -> dict[str, int]:
    """Bytes of all rounds, to and from the server."""
    rows = read_json_lines(folder / METRICS, remedy=_AGAIN)
    try:
        return {key: sum(int(row[key]) for row in rows) for key in ("bytes_up", "bytes_down")}
    except (ValueError, KeyError) as error:
        raise CheckpointError(f"{folder / METRICS} is damaged", given=str(error)) from None


def peak_megabytes() -> float:
    """The most memory that this process ever held."""
    most = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return most / 2**20 if sys.platform == "darwin" else most / 2**10
