"""Each kind of supervision: private and not, in one process and on Flower's own simulation.

    python benchmarks/tasks.py [--presets text-pair ...] [--engines inprocess flower]
        [--out runs/tasks] [--readme README.md]

Each run is that of ``hushtune simulate --preset NAME``, with ``--set privacy.trust=off`` where it
is not private and ``--set simulation.engine=flower`` on Flower; comparisons are made once a preset.
The figure is that of the preset's own metric on all sites' test rows. Runs that are finished are
not run again; one of other settings is refused, with exit status 1. With ``--readme`` the table
replaces what stands between the two markers there.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from five_seeds import finished
from markers import put_between

from hushtune.common.config_io import load_config
from hushtune.common.presets import PRESETS
from hushtune.common.privacy.figures import upwards

BEGIN, END = "<!-- tasks:begin -->", "<!-- tasks:end -->"
TASKS = (
    *("text-classification", "text-regression", "text-pair", "token-classification"),
    *("causal-lm", "seq2seq", "image-classification", "tabular-classification"),
    *("tabular-regression", "recommendation"),
)
TRUST = {"private": [], "off": ["privacy.trust=off"]}
ENGINES = {"inprocess": "in-process", "flower": "Flower simulation"}
BOTH, PRIVATE, NOT = (True, False), (True,), (False,)
BASELINES = {
    "majority": ("constant", BOTH),
    "untrained": ("untrained", BOTH),
    "alone_private": ("each site alone", PRIVATE),
    "head_private": ("head alone", PRIVATE),
    "head_best": ("head on best layer", PRIVATE),
    "pooled_private": ("pooled, private", PRIVATE),
    "pooled": ("pooled, not private", NOT),
    "columns_private": ("network on columns", PRIVATE),
    "columns": ("network on columns, pooled", NOT),
}
"""What each comparison is called, and in which rows it is: it holds with privacy or without."""
LOWER = "lower is better"


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--presets", nargs="+", choices=TASKS, default=list(TASKS))
    parser.add_argument("--engines", nargs="+", choices=ENGINES, default=list(ENGINES))
    parser.add_argument("--out", type=Path, default=Path("runs/tasks"))
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    whole = {*options.presets} == {*TASKS} and {*options.engines} == {*ENGINES}
    if options.readme is not None and not whole:
        parser.error("--readme takes the table of all presets and engines: leave those options out")
    done = {
        preset: {
            (trust, engine): finished(
                options.out / f"{preset}-{trust}-{engine}",
                load_config(preset=preset, presets=PRESETS, overrides=settings(trust, engine)),
            )
            for engine in options.engines
            for trust in TRUST
        }
        for preset in options.presets
    }
    table = as_markdown(done)
    print(table)
    if options.readme is not None:
        put_between(options.readme, BEGIN, END, table)


def settings(trust: str, engine: str) -> list[str]:
    """What is changed of a preset; the comparisons are made once, in its private run."""
    first = (trust, engine) == ("private", "inprocess")
    return [
        *TRUST[trust],
        f"simulation.engine={engine}",
        *([] if first else ["simulation.baselines=false"]),
    ]


Runs = Mapping[tuple[str, str], Mapping[str, Any]]
"""The summaries of one preset by privacy and engine."""


def as_markdown(done: Mapping[str, Runs]) -> str:
    """Two rows a preset, private and not, and the comparisons of both; below them the largest
    epsilon of any site, and the code that made the runs."""
    columns = ["preset", "figure", "privacy", *ENGINES.values()]
    columns += [label for label, _ in BASELINES.values()]
    lines = [f"| {' | '.join(columns)} |", "|---" * len(columns) + "|"]
    for preset, runs in done.items():
        compared = next(iter(runs.values()))
        metric = compared["metric"].replace("_", " ")
        if not compared["higher_is_better"]:
            metric += f", {LOWER}"
        epsilon = upwards(max(row["epsilon"] for row in compared["sites"].values()), places=2)
        for trust in TRUST:
            ours = [figure(runs.get((trust, engine), {}).get("value")) for engine in ENGINES]
            private = trust == "private"
            baselines = [
                figure(compared["baselines"].get(name)) if private in shown else ""
                for name, (_, shown) in BASELINES.items()
            ]
            first = [f"`{preset}`", metric, f"epsilon {epsilon}"] if private else ["", "", "none"]
            lines.append(f"| {' | '.join([*first, *ours, *baselines])} |")
    summaries = [run for runs in done.values() for run in runs.values()]
    commits = sorted({run["source_commit"] or "unknown" for run in summaries})
    return "\n".join([*lines, "", f"Source commit of these runs: {'; '.join(commits)}."])


def figure(value: float | None) -> str:
    """A figure as the table shows it, with three digits at least; a dash where there is none."""
    if value is None:
        return "-"
    return f"{value:.3f}" if abs(value) < 100 else f"{value:.0f}"


if __name__ == "__main__":
    main()
