"""``hushtune track``: a run's figures in TensorBoard or MLflow."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console


def track(
    folders: Annotated[list[Path], typer.Argument(metavar="RUN...", help="folders of runs")],
    to: Annotated[
        list[str],
        typer.Option(
            "--to",
            metavar="WHERE",
            help="tensorboard:FOLDER, or mlflow:URI such as mlflow:sqlite:///mlflow.db; repeatable",
        ),
    ],
    follow: Annotated[
        bool, typer.Option("--follow", help="go on until the run is finished; of one run")
    ] = False,
) -> None:
    """Hand the figures of runs, finished or going on, to TensorBoard or MLflow."""
    from hushtune.common.errors import ConfigError
    from hushtune.simulations import trackers

    if follow and len(folders) > 1:
        raise ConfigError(
            "one run is followed at a time",
            given=f"{len(folders)} folders",
            expected="one, with --follow",
            remedy="leave --follow out, or follow each in a terminal of its own",
        )
    console = Console()
    for folder in folders:
        rounds = trackers.track(folder, to, follow=follow)
        console.print(f"{folder}: {rounds} rounds told", highlight=False, markup=False)
