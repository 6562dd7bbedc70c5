"""What ``hushtune data`` shows in the terminal."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from rich.console import Console
from rich.text import Text


def show_preview(console: Console, found: Mapping[str, Any]) -> None:
    """Rows as they are read and as tokens; those that carry loss in brackets and in colour."""
    marked = any(row["learnt"] is not None for row in found["rows"])
    if marked:
        console.print("tokens in «marks» carry loss", style="dim", highlight=False)
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
            console.print("  " + row["note"], style="yellow", markup=False, highlight=False)
        console.print("  " + str(row["text"] or ""), markup=False, highlight=False)
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
