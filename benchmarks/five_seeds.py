"""The demo under several seeds: mean and spread of every line of its table.

    python benchmarks/five_seeds.py [--seeds 5] [--out runs/seeds] [--readme README.md]

Runs that are finished are not run again; one of other settings is refused, with exit status 1. With
``--readme`` the table replaces what stands between the two markers there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from markers import put_between

from hushtune.common.config import RunConfig
from hushtune.common.config_io import config_hash, load_config
from hushtune.common.names import METHODS
from hushtune.common.presets import PRESETS
from hushtune.common.privacy.figures import at_most, upwards
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations import run

BEGIN, END = "<!-- five-seeds:begin -->", "<!-- five-seeds:end -->"


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    summaries = [
        finished(
            options.out / f"seed-{seed}",
            load_config(preset="demo", presets=PRESETS, overrides=[f"seed={seed}"]),
        )
        for seed in range(options.seeds)
    ]
    table = as_markdown(summaries)
    print(table)
    if options.readme is not None:
        put_between(options.readme, BEGIN, END, table)


def finished(out: Path, config: RunConfig) -> dict[str, Any]:
    """The summary of the run in ``out``, and under ``source_commit`` which code made it.

    Runs what is not finished. SystemExit, with status 1, for a finished run of other settings.
    """
    done = out / "summary.json"
    if done.is_file():
        summary = json.loads(done.read_text(encoding="utf-8"))
        found, wanted = summary.get("config_hash"), config_hash(resolve(config))
        if found != wanted:
            raise SystemExit(
                f"{done} is of a run with other settings than today's\n"
                f"  given: config_hash {found}\n  expected: {wanted}\n"
                "  do: move that folder away, or name another with --out"
            )
    else:
        print(f"seed {config.seed} ...", flush=True)
        summary = run(config, out, resume=(out / "config.toml").is_file())
    privacy = json.loads((out / "privacy.json").read_text(encoding="utf-8"))
    return {**summary, "source_commit": privacy.get("source_commit")}


ROWS = {name: label for name, label in METHODS.items() if name not in ("personal", "head_best")}
"""The demo has no models of the sites' own; heads by layer are in each run's own table."""


def as_markdown(summaries: list[dict[str, Any]]) -> str:
    """A row a model: accuracy under each seed, their mean and standard deviation; below it the
    largest epsilon and delta of any site, and the code that made the runs."""
    seeds = [str(summary["seed"]) for summary in summaries]
    lines = [
        f"| accuracy, all test rows | {' | '.join(f'seed {s}' for s in seeds)} | mean | sd |",
        "|---|" + "---|" * (len(seeds) + 2),
    ]
    for name, label in ROWS.items():
        values = [
            summary["value"] if name == "federated" else summary["baselines"][name]
            for summary in summaries
        ]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = " | ".join(f"{value:.3f}" for value in values)
        text = f"**{label}**" if name == "federated" else label
        lines.append(f"| {text} | {cells} | {statistics.mean(values):.3f} | {spread:.3f} |")
    sites = [site for summary in summaries for site in summary["sites"].values()]
    epsilon = upwards(max(site["epsilon"] for site in sites), places=3)
    delta = at_most(max(site["delta"] for site in sites))
    commits = sorted({summary["source_commit"] or "unknown" for summary in summaries})
    lines += [
        "",
        f"Epsilon at every site: at most {epsilon}, delta {delta}.",
        f"Source commit of these runs: {'; '.join(commits)}.",
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
