"""A table that a benchmark made, as Markdown, put into a page between two markers."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from hushtune.common.files import write_text


def put_between(page: Path, begin: str, end: str, table: str) -> None:
    """Replace what stands between the markers; SystemExit for a page that lacks one."""
    head, found, rest = page.read_text(encoding="utf-8").partition(begin)
    _, closed, tail = rest.partition(end)
    if not found or not closed:
        raise SystemExit(f"{page} lacks {begin} or, after it, {end}")
    write_text(page, f"{head}{begin}\n{table}\n{end}{tail}")


def table_of(rows: Sequence[Sequence[str]]) -> str:
    """A table of Markdown, its first row the head."""
    head, *rest = rows
    lines = [head, ["---"] * len(head), *rest]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)
