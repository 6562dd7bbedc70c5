"""``hushtune export``: a trained model out of its run, in the form that is wanted."""

from __future__ import annotations

import sys
from collections.abc import Generator, Mapping
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from hushtune.common.errors import ConfigError
from hushtune.common.json_text import json_text
from hushtune.common.names import SEEN_BY


class Format(StrEnum):
    """What is written of a trained model."""

    ADAPTER = "adapter"
    MERGED = "merged"
    ONNX = "onnx"
    INT8 = "int8"


def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="a run's folder or an adapter's")],
    to: Annotated[Path, typer.Option("--to", metavar="DIR2", help="a new folder")],
    merged: Annotated[bool, typer.Option("--merged", help="the same as --format merged")] = False,
    form: Annotated[
        Format | None,
        typer.Option(
            "--format",
            help="adapter (as it is, the default); merged: one model that loads without hushtune "
            "and peft; onnx: one file for onnxruntime; int8: that with weights of 8 bits",
        ),
    ] = None,
    site: Annotated[
        str | None, typer.Option("--site", metavar="SITE", help="the model of this site alone")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="the last line printed is JSON")] = False,
) -> None:
    """Copy a trained adapter out of a run, merge it into its base, or write it for devices."""
    if merged and form not in (None, Format.MERGED):
        raise ConfigError(
            "a model is exported in one form",
            given=f"--merged --format {form}",
            expected="one of the two options",
            remedy="leave --merged out",
        )
    chosen = Format.MERGED if merged else form or Format.ADAPTER
    console, found = Console(stderr=as_json), dict[str, Any]()
    if chosen in (Format.ONNX, Format.INT8):
        from hushtune.simulations.edge_onnx import check_libraries

        check_libraries()  # before anything is loaded
        from hushtune.simulations.edge import export_adapter

        with console.status("writing and comparing"), _adapter(folder, site) as adapter:
            found = export_adapter(adapter, to, int8=chosen is Format.INT8, run=folder, site=site)
        show_edge(console, found)
    else:
        from hushtune.simulations.saved import export as export_model

        with _adapter(folder, site) as adapter:
            export_model(adapter, to, merged=chosen is Format.MERGED)
    console.print(f"written to {to}", highlight=False)
    if as_json:
        sys.stdout.write(json_text({"written": str(to), "format": str(chosen), **found}) + "\n")


@contextmanager
def _adapter(folder: Path, site: str | None) -> Generator[Path]:
    """The folder of the adapter that is asked for: the run's, or one made of a site's own."""
    if site is None:
        from hushtune.simulations.saved import adapter_folder

        yield adapter_folder(folder)
    else:
        from hushtune.simulations.own_models import own_folder

        with own_folder(folder, site) as found:
            yield found


def show_edge(console: Console, found: Mapping[str, Any]) -> None:
    """The forms of a model beside each other, and a warning where one answers otherwise."""
    rows, why = found["test_rows"], found["why_no_test_rows"]
    table = Table(title="One row at a time, one thread", title_justify="left")
    table.add_column("form")
    lower = "" if found["higher_is_better"] else ", lower is better"
    for name in ("MB", "ms", f"{found['figure']}{lower}", "same answers"):
        table.add_column(name, justify="right")
    for form in found["forms"]:
        told = [form["value"], form["agreement"]]
        table.add_row(
            form["form"],
            f"{form['megabytes']:.1f}",
            f"{form['milliseconds']:.2f}",
            *("-" if value is None else f"{value:.4f}" for value in told),
        )
    table.caption = (
        f"{rows} test rows, {SEEN_BY}" if rows else f"A made-up row; no test rows: {escape(why)}"
    )
    console.print(table)
    if found["warning"]:
        console.print(f"[bold yellow]{escape(found['warning'])}[/]", highlight=False)
