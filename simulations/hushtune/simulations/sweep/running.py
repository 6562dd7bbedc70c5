"""A sweep: the points of a study that have not run yet, run; and a row of results for each.

A point is its settings: the hash of all of them names its folder. So a study may be changed and run
into the same folder again. What has an equal hash is kept, what is new is run, and of points that
the study has no more the runs stay, and not the rows.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Generator, Iterator, Sequence
from pathlib import Path
from typing import Literal, Protocol

from hushtune.common.errors import BusyError, ConfigError, OutputExistsError
from hushtune.common.files import check_writable, read_json, write_text
from hushtune.common.tasks.shared_states import share_states
from hushtune.common.tuning import measured_precision
from hushtune.server.deployment.lock import held
from hushtune.simulations.reporting.points import BASE, STUDY_FILE
from hushtune.simulations.sweep.execute import SHARED_MEGABYTES, Task, execute
from hushtune.simulations.sweep.points import Point, points_of
from hushtune.simulations.sweep.ray_engine import run_on_ray
from hushtune.simulations.sweep.results import (
    DONE,
    RESULTS,
    TABLE,
    Row,
    described_anew,
    read_rows,
    row_of,
    write_rows,
)
from hushtune.simulations.sweep.study_file import Study, check_jobs, read_study
from hushtune.simulations.sweep.workers import Event, run_in_processes

MACHINE, POINTS = "machine.json", "points"
_OWN = frozenset(
    (RESULTS, TABLE, STUDY_FILE, BASE, MACHINE, POINTS, "logs", ".lock", "report", "report.html")
)
"""What may be in a sweep's folder: its own, and what a report of it left there."""
_PRECISION = "precision"
Engine = Literal["local", "ray"]


class SweepObserver(Protocol):
    """Hears how a sweep is going; must not change anything."""

    def note(self, text: str) -> None:
        """Something that whoever began the sweep should know."""
        ...

    def planned(self, points: Sequence[Point], kept: int) -> None:
        """All points are checked; so many of them have their row already."""
        ...

    def told(self, point: Point, event: Row) -> None:
        """How far a point is: ``round`` of ``rounds``, ``metric``, ``value``."""
        ...

    def ended(self, row: Row) -> None:
        """A point has ended, and its row is written."""
        ...


class Unheard:
    """An observer that says nothing."""

    def note(self, text: str) -> None:
        """See SweepObserver."""

    def planned(self, points: Sequence[Point], kept: int) -> None:
        """See SweepObserver."""

    def told(self, point: Point, event: Row) -> None:
        """See SweepObserver."""

    def ended(self, row: Row) -> None:
        """See SweepObserver."""


def sweep(
    study: Study | Path | str,
    *,
    out: Path | str,
    jobs: int | None = None,
    engine: Engine = "local",
    address: str | None = None,
    retry: bool = False,
    observer: SweepObserver | None = None,
) -> Iterator[Row]:
    """Run a study into the folder ``out``; yields the row of each point: first those that are there
    already, then each as its run ends. Nothing runs before the first row is asked for, and leaving
    the loop ends what is running; the same call goes on with it.

    Args:
        study: a STUDY.toml, or what ``read_study`` made of it.
        jobs: points at once; 1 runs them in this process, None takes a process a core, as far as
            memory goes round by what the first point took.
        engine: "local", or "ray" for Ray's tasks on the cluster at ``address``.
        retry: run failed points again, from where they are; else their rows are kept.
        observer: hears how it goes.

    Raises:
        ConfigError: the study, or a point of it, cannot be; nothing has run then. So do errors of
            data and privacy plans, which name the point.
        OutputExistsError: ``out`` holds something else.
        BusyError: another sweep is writing there.

    What a point fails of is in its row and raises nothing.
    """
    check_jobs(jobs)
    if address is not None and engine != "ray":
        raise ConfigError(
            "--address is that of a Ray cluster", given=address, expected="--engine ray with it"
        )
    found = study if isinstance(study, Study) else read_study(study)
    where = (found, Path(out).resolve(), observer or Unheard())
    return _rows(*where, jobs=jobs, engine=engine, address=address, retry=retry)


