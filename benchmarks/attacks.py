"""What attackers do to a federation, by estimate: accuracy under each attack.

    python benchmarks/attacks.py [--estimates mean median] [--attacks label_flip sign_flip]
        [--shares 0.1 0.2 0.3 0.4] [--deal iid dirichlet] [--epsilons off 8] [--seeds 3]
        [--phases head adapter] [--out runs/attacks] [--doc docs/aggregation.md]

The demo's rows are dealt to ten sites of about the same size, IID or by label (Dirichlet 0.5), and
a head is trained on frozen features, by some of them attackers; with ``--phases adapter`` a round
of the adapter follows. ``off`` is without privacy, a number is the epsilon of every site under
trust = site. Accuracy is on all sites' held-out rows, the attackers' among them. Each result is a
line of ``results.jsonl``; what is there is not run again. With ``--doc`` the tables replace what
stands between its two markers there.
"""

from __future__ import annotations

import argparse
import itertools
import json
import logging
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from markers import put_between

from hushtune.common.config import RunConfig
from hushtune.common.config_io import load_config
from hushtune.common.errors import HushtuneError
from hushtune.common.files import write_text
from hushtune.common.planning import POOLED, not_private
from hushtune.common.presets import PRESETS
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.common.version import source_commit
from hushtune.simulations.attacks import attackers
from hushtune.simulations.baselines import site_metrics
from hushtune.simulations.study import run_federation

BEGIN, END = "<!-- attacks:begin -->", "<!-- attacks:end -->"
ATTACKS = ("label_flip", "sign_flip", "scale", "collude", "nan")
ESTIMATES = (
    *("mean", "median", "trimmed_mean", "krum", "multi_krum", "bulyan", "norm_clipping"),
    "geometric_median",
)
SITES = 10
DEALS: Mapping[str, tuple[str, tuple[str, ...]]] = {
    "iid": ("rows dealt at random", ("data.partition=iid",)),
    "dirichlet": (
        "rows dealt by label, Dirichlet 0.5",
        ("data.partition=dirichlet", "data.alpha=0.5"),
    ),
}
PHASES: Mapping[str, tuple[str, tuple[str, ...]]] = {
    # Rows are few numbers there: many at once are quicker, and give the same.
    "head": (
        "head only",
        ("train.rounds=10", "train.warmup_rounds=10", "train.microbatch=256"),
    ),
    "adapter": ("head and one round of LoRA", ("train.rounds=11", "train.warmup_rounds=10")),
}
OFF = "off"


