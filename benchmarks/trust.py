"""Whom one has to trust and what it costs: `site`, `distributed` and pooled at equal epsilon.

    python benchmarks/trust.py [--data demo newsgroups] [--epsilons 1 3 8] [--seeds 5]
        [--out runs/trust] [--readme README.md]

Accuracy on all sites' held-out rows, of a head on frozen features: 60 steps at a sampling rate of
0.13, as in the demo. 20 Newsgroups is dealt to six sites (Dirichlet 0.5 over the labels). What is
pooled takes the same steps in one round, so that its optimiser, too, keeps its memory. Each result
is a line of ``results.jsonl``; what is there is not run again. With ``--readme`` the table replaces
what stands between its two markers there.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markers import put_between
from newsgroups import newsgroups

from hushtune.common.config import RunConfig
from hushtune.common.config_io import load_config
from hushtune.common.files import write_text
from hushtune.common.planning import POOLED, pooled
from hushtune.common.presets import PRESETS
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.common.version import source_commit
from hushtune.simulations.baselines import site_metrics
from hushtune.simulations.study import run_federation

BEGIN, END = "<!-- trust:begin -->", "<!-- trust:end -->"
DATA = {"demo": "rated sentences, 4 sites", "newsgroups": "20 Newsgroups, 6 sites"}
WAYS = {
    "site": "`site`: noise at each site",
    "distributed": "`distributed`: noise shares in a secure sum",
    "pooled": "pooled: all rows at one trusted place",
}


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--part", default="test", choices=("test", "validation"))
    parser.add_argument("--out", type=Path, default=Path("runs/trust"))
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    results = options.out / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    for data in options.data:
        for seed in range(options.seeds):
            for epsilon in options.epsilons:
                for way in WAYS:
                    key = {"data": data, "seed": seed, "epsilon": epsilon, "way": way}
                    if not any(key.items() <= row.items() for row in done):
                        done.append(measured(key, options))
                        results.parent.mkdir(parents=True, exist_ok=True)
                        write_text(results, "".join(json.dumps(row) + "\n" for row in done))
    table = as_markdown(done, options.epsilons)
    print(table)
    if options.readme is not None:
        put_between(options.readme, BEGIN, END, table)


def configured(key: Mapping[str, Any], options: argparse.Namespace) -> RunConfig:
    """The settings of one run."""
    own = [f"seed={key['seed']}", f"privacy.epsilon={key['epsilon']}", "simulation.baselines=false"]
    own += [f"simulation.evaluate_every={10**6}"]
    if key["way"] == "distributed":
        own.append("privacy.trust=distributed")
    if key["data"] == "newsgroups":
        own += [
            f"data.file={newsgroups(options.out)}",
            "data.partition=dirichlet",
            "data.sites=6",
            "data.validation_fraction=0.05",
            "data.test_fraction=0.35",
        ]
    own += ["train.rounds=20", "train.local_steps=3", "train.warmup_rounds=20"]
    if key["way"] == "pooled":
        own += ["train.rounds=1", "train.local_steps=60", "train.warmup_rounds=1"]
    preset = "demo" if key["data"] == "demo" else None
    return resolve(load_config(preset=preset, presets=PRESETS, overrides=[*own, *options.set]))


def measured(key: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One run, and its accuracy on all sites' rows."""
    config = configured(key, options)
    workspace = open_workspace(config)
    workspace.warm()
    run = pooled(config) if key["way"] == "pooled" else config
    began, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        result = run_federation(RunContext(run, Path(folder)), workspace)
    seconds = time.perf_counter() - began
    found = {
        **key,
        "accuracy": site_metrics(workspace, config, result.state, options.part)[POOLED]["accuracy"],
        "epsilon_spent": max(value for value in result.history[-1]["epsilon"].values()),
        "seconds": round(seconds, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "exchanges": sum(row["exchanges"] for row in result.history),
        "bytes_up": sum(row["bytes_up"] for row in result.history),
        "source_commit": source_commit(),
    }
    print(json.dumps(found), flush=True)
    return found


def as_markdown(rows: Sequence[Mapping[str, Any]], epsilons: Sequence[float]) -> str:
    """A row for each data set and way: mean and standard deviation over the seeds."""
    lines = [
        "| accuracy, all test rows | " + " | ".join(f"epsilon {e:g}" for e in epsilons) + " |",
        "|---|" + "---|" * len(epsilons),
    ]
    for data, name in DATA.items():
        for way, label in WAYS.items():
            cells: list[str] = []
            for epsilon in epsilons:
                found = [
                    row["accuracy"]
                    for row in rows
                    if (row["data"], row["way"], row["epsilon"]) == (data, way, epsilon)
                ]
                spread = statistics.stdev(found) if len(found) > 1 else 0.0
                cells.append(f"{statistics.mean(found):.3f} ± {spread:.3f}" if found else "-")
            lines.append(f"| {name}; {label} | " + " | ".join(cells) + " |")
    commits = sorted({str(row["source_commit"]) for row in rows})
    return "\n".join([*lines, "", f"Source commit of these runs: {'; '.join(commits)}."])


if __name__ == "__main__":
    main()