def _rows(
    study: Study,
    folder: Path,
    observer: SweepObserver,
    *,
    jobs: int | None,
    engine: Engine,
    address: str | None,
    retry: bool,
) -> Generator[Row]:
    _check_folder(folder)
    folder.mkdir(parents=True, exist_ok=True)
    busy = BusyError(
        "another sweep is writing into this folder",
        given=str(folder),
        remedy="wait until it has ended, end it, or name another --out",
    )
    with held(folder / ".lock", busy=busy):
        was_there = (folder / MACHINE).is_file()
        precision = _precision(folder)
        points, notes = points_of(study, precision=precision)
        write_text(folder / MACHINE, json.dumps({_PRECISION: precision}) + "\n")
        for note in notes:
            observer.note(note)
        table = _Table(folder, points, observer)
        write_text(folder / STUDY_FILE, study.text)
        if study.base is not None:
            write_text(folder / BASE, study.base)
        elif was_there:
            (folder / BASE).unlink(missing_ok=True)  # of what the study was before
        kept = [row for row in table.kept if row["status"] == DONE or not retry]
        already = {row["point"] for row in kept}
        left = sorted((p for p in points if p.key not in already), key=_order(points))
        observer.planned(points, len(kept))
        yield from kept
        tasks = [
            Task(key=p.key, name=p.name, toml=p.toml, folder=str(folder / POINTS / p.key))
            for p in left
        ]
        if engine == "ray":
            events = run_on_ray(left, tasks, jobs=jobs, address=address)
        elif jobs == 1:
            events = _here(left, tasks, observer)
        else:
            events = run_in_processes(left, tasks, jobs=jobs, logs=folder / "logs")
        try:
            for point, told, is_outcome in events if left else ():
                if not is_outcome:
                    observer.told(point, told)
                    continue
                row = row_of(point, told)
                table.add(row)
                observer.ended(row)
                yield row
        finally:
            events.close()


class _Table:
    """The rows of a folder: those of the study, in its order.

    Rows of points that it has no more go, as a report would draw them among the others; their runs
    stay, and give their rows again where the study has them again.
    """

    def __init__(self, folder: Path, points: Sequence[Point], observer: SweepObserver) -> None:
        self._folder = folder
        self._points = [point.key for point in points]
        by_key = {point.key: point for point in points}
        rows = {row["point"]: row for row in read_rows(folder)}
        gone = len(rows.keys() - by_key.keys())
        if gone:
            observer.note(
                f"{gone} row{'s' * (gone != 1)} of points that the study has no more "
                f"{'are' if gone != 1 else 'is'} left out; what they ran stays"
            )
        self._rows = {
            key: described_anew(row, by_key[key]) for key, row in rows.items() if key in by_key
        }
        self.kept = [self._rows[key] for key in self._points if key in self._rows]
        self._write()

    def add(self, row: Row) -> None:
        """Put a row in its place, and write all."""
        self._rows[row["point"]] = row
        self._write()

    def _write(self) -> None:
        rows = [self._rows[key] for key in self._points if key in self._rows]
        write_rows(self._folder, rows)


def _here(
    points: Sequence[Point], tasks: Sequence[Task], observer: SweepObserver
) -> Generator[Event]:
    """One point after the other in this process."""
    share_states(SHARED_MEGABYTES)
    try:
        for point, task in zip(points, tasks, strict=True):
            yield point, execute(task, lambda event, at=point: observer.told(at, dict(event))), True
    finally:
        share_states(0)


def _order(points: Sequence[Point]) -> Callable[[Point], tuple[int, ...]]:
    """Points that share most beside each other, and else as the study has them."""
    first: dict[str, int] = {}
    for place, point in enumerate(points):
        for share in point.shares:
            first.setdefault(share, place)
    at = {point.key: place for place, point in enumerate(points)}
    return lambda point: (*(first[share] for share in point.shares), at[point.key])


def _check_folder(folder: Path) -> None:
    """Refuse a folder that holds what is no sweep's, before anything is written."""
    check_writable(folder)
    foreign = sorted({path.name for path in folder.iterdir()} - _OWN) if folder.is_dir() else []
    strange = [name for name in foreign if not name.startswith(".")]
    if strange:
        raise OutputExistsError(
            "the output folder holds what is no sweep's",
            given=f"{folder}: {strange[0]}",
            expected="a new folder, or that of a sweep",
            remedy="name another folder",
        )


def _precision(folder: Path) -> str:
    """What this machine chose when the sweep began stays chosen: it is part of each run's hash."""
    path = folder / MACHINE
    if not path.is_file():
        return measured_precision()
    found = read_json(path, remedy="remove the file; points that it chose for are then run anew")
    return str(found.get(_PRECISION))
