"""What the terminal shows of a federation and of a run that goes on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping
from types import TracebackType
from typing import Any, Self

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.padding import Padding
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from hushtune.common.privacy.figures import upwards
from hushtune.server.deployment.status import ago_text, bytes_text, doing

_COLOURS = {"running": "green", "finished": "green", "starting": "yellow"}


def show_status(status: Mapping[str, Any]) -> RenderableType:
    """All of a federation, as ``federation_status`` tells it."""
    server, now = status["server"], status["time"]
    head = Text.assemble((str(status["federation"]), "bold"), f" at {status['address']}: server ")
    if server["running"]:
        head.append(f"running, started {ago_text(server['started'], now=now)}", style="green")
    else:
        head.append("not running", style="red")
    parts: list[RenderableType] = [head]
    days = server["certificate_days"]
    if days is not None:
        text = f"certificate valid for {days} more days" if days >= 0 else "certificate EXPIRED"
        parts.append(Text(text, style="" if days >= 30 else "bold red"))
    parts.append(_sites(status))
    if status["run"] is not None:
        parts.append(show_run(status["run"]))
    parts += [_rejected(row, now=now) for row in status["rejected"][:5]]
    return Group(*parts)


def show_run(run: Mapping[str, Any]) -> RenderableType:
    """A run: its bar, its figures, and who is not counted."""
    number, rounds = run["round"] or 0, run["rounds"] or 0
    line = Text.assemble(
        "run ",
        (str(run["name"]), "bold"),
        ": ",
        (str(run["status"]), _COLOURS.get(run["status"], "red")),
        f", round {number} of {rounds or '?'}",
    )
    if doing(run):
        line.append(f", {doing(run)}")
    parts: list[RenderableType] = [line]
    if rounds:
        # A bar ends without a new line; what pads it has one.
        parts.append(Padding(ProgressBar(total=rounds, completed=number, width=40), 0))
    parts.append(Text(_figures(run), style="dim"))
    parts += [
        Text(f"  {site} did not count: {reason}", style="yellow")
        for site, reason in sorted(run["rejected"].items())
    ]
    if run["error"]:
        parts.append(Text(f"{run['error']['code']} {run['error']['message']}", style="bold red"))
        if run["error"].get("do"):
            parts.append(Text(f"  do: {run['error']['do']}"))
    return Group(*parts)


def round_line(run: Mapping[str, Any]) -> str:
    """A round that is over, on one line."""
    return f"round {run['round']:>3} of {run['rounds']}  {_figures(run)}" + "".join(
        f"  {site} did not count: {reason}" for site, reason in sorted(run["rejected"].items())
    )


class RunView:
    """Shows a run that is followed: live on a terminal, a line a round elsewhere."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._live = Live(console=console, auto_refresh=False) if console.is_terminal else None
        self._told: tuple[Any, ...] = ()

    def __enter__(self) -> Self:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._live is not None:
            self._live.stop()

    def update(self, run: Mapping[str, Any]) -> None:
        """The run as its folder tells it now."""
        if self._live is not None:
            self._live.update(show_run(run), refresh=True)
            return
        now = (run["status"], run["phase"], tuple(run["connected"]), run["round"])
        if now == self._told:
            return
        before = self._told or (None, None, None, 0)
        self._told = now
        if now[:3] != before[:3]:
            there = f"; connected: {', '.join(run['connected'])}" if run["connected"] else ""
            what = ", ".join(word for word in (run["status"], doing(run)) if word)
            self._say(f"{what}{there}")
        if run["round"] and run["round"] != before[3]:
            self._say(round_line(run))

    def _say(self, line: str) -> None:
        self._console.print(line, markup=False, highlight=False, soft_wrap=True)


class ServerView:
    """Shows a server live, from a thread of its own, while it runs in the foreground."""

    def __init__(self, console: Console, status: Callable[[], Mapping[str, Any]]) -> None:
        self._status = status
        self._live = Live(console=console, auto_refresh=False)
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def start(self) -> None:
        """Begin to show it."""
        self._live.start()
        self._thread.start()

    def stop(self) -> None:
        """Leave what was shown last."""
        if self._thread.is_alive():
            self._over.set()
            self._thread.join(timeout=5)
            self._live.stop()

    def _run(self) -> None:
        while not self._over.wait(1.0):
            self._live.update(show_status(self._status()), refresh=True)


def _figures(run: Mapping[str, Any]) -> str:
    parts: list[str] = []
    if run["loss"] is not None:
        parts.append(f"held-out loss {run['loss']:.3f}{' (noised)' if run['noised'] else ''}")
    spent = {site: value for site, value in run["epsilon"].items() if value is not None}
    if spent:
        figures = {site: upwards(value, places=2) for site, value in sorted(spent.items())}
        if len(set(figures.values())) == 1 and len(figures) == len(run["epsilon"]):
            parts.append(f"epsilon {next(iter(figures.values()))} spent at every site")
        else:
            parts.append(
                "epsilon spent: " + " ".join(f"{site} {eps}" for site, eps in figures.items())
            )
    elif run["epsilon"]:
        parts.append("NO PRIVACY")
    if run["seconds_per_round"] is not None:
        parts.append(f"{run['seconds_per_round']:.1f} s a round")
    parts.append(f"{bytes_text(run['bytes_down'])} down, {bytes_text(run['bytes_up'])} up")
    return ", ".join(parts)


def _sites(status: Mapping[str, Any]) -> RenderableType:
    if not status["sites"]:
        return Text(f"no site is enrolled: hushtune server enrol {status['folder']} SITE.pub")
    table = Table(box=None, pad_edge=False, header_style="dim")
    for name in ("site", "connection", "epsilon", "last round", "not counted", "in", "out"):
        right = name in ("epsilon", "not counted", "in", "out")
        table.add_column(name, justify="right" if right else "left")
    run = status["run"]
    for site in status["sites"]:
        spent = "-"
        if run is not None and site["name"] in run["epsilon"]:
            found = site["epsilon"]
            spent = "no bound" if found is None else upwards(found, places=2)
        last = "counted" if site["last"] == "accepted" else site["last"] or "-"
        table.add_row(
            Text(site["name"]),
            _connection(site, now=status["time"], running=status["server"]["running"]),
            spent,
            Text(last, style="red" if last not in ("counted", "-") else ""),
            str(site["refusals"]),
            bytes_text(site["bytes_in"]),
            bytes_text(site["bytes_out"]),
        )
    return table


def _connection(site: Mapping[str, Any], *, now: float, running: bool) -> Text:
    if site["connected"]:
        return Text("connected", style="green")
    if not site["enrolled"]:
        return Text("not enrolled", style="red")
    if not running:
        return Text("not known", style="dim")
    return Text(f"not connected, seen {ago_text(site['last_seen'], now=now)}", style="yellow")


def _rejected(row: Mapping[str, Any], *, now: float) -> Text:
    who = row["site"] or row["key"] or row["peer"]
    clock = "" if row["seconds"] is None else f", clock {row['seconds']:+.1f} s behind"
    count = f"{row['count']} times, last {ago_text(row['last'], now=now)}"
    return Text(f"not let in: {row['reason']}, {who}{clock}; {count}", style="yellow")
