"""``hushtune sweep``: all points of a study."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Literal

import typer
from rich.console import Console

from hushtune.common.errors import ConfigError, InterruptedRunError
from hushtune.simulations.cli_options import AsJson, print_json

FAILED = 1


def sweep(
    study: Annotated[
        Path,
        typer.Argument(
            metavar="STUDY.toml",
            help="preset or config: what all points begin with; \\[set]: settings of all; "
            "\\[grid]: lists of values; [\\[point]]: tables of settings, with a name; "
            "\\[baselines]: settings of the points that are compared with any; against: names of "
            "points that the report tests all others against",
        ),
    ],
    out: Annotated[Path | None, typer.Option(help="the sweep's folder")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(help="points at once; left out, one a core as far as memory goes round"),
    ] = None,
    engine: Annotated[Literal["local", "ray"], typer.Option(help="where points run")] = "local",
    address: Annotated[str | None, typer.Option(help="of a Ray cluster, with --engine ray")] = None,
    retry: Annotated[bool, typer.Option("--retry", help="run failed points again")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="say what would happen")] = False,
    as_json: AsJson = False,
) -> None:
    """Run all points of a study that have not run yet. The same command goes on after a stop."""
    console = Console(stderr=as_json)
    from hushtune.simulations.sweep.study_file import check_jobs, read_study

    check_jobs(jobs)
    found = read_study(study)  # before anything heavy is loaded
    if out is None and not dry_run:
        raise ConfigError(
            "a sweep needs a folder to write to",
            expected="--out DIR, or --dry-run to write nothing",
            remedy=f"--out runs/{study.stem}",
        )
    from hushtune.simulations.sweep.foresight import foresee, total_minutes
    from hushtune.simulations.sweep.points import points_of
    from hushtune.simulations.sweep.running import sweep as rows_of
    from hushtune.simulations.sweep.show import SweepView, show_foresight, show_rows
    from hushtune.simulations.sweep.workers import num_cores

    if dry_run or out is None:
        with console.status("checking all points") as status:
            points, notes = points_of(found)
            told = foresee(
                points, told=lambda i, n: status.update(f"timing {i} of {n} kinds of work")
            )
        at_once = min(jobs or num_cores(), len(points))
        minutes = total_minutes(told, jobs=at_once)
        for note in notes:
            console.print(f"note: {note}", markup=False, highlight=False)
        show_foresight(console, told, minutes=minutes, jobs=at_once)
        print_json({"points": told, "minutes": minutes, "notes": notes}, as_json)
        return
    with SweepView(console) as view:
        try:
            rows = list(
                rows_of(
                    found,
                    out=out,
                    jobs=jobs,
                    engine=engine,
                    address=address,
                    retry=retry,
                    observer=view,
                )
            )
        except KeyboardInterrupt:
            raise InterruptedRunError(
                "interrupted", remedy="the same command goes on with the points that are left"
            ) from None
    show_rows(console, rows, str(out))
    failed = sum(row["status"] == "failed" for row in rows)
    print_json({"points": len(rows), "failed": failed, "out": str(out)}, as_json)
    if failed:
        raise typer.Exit(FAILED)
