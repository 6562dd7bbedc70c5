"""What ``hushtune site`` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from hushtune.client.deployment.check_kinds import Verdict
from hushtune.common.privacy.figures import upwards

if TYPE_CHECKING:
    from hushtune.client.deployment.checks import Report
    from hushtune.client.deployment.service import Service
    from hushtune.client.deployment.setup import Made

_STYLES = {Verdict.OK: "green", Verdict.WARNING: "yellow", Verdict.FAILED: "bold red"}


def show_made(console: Console, made: Made) -> None:
    """What was written, and what to do next."""
    terms = made.terms
    lines = (
        f"{made.folder} is the site's folder. Its keys never leave it.",
        f"policy.toml: epsilon {terms.max_epsilon:g} at delta {terms.max_delta:g} in all runs "
        f"together, trust {', '.join(terms.trust)}, by {terms.charged_unit}. Read it; it is yours "
        "to change.",
        "",
        "Next:",
        f"1. give {made.card} to the coordinator; nothing in it is secret",
        "2. over the telephone, compare both fingerprints with what the coordinator's commands "
        "print:",
        f"     site card   {made.card_fingerprint}",
        f"     invitation  {made.invitation_fingerprint}",
        f"3. hushtune site check {made.folder}",
        f"4. hushtune site join {made.folder}",
    )
    for line in lines:
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def show_report(console: Console, report: Report) -> None:
    """A line a check; what was expected and what to do below those that are not well."""
    table = Table(title=Text(f"site {report.site}"), title_justify="left")
    table.add_column("", no_wrap=True)
    table.add_column("what", no_wrap=True)
    table.add_column("found", overflow="fold")
    for check in report.checks:
        found = check.given
        found += f"\nexpected: {check.expected}" if check.expected else ""
        found += f"\ndo: {check.do}" if check.do else ""
        mark = Text(str(check.verdict), style=_STYLES[check.verdict])
        table.add_row(mark, Text(check.what), Text(found))
    console.print(table)
    counts = {v: sum(check.verdict is v for check in report.checks) for v in Verdict}
    told = f"{counts[Verdict.FAILED]} failed, {counts[Verdict.WARNING]} warnings"
    console.print("ready to join" if report.good else "not ready", end=": ", highlight=False)
    console.print(told, highlight=False)


def show_service(console: Console, service: Service) -> None:
    """The files, and the commands that enable them."""
    for path in service.files:
        console.print(f"written to {path}", markup=False, highlight=False, soft_wrap=True)
    console.print("look at it, and then:")
    for command in service.commands:
        console.print(f"  {command}", markup=False, highlight=False, soft_wrap=True)


def show_status(console: Console, told: Mapping[str, Any]) -> None:
    """The state in a few lines."""
    since = f" since {told['since']}" if told["since"] else ""
    rows = {
        "site": f"{told['site']} of {told['federation']}",
        "server": told["server"],
        "state": f"{told['state']}{since}",
        "working on": _order(told["order"]),
        "last order": _order(told["last_order"]),
        "epsilon": _epsilon(told),
        "last error": _error(told["last_error"]),
    }
    for what, found in rows.items():
        if found:
            line = f"{what:>11}  {found}"
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if told["state"] in ("not joined", "gone", "stopped"):
        line = f"{'do':>11}  hushtune site join {told['folder']}"
        console.print(line, markup=False, highlight=False, soft_wrap=True)


def _epsilon(told: Mapping[str, Any]) -> str:
    if told["problem"]:
        return str(told["problem"])
    spent = "no bound" if told["epsilon"] is None else upwards(told["epsilon"])
    return (
        f"{spent} of {told['limit']:g} spent at delta {told['delta']:g}, {told['charges']} charges"
    )


def _order(order: Mapping[str, Any] | None) -> str:
    if not order:
        return ""
    told = f"run {order.get('run', '?')}, round {order.get('round', '?')}, {order.get('kind', '')}"
    decision = f": {order['decision']}" if order.get("decision") else ""
    code = f" {order['code']} {order['reason']}" if order.get("code") else ""
    when = f" at {order['time']}" if order.get("time") else ""
    return f"{told}{decision}{code}{when}"


def _error(error: Mapping[str, Any] | None) -> str:
    if not error:
        return ""
    do = f"; do: {error['do']}" if error.get("do") else ""
    return f"{error.get('code', '')} {error.get('message', '')} at {error.get('time', '?')}{do}"


def show_history(console: Console, told: Mapping[str, Any]) -> None:
    """A line an order."""
    title = Text(f"site {told['site']}: {len(told['orders'])} of {told['total']} orders")
    table = Table(title=title, title_justify="left")
    for heading in ("time (UTC)", "run begins", "round", "kind", "decision", "epsilon", "seconds"):
        right = heading in ("round", "epsilon", "seconds")
        whole = heading not in ("kind", "decision")
        table.add_column(
            heading, justify="right" if right else "left", overflow="fold", no_wrap=whole
        )
    for order in told["orders"]:
        spent = order["spent"]
        decision = " ".join(x for x in (order["decision"], order["code"], order["reason"]) if x)
        table.add_row(
            Text(order["time"][:19].replace("T", " ")),
            Text(order["run"][:8]),
            str(order["round"] or ""),
            Text(order["kind"]),
            Text(decision),
            "" if spent is None else f"{upwards(spent['epsilon'])} of {spent['limit']:g}",
            f"{order['seconds']:.1f}",
        )
    console.print(table)
    console.print(
        f"{told['charged']} charged, {told['refused']} refused or failed", highlight=False
    )
    if told["damaged"]:
        console.print(f"{told['damaged']} lines of orders.jsonl cannot be read", style="yellow")
