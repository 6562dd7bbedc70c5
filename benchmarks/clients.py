"""Privacy of whole clients at a trusted server: accuracy by epsilon, over many small clients.

    python benchmarks/clients.py [--clients 240] [--deal even skewed] [--epsilons 1 3 8] [--seeds 3]
        [--out runs/clients] [--doc docs/clients.md]

The demo's rows are dealt to that many clients, evenly or with labels and sizes that differ between
them, and a head is trained on frozen features. Each way asks the clients for equally many updates
in all. A result is a line of ``results.jsonl``; what is there is not run again. With ``--doc`` the
table replaces what stands between its two markers there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markers import put_between

from hushtune.common.config_io import load_config
from hushtune.common.files import write_text
from hushtune.common.planning import POOLED
from hushtune.common.presets import PRESETS
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.common.version import source_commit
from hushtune.simulations.baselines import site_metrics
from hushtune.simulations.study import run_federation

# A smaller alpha leaves clients with fewer than ten rows, of which there are 80 a client.
DEALS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "even": ("dealt evenly", ()),
    "skewed": ("Dirichlet 1.5", ("data.partition=dirichlet", "data.alpha=1.5")),
}
BEGIN, END = "<!-- clients:begin -->", "<!-- clients:end -->"
# As far in all as the others go in a quarter of the rounds.
LONG = ("train.rounds=20", "train.warmup_rounds=20", "aggregation.learning_rate=0.25")
WAYS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "all": ("every client in each of 5 rounds", ()),
    "adaptive": ("the same, with adaptive clipping", ("privacy.adaptive_clipping=true",)),
    "drawn": (
        "a quarter drawn in secret for each of 20 rounds",
        (*LONG, "privacy.client_sampling_probability=0.25"),
    ),
    "turns": (
        "in turn, once in 4 of 20 rounds, correlated noise",
        (*LONG, "privacy.client_turns=4"),
    ),
}


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=240)
    parser.add_argument("--deal", nargs="+", choices=DEALS, default=list(DEALS))
    parser.add_argument("--epsilons", nargs="+", type=float, default=[1.0, 3.0, 8.0])
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--part", default="test", choices=("test", "validation"))
    parser.add_argument("--out", type=Path, default=Path("runs/clients"))
    parser.add_argument("--doc", type=Path)
    options = parser.parse_args()
    results = options.out / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    keys: list[dict[str, Any]] = [{"way": "all", "epsilon": None}]
    keys += [{"way": way, "epsilon": e} for way in WAYS for e in options.epsilons]
    for seed, deal, key in itertools.product(range(options.seeds), options.deal, keys):
        whole = {**key, "seed": seed, "deal": deal, "clients": options.clients}
        if not any(whole.items() <= row.items() for row in done):
            done.append(measured(whole, options))
            results.parent.mkdir(parents=True, exist_ok=True)
            write_text(results, "".join(json.dumps(row) + "\n" for row in done))
    asked = (None, *options.epsilons)
    table = as_markdown(
        [row for row in done if row["clients"] == options.clients and row["epsilon"] in asked]
    )
    print(table)
    if options.doc is not None:
        put_between(options.doc, BEGIN, END, table)


def measured(key: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One run, and its accuracy on all clients' rows."""
    own = [f"seed={key['seed']}", f"data.sites={key['clients']}"]
    own += [*DEALS[key["deal"]][1], *WAYS[key["way"]][1]]
    own.append(
        "privacy.trust=off" if key["epsilon"] is None else f"privacy.epsilon={key['epsilon']}"
    )
    own += ["simulation.baselines=false", f"simulation.evaluate_every={10**6}", *options.set]
    config = resolve(load_config(preset="clients", presets=PRESETS, overrides=own))
    workspace = open_workspace(config)
    workspace.warm()
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        result = run_federation(RunContext(config, Path(folder)), workspace)
    figures = site_metrics(workspace, config, result.state, options.part)
    found = {
        **key,
        "accuracy": figures[POOLED]["accuracy"],
        "epsilon_spent": next(iter(result.history[-1]["epsilon"].values())),
        "seconds": round(time.perf_counter() - began, 1),
        "source_commit": source_commit(),
    }
    print(json.dumps(found), flush=True)
    return found


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each way: mean, standard deviation and number of seeds, of each dealing."""
    epsilons = sorted({row["epsilon"] for row in rows if row["epsilon"] is not None})
    columns = [
        (deal, epsilon)
        for deal in DEALS
        for epsilon in (*epsilons, None)
        if any((row["deal"], row["epsilon"]) == (deal, epsilon) for row in rows)
    ]
    names = [
        f"{DEALS[deal][0]}, " + ("no privacy" if epsilon is None else f"epsilon {epsilon:g}")
        for deal, epsilon in columns
    ]
    lines = ["| accuracy | " + " | ".join(names) + " |", "|---|" + "---|" * len(columns)]
    for way, (label, _) in WAYS.items():
        found = [
            [row["accuracy"] for row in rows if (row["way"], row["deal"], row["epsilon"]) == key]
            for key in ((way, deal, epsilon) for deal, epsilon in columns)
        ]
        lines.append(f"| {label} | " + " | ".join(map(_cell, found)) + " |")
    commits = sorted({str(row["source_commit"]) for row in rows})
    return "\n".join(
        [
            *lines,
            "",
            "Mean ± standard deviation (number of seeds).",
            f"Source commit{'s' * (len(commits) > 1)} of these runs: {', '.join(commits)}.",
        ]
    )


def _cell(found: Sequence[float]) -> str:
    if not found:
        return ""
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread} ({len(found)})"


if __name__ == "__main__":
    main()
