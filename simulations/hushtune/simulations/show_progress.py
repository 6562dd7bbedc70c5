"""What the command shows while a run goes on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskID, TextColumn, TimeElapsedColumn

from hushtune.common.config import RunConfig
from hushtune.common.names import METHODS, OF_TABLES, metric_words
from hushtune.common.privacy.figures import upwards
from hushtune.server.central import SERVER
from hushtune.simulations import garbage, server_ledger
from hushtune.simulations.agreement import show_refusals
from hushtune.simulations.weak import show_warning

_MOST_SITES, _OF_MANY = 6, 4

_NAMES = {**METHODS, **OF_TABLES}


class ProgressView:
    """A progress bar for preparation, rounds and comparisons; an ``Observer``.

    ``turns``: whether clients take turns, so that the first round's charge is the whole run's.
    """

    @classmethod
    def of_run(cls, console: Console, config: RunConfig) -> ProgressView:
        """For a run with these settings."""
        turns = config.privacy.client_turns is not None
        return cls(console, turns=turns, metric=config.task.main_metric)

    def __init__(self, console: Console, *, turns: bool = False, metric: str = "accuracy") -> None:
        self._console = console
        self._turns = turns
        self._metric = metric
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            TextColumn("{task.completed}/{task.total}"),
            TimeElapsedColumn(),
            TextColumn("{task.fields[note]}", style="dim"),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}
        self._left_out = False

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
        garbage.over(self._left_out)

    def preparing(self, what: str, done: int, total: int) -> None:
        """See Observer."""
        self._advance(what, done, total, "")

    def started(self, rounds: int, done: int) -> None:
        """See Observer."""
        self._left_out |= garbage.loaded()
        self._advance("rounds", done, rounds, "")

    def forgetting(self, charges: Mapping[str, int]) -> None:
        """See Observer."""
        most, sites = max(charges.values()), len(charges)
        where = f"at each of {sites} site{'s' * (sites != 1)}"
        if set(charges) == {server_ledger.NAME}:
            where = "at its server"
        self._console.print(
            f"the run that is replaced had up to {most} charge{'s' * (most != 1)} {where}; its own "
            "ledgers go with it, so what it released of the same data is no longer counted",
            highlight=False,
        )

    def refusing(self, figures: Mapping[str, Any]) -> None:
        """See Observer."""
        show_refusals(self._console, figures)

    def warning(self, message: str, remedy: str) -> None:
        """See Observer."""
        show_warning(self._console, message, remedy)

    def nothing_left(self) -> None:
        """See Observer."""
        self._console.print("the run was finished: nothing was left to do", highlight=False)

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See Observer."""
        line = f"round {row['round']:>3}"
        if "loss" in row:
            on = row.get("evaluated_on", "held-out")
            line += f"  {on} loss {row['loss']:.3f}"
            if self._metric in row:
                line += f"  {metric_words(self._metric)} {row[self._metric]:.3f}"
        line += f"  {self._spent(row)}{_not_counted(row)}"
        self._console.print(line, markup=False, highlight=False)
        self._progress.update(self._tasks["rounds"], completed=row["round"])

    def _spent(self, row: Mapping[str, Any]) -> str:
        if SERVER not in row.get("noise", ()):
            return _epsilons(row["epsilon"])
        found = next(iter(row["epsilon"].values()))
        if found is None:
            return "NO PRIVACY"
        whole = ", charged at the start for the whole run" if self._turns else ""
        return f"epsilon {upwards(found, places=2)} spent by the server{whole}"

    def comparing(self, name: str, done: int, total: int) -> None:
        """See Observer."""
        self._advance("comparisons", done, total, _NAMES.get(name.split("/", maxsplit=1)[0], name))

    def _advance(self, what: str, done: int, total: int, note: str) -> None:
        if what not in self._tasks:
            self._tasks[what] = self._progress.add_task(what, total=total, note=note)
        self._progress.update(self._tasks[what], completed=done, total=total, note=note)


def _epsilons(spent: Mapping[str, float | None]) -> str:
    """What each site has spent so far; of many the range, one figure where all spent the same."""
    found = {site: value for site, value in spent.items() if value is not None}
    known = {site: upwards(value, places=2) for site, value in found.items()}
    if not known:
        return "NO PRIVACY"
    if len(set(known.values())) == 1 and len(known) == len(spent):
        return f"epsilon {next(iter(known.values()))} spent at every site"
    if len(known) > _MOST_SITES:
        least, most = min(found, key=found.__getitem__), max(found, key=found.__getitem__)
        return f"epsilon spent: from {known[least]} ({least}) to {known[most]} ({most})"
    return "epsilon spent: " + " ".join(f"{site} {value}" for site, value in known.items())


def _not_counted(row: Mapping[str, Any]) -> str:
    """Whose answers are not in the model; where nobody's is, and all for one reason, the reason."""
    rejected = row.get("rejected") or {}
    reasons = set(rejected.values())
    if rejected and not row.get("accepted", True) and len(reasons) == 1:
        return f"  nobody counted: {reasons.pop()}"
    return f"  not counted: {_few(sorted(rejected))}" if rejected else ""


def _few(names: Sequence[str]) -> str:
    if len(names) <= _MOST_SITES:
        return ", ".join(names)
    return f"{', '.join(names[:_OF_MANY])} and {len(names) - _OF_MANY} more"