def main() -> None:
    """Run what is not there yet and print the tables."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--estimates", nargs="+", choices=ESTIMATES, default=list(ESTIMATES))
    parser.add_argument("--attacks", nargs="+", choices=ATTACKS, default=list(ATTACKS))
    parser.add_argument("--shares", nargs="+", type=float, default=[0.1, 0.2, 0.3, 0.4])
    parser.add_argument("--scale", type=float, default=10.0, help="simulation.attack_scale")
    parser.add_argument("--deal", nargs="+", choices=DEALS, default=["iid"])
    parser.add_argument("--phases", nargs="+", choices=PHASES, default=["head"])
    parser.add_argument("--epsilons", nargs="+", default=[OFF], help="off, or numbers")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--part", default="test", choices=("test", "validation"))
    parser.add_argument("--out", type=Path, default=Path("runs/attacks"))
    parser.add_argument("--doc", type=Path)
    options = parser.parse_args()
    logging.getLogger("hushtune").setLevel(logging.ERROR)  # who is rejected is in the results
    results = options.out / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    asked = list(keys(options))
    for key in asked:
        if not any(key.items() <= row.items() for row in done):
            done.append(measured(key, options))
            results.parent.mkdir(parents=True, exist_ok=True)
            write_text(results, "".join(json.dumps(row) + "\n" for row in done))
    tables = as_markdown([row for row in done if any(k.items() <= row.items() for k in asked)])
    print(tables)
    if options.doc is not None:
        put_between(options.doc, BEGIN, END, tables)


def keys(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """What is to be run; runs that share data and model follow one another, which loads them once.

    An honest run has neither share nor scale, and an attack that multiplies nothing no scale.
    """
    for seed, deal, epsilon, phase in itertools.product(
        range(options.seeds), options.deal, options.epsilons, options.phases
    ):
        base = {
            "seed": seed,
            "deal": deal,
            "epsilon": None if epsilon == OFF else float(epsilon),
            "phase": phase,
            "settings": list(options.set),
            "part": options.part,
        }
        for estimate in options.estimates:
            yield {**base, "estimate": estimate, "attack": "none", "share": None, "scale": None}
            for attack, share in itertools.product(options.attacks, options.shares):
                scale = None if attack in ("label_flip", "nan") else options.scale
                yield {**base, "estimate": estimate, "attack": attack, "share": share,
                       "scale": scale}  # fmt: skip


def configured(key: Mapping[str, Any]) -> RunConfig:
    """The settings of one run."""
    own = [f"seed={key['seed']}", f"data.sites={SITES}", *DEALS[key["deal"]][1]]
    own += [*PHASES[key["phase"]][1], "simulation.baselines=false"]
    own += [f"simulation.evaluate_every={10**6}", f"simulation.attack={key['attack']}"]
    if key["share"] is not None:
        own.append(f"simulation.attackers={key['share']}")
    if key["scale"] is not None:
        own.append(f"simulation.attack_scale={key['scale']}")
    if key["estimate"] != "mean":
        own.append(f"aggregation.estimate={key['estimate']}")
    if key["epsilon"] is not None:
        own.append(f"privacy.epsilon={key['epsilon']}")
    config = load_config(preset="demo", presets=PRESETS, overrides=[*own, *key["settings"]])
    return resolve(config if key["epsilon"] is not None else not_private(config))


def measured(key: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One run, and its accuracy on all sites' rows; None, with the reason, where it is refused."""
    began, found = time.perf_counter(), dict[str, Any]()
    try:
        config = configured(key)
        workspace = open_workspace(config)
        workspace.warm()
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            result = run_federation(RunContext(config, Path(folder)), workspace)
        figures = site_metrics(workspace, config, result.state, options.part)
        found |= {
            "accuracy": figures[POOLED]["accuracy"],
            "attackers": len(attackers(config)),
            "rejected": sum(len(row["rejected"]) for row in result.history),
        }
    except HushtuneError as error:  # such as an estimate that too few sites are left for
        found |= {"accuracy": None, "reason": f"{error.code} {error.message}"}
    row = {
        **key,
        **found,
        "seconds": round(time.perf_counter() - began, 1),
        "source_commit": source_commit(),
    }
    print(json.dumps(row), flush=True)
    return row


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A table for each way to deal, phase, epsilon and share: estimates by attacks.

    Mean over the seeds, and its standard deviation in brackets.
    """
    tables: list[str] = []
    columns = [a for a in ATTACKS if any(row["attack"] == a for row in rows)]
    estimates = [e for e in ESTIMATES if any(row["estimate"] == e for row in rows)]
    shares = sorted({row["share"] for row in rows if row["share"] is not None})
    settings = sorted(
        {(row["deal"], row["phase"], row["epsilon"]) for row in rows},
        key=lambda found: (found[0] != "iid", found[1] != "head", found[2] or 0),
    )
    for (deal, phase, epsilon), share in itertools.product(settings, shares):
        mine = [
            row
            for row in rows
            if (row["deal"], row["phase"], row["epsilon"]) == (deal, phase, epsilon)
            and row["share"] in (share, None)
        ]
        many = max((row.get("attackers", 0) for row in mine), default=0)
        privacy = "no privacy" if epsilon is None else f"epsilon {epsilon:g} at every site"
        title = f"{many} of {SITES} attack; {DEALS[deal][0]}; {PHASES[phase][0]}; {privacy}"
        lines = [
            f"| {title} | no attack | " + " | ".join(f"`{name}`" for name in columns) + " |",
            "|---|---|" + "---|" * len(columns),
        ]
        for estimate in estimates:
            cells = [cell(mine, estimate, attack) for attack in ("none", *columns)]
            lines.append(f"| `{estimate}` | " + " | ".join(cells) + " |")
        tables.append("\n".join(lines))
    seeds = len({row["seed"] for row in rows})
    scales = sorted({row["scale"] for row in rows if row["scale"] is not None})
    commits = sorted({str(row["source_commit"]) for row in rows})
    notes = [f"Accuracy on all test rows, {seeds} seed{'' if seeds == 1 else 's'}"]
    notes += [f"`simulation.attack_scale` {', '.join(f'{s:g}' for s in scales)}"] if scales else []
    said = "; ".join(notes)
    return "\n\n".join([*tables, f"{said}. Source commit of these runs: {'; '.join(commits)}."])


def cell(rows: Sequence[Mapping[str, Any]], estimate: str, attack: str) -> str:
    """Of one estimate under one attack; a dash where no run could be had."""
    found = [
        row["accuracy"]
        for row in rows
        if (row["estimate"], row["attack"]) == (estimate, attack) and row["accuracy"] is not None
    ]
    if not found:
        return "-"
    spread = f" ({statistics.stdev(found):.3f})" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread}"


if __name__ == "__main__":
    main()
