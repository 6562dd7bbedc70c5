"""What ``hushtune data`` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from textwrap import indent
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text


def show_preview(console: Console, found: Mapping[str, Any]) -> None:
    """Rows as they are read and as tokens, of which those that carry loss are marked and in
    colour; images with their size."""
    marked = any(row["learnt"] is not None for row in found["rows"])
    told = [] if found["model"] is None else [f"tokens as {found['model']} reads them"]
    told += ["those in «marks» carry loss"] if marked else []
    if told:
        line = "; ".join(told)
        console.print(line, style="dim", markup=False, highlight=False, soft_wrap=True)
    for row in found["rows"]:
        head = Text(row["place"], style="bold")
        head.append("  label ", style="not bold")
        head.append(_one_line(row["label"] or "-"), style="not bold cyan")
        if row["scaled"] is not None:
            head.append(f"  learnt as {row['scaled']:.4g}", style="not bold")
        if row["site"]:
            head.append(f"  site {row['site']}", style="not bold")
        console.print(head)
        if row["note"]:
            style = "red" if row["refused"] else "yellow"
            told = indent(row["note"], "  ")
            console.print(told, style=style, markup=False, highlight=False, soft_wrap=True)
        text = str(row["text"] or "")
        shown = text.partition(":")[2] if row["size"] else text
        console.print("  " + shown, markup=False, highlight=False)
        if row["size"]:
            width, height = row["size"]
            console.print(f"  {width} x {height} pixels", style="dim", highlight=False)
            continue
        tokens: Sequence[str] = row["tokens"] or ()
        console.print(_tokens(tokens, row["learnt"]))


def _tokens(tokens: Sequence[str], learnt: Sequence[int] | None) -> Text:
    count = "" if learnt is None else f", {sum(learnt)} of them carry loss"
    line = Text(f"  {len(tokens)} tokens{count}: ", style="dim")
    for place, token in enumerate(tokens):
        line.append(" " if place else "")
        if learnt is not None and learnt[place]:
            line.append(f"«{token}»", style="not dim green")
        else:
            line.append(token)
    return line


def _one_line(text: str) -> str:
    return " ".join(text.split())


_COLOURS = {"problem": "bold red", "warning": "bold yellow", "note": "dim"}


def show_check(console: Console, report: Mapping[str, Any]) -> None:
    """What a check found, the worst first."""
    for name, site in report["sites"].items():
        left = site["read"] - site["rows"]
        more = f" ({left} more lack a value)" if left else ""
        console.print(Text(f"{name}: {site['rows']} rows{more}"))
    table = Table(title="what was found", title_justify="left", show_lines=True)
    table.add_column("")
    table.add_column("found, and what to do", overflow="fold", ratio=1)
    table.add_column("such as", overflow="fold")
    for finding in report["findings"]:
        level = Text(finding["level"], style=_COLOURS[finding["level"]])
        told = Text(f"{finding['what']}: ", style="bold")
        told.append(finding["text"], style="not bold")
        if finding["remedy"]:
            told.append(f"\ndo: {finding['remedy']}", style="not bold dim")
        table.add_row(level, told, Text("\n".join(finding["places"])))
    console.print(table)
    problems, warnings = report["problems"], report["warnings"]
    console.print(
        f"{problems} problem{'' if problems == 1 else 's'} that would stop a run, "
        f"{warnings} warning{'' if warnings == 1 else 's'}",
        highlight=False,
    )
