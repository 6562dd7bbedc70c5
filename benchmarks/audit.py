"""Claimed against audited epsilon: lower bounds at several epsilons, and with each planted fault.

    python benchmarks/audit.py [--epsilons 0.5 1 3 8] [--canaries 3072] [--seed 0]
        [--out runs/audit] [--doc docs/laboratory.md]

Of ``--preset tiny`` with as many rounds as the demo has and its delta. A result is a line of
``results.jsonl``; what is there is not run again. With ``--doc`` the table replaces what stands
between its two markers there.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from markers import put_between

from hushtune.common.config_io import load_config
from hushtune.common.files import write_text
from hushtune.common.presets import PRESETS
from hushtune.common.version import source_commit
from hushtune.simulations.audit.assess import ONE_RUN, ONE_RUN_F
from hushtune.simulations.audit.report import audit
from hushtune.simulations.audit.wrap import Plant

BEGIN, END = "<!-- audit:begin -->", "<!-- audit:end -->"
RECIPE = ("train.rounds=20", "train.warmup_rounds=20", "privacy.delta=1e-5")
OF_FAULTS = 3.0


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--epsilons", nargs="+", type=float, default=[0.5, 1.0, 3.0, 8.0])
    parser.add_argument("--canaries", type=int, default=3072)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, default=Path("runs/audit"))
    parser.add_argument("--doc", type=Path)
    options = parser.parse_args()
    results = options.out / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    keys: list[dict[str, Any]] = [{"epsilon": e, "plant": None} for e in options.epsilons]
    keys += [{"epsilon": OF_FAULTS, "plant": plant.value} for plant in Plant]
    for key in keys:
        whole = {**key, "asked": options.canaries, "seed": options.seed}
        if not any(whole.items() <= row.items() for row in done):
            done.append(measured(whole))
            results.parent.mkdir(parents=True, exist_ok=True)
            write_text(results, "".join(json.dumps(row) + "\n" for row in done))
    table = as_markdown([row for row in done if row["asked"] == options.canaries])
    print(table)
    if options.doc is not None:
        put_between(options.doc, BEGIN, END, table)


def measured(key: Mapping[str, Any]) -> dict[str, Any]:
    """One audit, without membership inference."""
    own = (*RECIPE, f"privacy.epsilon={key['epsilon']}")
    config = load_config(preset="tiny", presets=PRESETS, overrides=list(own))
    plant = None if key["plant"] is None else Plant(key["plant"])
    report = audit(config, canaries=key["asked"], shadows=0, seed=key["seed"], plant=plant).report
    found = {**report, **key, "source_commit": source_commit()}
    print(json.dumps({name: found[name] for name in ("epsilon", "plant", "lower_bound")}))
    return found


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each run: gradient canaries by method, seen in each step, then other ways."""
    lines = [
        "| run | claimed | by rates | of its kind | one run | one run, curve | from each round "
        "| mislabelled rows | refuted |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        name = "sound" if row["plant"] is None else f"planted: {row['plant']}"
        step = {
            one["method"]: one["lower_bound"]
            for one in row["rows"]
            if (one["canary"], one["observer"]) == (row["canary"], row["observer"])
        }
        sent = max(
            one["lower_bound"]
            for one in row["rows"]
            if (one["canary"], one["observer"]) == ("gradient", "each round")
        )
        natural = max(one["lower_bound"] for one in row["rows"] if one["canary"] == "mislabelled")
        figures = (
            *(row["claimed"], row["lower_bound"], row["in_family"]),
            *(step[ONE_RUN], step[ONE_RUN_F], sent, natural),
        )
        cells = " | ".join(f"{figure:.2f}" for figure in figures)
        lines.append(f"| {name} | {cells} | {'yes' if row['refuted'] else 'no'} |")
    commits = sorted({str(row["source_commit"]) for row in rows})
    first = rows[0]
    natural = max(one["canaries"] for one in first["rows"] if one["canary"] == "mislabelled")
    return "\n".join(
        [
            *lines,
            "",
            f"{first['canaries']} gradient canaries and {natural} mislabelled rows, "
            f"{first['sites']} sites, {first['steps']} steps, delta {first['delta']:g}, "
            "confidence 95%.",
            f"Source commit{'s' * (len(commits) > 1)} of these runs: {', '.join(commits)}.",
        ]
    )


if __name__ == "__main__":
    main()
