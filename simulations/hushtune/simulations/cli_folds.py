"""`hushtune simulate --folds`: runs all folds, and shows them in one table."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError
from hushtune.common.names import METHODS, SEEN_BY, metric_words
from hushtune.common.privacy.figures import upwards
from hushtune.simulations.show_progress import ProgressView


def simulate_folds(
    console: Console,
    config: RunConfig,
    out: Path | None,
    how: str,
    *,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
) -> dict[str, Any]:
    """Run the folds and show what came of them; returns what ``folds.json`` holds."""
    from hushtune.simulations.cross_validation import run_folds

    if dry_run or out is None:
        raise ConfigError(
            "a dry run is of one run",
            given=f"--dry-run --folds {how}",
            expected="--dry-run without --folds: each fold is such a run",
        )
    with ProgressView.of_run(console, config) as view:
        told = run_folds(config, out, how, resume=resume, overwrite=overwrite, observer=view)
    show_folds(console, told)
    return told


def show_folds(console: Console, told: Mapping[str, Any]) -> None:
    """A row a model with its mean and spread over folds, the folds, and what they cost."""
    metric = metric_words(told["metric"])
    better = "" if told["higher_is_better"] else ", lower is better"
    title = f"{metric[0].upper()}{metric[1:]} over folds{better} ({SEEN_BY})"
    table = Table(title=title, title_justify="left")
    for column in ("model", "mean", "sd", "least", "largest"):
        table.add_column(column, justify="left" if column == "model" else "right")
    order = [name for name in METHODS if name in told["table"]]
    for name in order:
        row = told["table"][name]
        cells = [f"{row[key]:.3f}" for key in ("mean", "sd", "least", "largest")]
        style = "bold green" if name == "federated" else None
        table.add_row(METHODS[name], *cells, style=style)
    console.print(table)
    folds = Table(title="Folds", title_justify="left")
    for column in ("fold", metric, "tested on", "largest epsilon"):
        folds.add_column(column, justify="left" if column == "fold" else "right")
    for name, row in told["folds"].items():
        known = list(row["epsilon"].values())
        most = "none" if None in known else upwards(max(known), places=3)
        figures = (f"{row['value']:.3f}", str(row["test_rows"]), most)
        folds.add_row(name.replace("[", "\\["), *figures)
    console.print(folds)
    console.print(told["privacy"], highlight=False, markup=False, soft_wrap=True)
    console.print(f"{'summary':>12}  {told['out']}/folds.json", highlight=False, soft_wrap=True)
