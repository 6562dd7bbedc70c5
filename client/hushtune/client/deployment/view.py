"""What `hushtune site join` shows: a picture that is redrawn in a terminal, else plain lines."""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from hushtune.client.deployment.status_file import State, Status, seconds_since

_STYLES = {
    State.CONNECTED: "green",
    State.WORKING: "bold green",
    State.STARTING: "yellow",
    State.HELD: "yellow",
    State.STOPPED: "dim",
}


@contextmanager
def shown(console: Console) -> Generator[Callable[[Status], None]]:
    """Calls that show a status, as suits where it is shown."""
    if not console.is_terminal:
        yield plain_lines(console)
        return
    with Live(console=console, auto_refresh=False, transient=False) as live:
        yield lambda status: live.update(picture(status), refresh=True)


def picture(status: Status) -> Table:
    """A status as a small table."""
    table = Table.grid(padding=(0, 2))
    table.add_column(style="dim", no_wrap=True)
    table.add_column(overflow="fold")
    for name, text in rows(status):
        style = _STYLES.get(status.state, "red") if name == "state" else ""
        table.add_row(name, Text(text, style=style))
    return table


def rows(status: Status) -> list[tuple[str, str]]:
    """What is told, name by name."""
    told = [
        ("site", f"{status.site}, joined to {status.server}"),
        ("state", f"{status.state}, for {_ago(status.since)}"),
        ("round", _round(status)),
        ("epsilon", _epsilon(status)),
        ("last order", _last(status)),
        ("refused", str(status.refusals)),
    ]
    if status.restarts.node or status.restarts.executor:
        of = status.restarts
        told.append(("restarts", f"node {of.node}, executor {of.executor}"))
    if status.last_error is not None:
        error = status.last_error
        told.append(("error", f"{error.get('code', '')} {error.get('message', '')}"))
        told += [(name, str(error[name])) for name in ("given", "do") if error.get(name)]
    return told


def plain_lines(console: Console) -> Callable[[Status], None]:
    """A line for each change of state, each error and each order that was decided."""
    before: list[Status] = []

    def show(status: Status) -> None:
        last = before[-1] if before else None
        for line in changes(last, status):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        before[:] = [status]

    return show


def changes(last: Status | None, status: Status) -> list[str]:
    """What to say of a status after another one."""
    told: list[str] = []
    if last is None or last.state != status.state:
        told.append(f"{status.site}: {status.state}")
    if status.last_error and (last is None or last.last_error is None or _differ(last, status)):
        error = status.last_error
        told.append(f"{status.site}: {error.get('code', '')} {error.get('message', '')}")
        told += [f"  {name}: {error[name]}" for name in ("given", "do") if error.get(name)]
    if status.last_order and (last is None or last.last_order != status.last_order):
        told.append(f"{status.site}: {_last(status)}; epsilon {_epsilon(status)}")
    return told


def _differ(last: Status, status: Status) -> bool:
    return (last.last_error or {}).get("message") != (status.last_error or {}).get("message")


def _round(status: Status) -> str:
    order = status.order
    if order is None:
        return "none under way"
    return f"{order.get('kind')} of round {order.get('round')}, for {_ago(str(order['since']))}"


def _epsilon(status: Status) -> str:
    limit = "no limit known" if status.limit is None else f"{status.limit:g}"
    return f"{status.epsilon or 0.0:.3g} of {limit}"


def _last(status: Status) -> str:
    order = status.last_order
    if order is None:
        return "none yet"
    why = f" ({order['code']} {order['reason']})" if order.get("code") else ""
    return f"{order['kind']} of round {order['round']} {order['decision']}{why}"


def _ago(moment: str) -> str:
    seconds = max(0.0, seconds_since(moment))
    if seconds < 120:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 7200 else f"{seconds / 3600:.1f} h"
