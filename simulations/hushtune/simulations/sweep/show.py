"""What `hushtune sweep` shows."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from hushtune.common.names import SEEN_BY, metric_words
from hushtune.common.privacy.figures import upwards
from hushtune.simulations.sweep.points import Point
from hushtune.simulations.sweep.results import DONE, RESULTS, TABLE, Row

_MOST_SHOWN = 60


class SweepView:
    """A progress bar of points; a ``SweepObserver``."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._progress = Progress(
            TextColumn("points"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.fields[left]}"),
            TextColumn("{task.fields[now]}", style="dim", markup=False),
            console=console,
        )
        self._task = self._progress.add_task("points", total=None, left="", now="checking all")
        self._began, self._kept = time.perf_counter(), 0

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._progress.stop()

    def note(self, text: str) -> None:
        """See SweepObserver."""
        self._print(f"note: {text}")

    def planned(self, points: Sequence[Point], kept: int) -> None:
        """See SweepObserver."""
        self._began, self._kept = time.perf_counter(), kept
        if kept:
            self._print(f"{kept} of {len(points)} points have their row already")
        self._progress.update(self._task, total=len(points), completed=kept, now="")

    def told(self, point: Point, event: Row) -> None:
        """See SweepObserver."""
        now = point.name
        if "preparing" in event:
            now += f": {event['preparing']}"
        elif "round" in event:
            now += f": round {event['round']} of {event['rounds']}"
            if event.get("value") is not None:
                now += f", {metric_words(event['metric'])} {event['value']:.3f}"
        elif event.get("comparing"):
            now += f": {event['comparing']}"
        self._progress.update(self._task, now=now)

    def ended(self, row: Row) -> None:
        """See SweepObserver."""
        self._print(f"{row['name']}: {_figure(row)}")
        self._progress.advance(self._task)
        task = self._progress.tasks[0]
        done = int(task.completed) - self._kept
        seconds = (time.perf_counter() - self._began) / max(1, done)
        left = seconds * (int(task.total or 0) - int(task.completed))
        self._progress.update(self._task, left=f"{_time(left)} left")

    def _print(self, text: str) -> None:
        self._console.print(text, markup=False, highlight=False, soft_wrap=True)


def _figure(row: Mapping[str, Any]) -> str:
    if row["status"] != DONE:
        return f"failed, {row['error']['code']}: {str(row['error']['text']).splitlines()[0]}"
    summary = row["summary"]
    return f"{metric_words(summary['metric'])} {summary['value']:.3f}"


def _time(seconds: float) -> str:
    minutes = seconds / 60
    return (
        f"{minutes / 60:.1f} h"
        if minutes > 90
        else f"{minutes:.0f} min"
        if minutes > 1.5
        else (f"{seconds:.0f} s")
    )


def show_foresight(
    console: Console, rows: Sequence[Mapping[str, Any]], *, minutes: float, jobs: int
) -> None:
    """The points of a dry run, their privacy, and how long all of them take."""
    table = Table(title="Points", title_justify="left")
    table.add_column("point", overflow="fold")
    for column in ("trust", "sites", "epsilon", "noise", "steps", "minutes"):
        table.add_column(column, justify="left" if column == "trust" else "right")
    for row in rows[:_MOST_SHOWN]:
        private = row["epsilon"] is not None
        told = upwards(row["epsilon"], places=2) if private else "none"
        noise = f"{row['noise_multiplier']:.3f}" if private else "none"
        figures = (str(row["sites"]), told, noise, str(row["steps"]), f"{row['minutes']:.1f}")
        table.add_row(str(row["name"]).replace("[", "\\["), row["trust"], *figures)
    if len(rows) > _MOST_SHOWN:
        table.caption = f"and {len(rows) - _MOST_SHOWN} more"
    console.print(table)
    console.print(
        f"{len(rows)} point{'' if len(rows) == 1 else 's'}, "
        f"{'less than a minute' if minutes < 1 else f'about {_time(60 * minutes)}'} with {jobs} at "
        "once. Each has the "
        "epsilon of its own statement: whoever publishes all models, or chooses among them, spends "
        "the sum.",
        highlight=False,
    )


def show_rows(console: Console, rows: Sequence[Mapping[str, Any]], out: str) -> None:
    """The figure of each point, failed ones with their error, and where everything lies."""
    failed = [row for row in rows if row["status"] != DONE]
    table = Table(title=f"Points ({SEEN_BY})", title_justify="left")
    table.add_column("point", overflow="fold")
    table.add_column("figure")
    table.add_column("largest epsilon", justify="right")
    for row in rows[:_MOST_SHOWN]:
        name = str(row["name"]).replace("[", "\\[")
        told = [site["epsilon"] for site in (row["summary"] or {}).get("sites", {}).values()]
        most = "none" if not told or None in told else upwards(max(told), places=3)
        table.add_row(name, _figure(row).replace("[", "\\["), most if row["summary"] else "")
    if len(rows) > _MOST_SHOWN:
        table.caption = f"and {len(rows) - _MOST_SHOWN} more, in {TABLE}"
    console.print(table)
    if failed:
        console.print(
            f"[bold red]{len(failed)} of {len(rows)} points failed[/]: --retry runs them again"
        )
    console.print(f"{'results':>12}  {out}/{RESULTS}", highlight=False, soft_wrap=True)
    console.print(f"{'as a table':>12}  {out}/{TABLE}", highlight=False, soft_wrap=True)
