"""``hushtune report``: what came of a study, as one page, pictures and tables."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from hushtune.simulations.cli_options import AsJson, print_json


def report(
    folder: Annotated[
        Path,
        typer.Argument(metavar="DIR", help="a study's folder: results.jsonl, or a folder a run"),
    ],
    against: Annotated[
        list[str] | None,
        typer.Option(
            "--against",
            metavar="NAME",
            help="test all other combinations against this one, by its name in the page's pictures "
            "(can be given several times); left out, against those that the study's file names",
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw and tabulate a study: one page for a browser or paper, pictures, CSV."""
    from hushtune.simulations.reporting.build import report as make_report

    console = Console(stderr=as_json)
    with console.status("drawing"):
        made = make_report(folder, against=against or ())
    told = f"{made.done} run{'' if made.done == 1 else 's'} done, {made.failed} failed"
    console.print(told, highlight=False)
    for line in made.not_drawn:
        console.print(line, style="yellow", highlight=False)
    console.print(f"{'page':>9}  {made.page}", highlight=False, soft_wrap=True)
    place = made.page.parent / "report"
    console.print(f"{'pictures':>9}  {place} ({len(made.pictures)} files)", soft_wrap=True)
    console.print(f"{'tables':>9}  {place} ({len(made.tables)} files)", soft_wrap=True)
    print_json(
        {
            "page": str(made.page),
            "pictures": [str(path) for path in made.pictures],
            "tables": [str(path) for path in made.tables],
            "not_drawn": list(made.not_drawn),
            "done": made.done,
            "failed": made.failed,
        },
        as_json,
    )
