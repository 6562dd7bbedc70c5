"""The commands ``hushtune data``: rows as they are read, and what is wrong with them."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hushtune.common.errors import ConfigError
from hushtune.simulations.cli_options import (
    AsJson,
    ConfigFile,
    Overrides,
    Preset,
    print_json,
    settings_of,
)
from hushtune.simulations.exits import BUG, USER_ERROR

data_app = typer.Typer(help="Look at data before a run.", no_args_is_help=True)

Text = Annotated[str, typer.Option(help="the column with the text")]
Label = Annotated[str, typer.Option(help="the column with the label")]
Site = Annotated[str | None, typer.Option(help="the column with the site")]
KindName = Annotated[str, typer.Option(help="task.kind: what is learnt from what")]
Form = Annotated[str, typer.Option(help="data.form, of instructions and answers")]
Second = Annotated[str | None, typer.Option(help="of pairs: the column with the second text")]
ColumnNames = Annotated[
    str | None, typer.Option("--columns", metavar="A,B", help="of tables: the columns to read")
]
Range = Annotated[
    str | None, typer.Option("--range", metavar="LOW,HIGH", help="of numbers: task.range")
]
_TEXT = "text-classification"


@data_app.command("preview")
def data_preview(
    file: Annotated[
        Path | None, typer.Argument(metavar="FILE", help="or a folder of images")
    ] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Overrides = None,
    text: Text = "text",
    label: Label = "label",
    site: Site = None,
    kind: KindName = _TEXT,
    form: Form = "auto",
    second: Second = None,
    columns: ColumnNames = None,
    range_: Range = None,
    model: Annotated[
        str | None, typer.Option(help="whose tokenizer; left out = that of the kind's preset")
    ] = None,
    rows: Annotated[int, typer.Option(min=1, help="how many")] = 5,
    images: Annotated[
        bool, typer.Option("--images", help="the texts are paths of images: --kind of images")
    ] = False,
    as_json: AsJson = False,
) -> None:
    """Show rows as they will be read, as tokens, and which are learnt; of images size and class."""
    from hushtune.simulations import data_options
    from hushtune.simulations.show_data import show_preview
    from hushtune.simulations.tokens import preview_file, preview_run

    if file is None:
        if config is None and preset is None:
            raise _no_data("FILE")
        found = preview_run(settings_of(preset, config, set_), model=model, rows=rows)
    else:
        if images or (file.is_dir() and kind == _TEXT):
            kind = "image-classification"
        read = data_options.columns(
            text, label, site, kind=kind, form=form, second=second, columns=columns
        )
        found = preview_file(file, read, bounds=data_options.bounds(range_), model=model, rows=rows)
    show_preview(Console(stderr=as_json), found)
    print_json(found, as_json)


@data_app.command("check")
def data_check(
    paths: Annotated[
        list[Path] | None, typer.Argument(metavar="PATH...", help="files; several = a site each")
    ] = None,
    config: ConfigFile = None,
    preset: Preset = None,
    set_: Overrides = None,
    text: Text = "text",
    label: Label = "label",
    site: Site = None,
    group: Annotated[
        str | None, typer.Option(help="a column of patients or users that a split might part")
    ] = None,
    kind: KindName = _TEXT,
    form: Form = "auto",
    second: Second = None,
    columns: ColumnNames = None,
    range_: Range = None,
    epsilon: Annotated[float, typer.Option(help="the budget that sizes are judged by")] = 3.0,
    delta: Annotated[float, typer.Option(help="below 1 / rows of the smallest site")] = 1e-5,
    model: Annotated[
        str | None, typer.Option(help="whose tokenizer judges lengths; with --config, the run's")
    ] = None,
    public_share: Annotated[
        list[str] | None,
        typer.Option(metavar="LABEL=SHARE", help="public share of a class: prints weights"),
    ] = None,
    html: Annotated[
        Path | None, typer.Option(metavar="FILE", help="also write a page for a browser")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="warnings end with status 1")] = False,
    as_json: AsJson = False,
) -> None:
    """Look for what is wrong with data: duplicates, labels, leakage, size against privacy.

    Ends with 0, with 1 for warnings under --strict, with 2 for what would stop a run. No text is
    shown, only places and short labels.
    """
    from hushtune.common.presets import model_for
    from hushtune.simulations import data_options
    from hushtune.simulations.datacheck.check import check
    from hushtune.simulations.show_data import show_check

    console = Console(stderr=as_json)
    if paths:
        settings = data_options.run_over(
            paths,
            {
                "task": {"kind": kind, "range": data_options.bounds(range_)},
                "data": {
                    **{"text": text, "label": label, "site": site, "form": form},
                    **{"second": second, "columns": data_options.names(columns)},
                },
                "privacy": {"epsilon": epsilon, "delta": delta},
            },
        )
    elif config is not None or preset is not None:
        settings = settings_of(preset, config, set_)
        model = model or model_for(settings.task.kind, settings.model.name)
    else:
        raise _no_data("PATH")
    shares = data_options.shares(public_share or [])
    with console.status("looking at the rows"):
        report = check(settings, model=model, group=group, shares=shares)
    if html is not None:
        from hushtune.common.files import write_errors, write_text
        from hushtune.simulations.datacheck.page import render

        with write_errors(html):
            write_text(html, render(report))
    show_check(console, report)
    print_json(report, as_json)
    if report["problems"]:
        raise typer.Exit(USER_ERROR)
    if strict and report["warnings"]:
        raise typer.Exit(BUG)


def _no_data(argument: str) -> ConfigError:
    return ConfigError(
        "nothing says which data are meant",
        given=f"neither {argument} nor --config",
        expected="files, or a configuration whose [data] names them",
        remedy="hushtune data --help lists what each command takes",
    )
