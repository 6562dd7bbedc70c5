"""The demo under several seeds: mean and spread of every line of its table.

    python benchmarks/five_seeds.py [--seeds 5] [--out runs/seeds] [--readme README.md]

Runs that are finished are not run again. With ``--readme`` the table replaces what stands between
the two markers there.
"""

from __future__ import annotations

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from hushtune.common.config_io import load_config
from hushtune.common.files import write_text
from hushtune.common.names import METHODS
from hushtune.common.presets import PRESETS
from hushtune.simulations import run

BEGIN, END = "<!-- five-seeds:begin -->", "<!-- five-seeds:end -->"


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--out", type=Path, default=Path("runs/seeds"))
    parser.add_argument("--readme", type=Path)
    options = parser.parse_args()
    summaries = [_summary(options.out / f"seed-{seed}", seed) for seed in range(options.seeds)]
    table = as_markdown(summaries)
    print(table)
    if options.readme is not None:
        text = options.readme.read_text(encoding="utf-8")
        head, _, rest = text.partition(BEGIN)
        _, _, tail = rest.partition(END)
        write_text(options.readme, f"{head}{BEGIN}\n{table}\n{END}{tail}")


def _summary(out: Path, seed: int) -> dict[str, Any]:
    done = out / "summary.json"
    if done.is_file():
        return json.loads(done.read_text(encoding="utf-8"))
    config = load_config(preset="demo", presets=PRESETS, overrides=[f"seed={seed}"])
    print(f"seed {seed} ...", flush=True)
    return run(config, out, resume=(out / "config.toml").is_file())


def as_markdown(summaries: list[dict[str, Any]]) -> str:
    """A row a model: accuracy under each seed, their mean and standard deviation."""
    seeds = [str(summary["seed"]) for summary in summaries]
    lines = [
        f"| accuracy, all test rows | {' | '.join(f'seed {s}' for s in seeds)} | mean | sd |",
        "|---|" + "---|" * (len(seeds) + 2),
    ]
    for name, label in METHODS.items():
        values = [
            summary["value"] if name == "federated" else summary["baselines"][name]
            for summary in summaries
        ]
        spread = statistics.stdev(values) if len(values) > 1 else 0.0
        cells = " | ".join(f"{value:.3f}" for value in values)
        text = f"**{label}**" if name == "federated" else label
        lines.append(f"| {text} | {cells} | {statistics.mean(values):.3f} | {spread:.3f} |")
    epsilons = {
        f"{site['epsilon']:.3f}" for summary in summaries for site in summary["sites"].values()
    }
    lines.append("")
    lines.append(f"Epsilon at every site: at most {max(epsilons)}, delta 1e-5.")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
