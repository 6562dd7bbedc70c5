"""Every rule of aggregation on the same work, without privacy and at epsilon 3.

    python benchmarks/rules.py [--data demo newsgroups distributed server] [--rules ffa fedit ...]
        [--epsilons off 3] [--seeds 3] [--set KEY=VALUE ...] [--out runs/rules]
        [--doc docs/aggregation.md]

Accuracy on all sites' test rows after the demo's recipe: 18 rounds of a head on frozen features and
2 rounds of adapters (rank 4 on the value and output projections of the top block), 3 steps a round
at a sampling rate of 0.13. The demo's rows, at most 1,500 a site; 20 Newsgroups, at most 1,000 rows
of 64 tokens at each of six sites (Dirichlet 0.5 over the labels). With `off` the learning rates are
those for training without noise. `distributed` and `server` are the demo's rows under that trust
model, at epsilon 3 alone: at the four sites, and dealt to 240 clients (4 rounds of a head and 2 of
adapters, by the preset `clients`); rules that the trust model excludes are left out.

Each result is a line of ``results.jsonl``; what is there is not run again. With ``--doc`` the table
replaces what stands between its two markers there.
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
from newsgroups import newsgroups

from hushtune.common.config import RunConfig
from hushtune.common.config_io import load_config
from hushtune.common.errors import ConfigError
from hushtune.common.files import write_text
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import POOLED
from hushtune.common.presets import PRESETS
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.common.version import source_commit
from hushtune.simulations.own_models import global_metrics
from hushtune.simulations.study import run_federation

BEGIN, END = "<!-- rules:begin -->", "<!-- rules:end -->"
DATA = {
    "demo": "rated sentences, 4 sites",
    "newsgroups": "20 Newsgroups, 6 sites",
    "distributed": "rated sentences, 4 sites, `distributed`",
    "server": "rated sentences, 240 clients, `server`",
}
TRUST = ("distributed", "server")
HEAD = "head alone"
"""In place of a rule: the same steps, all of them of the head on frozen features."""
WORK = {
    "demo": ["data.max_rows_per_site=1500"],
    "newsgroups": [
        "data.partition=dirichlet",
        "data.sites=6",
        "data.max_rows_per_site=1000",
        "data.validation_fraction=0.05",
        "data.test_fraction=0.3",
        "model.max_tokens=64",
    ],
    "distributed": ["data.max_rows_per_site=1500", "privacy.trust=distributed"],
    "server": [],
}
RATES = {
    "off": ["privacy.trust=off", "train.warmup_learning_rate=0.003", "train.learning_rate=0.003"],
    "3": ["privacy.epsilon=3", "train.warmup_learning_rate=0.015", "train.learning_rate=0.01"],
}


def main() -> None:
    """Run what is not there yet and print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", nargs="+", choices=DATA, default=list(DATA))
    parser.add_argument("--rules", nargs="+", choices=[HEAD, *RULES], default=[HEAD, *RULES])
    parser.add_argument("--epsilons", nargs="+", choices=RATES, default=list(RATES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--set", nargs="*", default=[], metavar="KEY=VALUE")
    parser.add_argument("--out", type=Path, default=Path("runs/rules"))
    parser.add_argument("--doc", type=Path)
    options = parser.parse_args()
    results = options.out / "results.jsonl"
    done = (
        [json.loads(line) for line in results.read_text().splitlines()] if results.exists() else []
    )
    # Rules with another kind of adapter last: a process keeps one model and its features.
    rules = sorted(options.rules, key=lambda rule: rule in RULES and RULES[rule].inner)
    for seed, data, rule, epsilon in itertools.product(
        range(options.seeds), options.data, rules, options.epsilons
    ):
        key = {"data": data, "seed": seed, "epsilon": epsilon, "rule": rule}
        if not is_offered(key, options):
            continue
        if not any(key.items() <= row.items() for row in done):
            done.append(measured(key, options))
            results.parent.mkdir(parents=True, exist_ok=True)
            write_text(results, "".join(json.dumps(row) + "\n" for row in done))
    table = as_markdown(done)
    print(table)
    if options.doc is not None:
        put_between(options.doc, BEGIN, END, table)


def is_offered(key: Mapping[str, Any], options: argparse.Namespace) -> bool:
    """Whether the trust model allows the rule, at an epsilon that is asked for of it."""
    if key["data"] in TRUST and key["epsilon"] == "off":
        return False
    try:
        configured(key, options)
    except ConfigError:
        if key["data"] in TRUST:
            return False
        raise
    return True


def configured(key: Mapping[str, Any], options: argparse.Namespace) -> RunConfig:
    """The settings of one run."""
    alone, clients = key["rule"] == HEAD, key["data"] == "server"
    own = [f"seed={key['seed']}", "simulation.baselines=false"]
    own += [f"simulation.evaluate_every={10**6}"]
    rounds = 6 if clients else 20
    own += [f"train.rounds={rounds}", f"train.warmup_rounds={rounds if alone else rounds - 2}"]
    own += ["train.local_steps=3", *RATES[key["epsilon"]]] if not clients else []
    own += WORK[key["data"]]
    own += [f"aggregation.rule={'ffa' if alone else key['rule']}"]
    if key["data"] == "newsgroups":
        own.append(f"data.file={newsgroups(options.out)}")
    preset = {"newsgroups": None, "server": "clients"}.get(key["data"], "demo")
    return load_config(preset=preset, presets=PRESETS, overrides=[*own, *options.set])


def measured(key: Mapping[str, Any], options: argparse.Namespace) -> dict[str, Any]:
    """One run, and its accuracy on all sites' test rows."""
    config = resolve(configured(key, options))
    workspace = open_workspace(config)
    workspace.warm()
    began, processor = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        context = RunContext(config, Path(folder))
        result = run_federation(context, workspace)
        figures = global_metrics(context, workspace, result.state, "test", run=result.run)
    sites = {site: row["accuracy"] for site, row in figures.items() if site != POOLED}
    bias = [row["aggregation_bias"] for row in result.history if row.get("aggregation_bias")]
    found = {
        **key,
        "accuracy": figures[POOLED]["accuracy"],
        "worst_site": min(sites.values()),
        "bias": max(max(row.values()) for row in bias) if bias else None,
        "bytes_up": sum(row["bytes_up"] for row in result.history if row["phase"] == "adapter"),
        "bytes_down": sum(row["bytes_down"] for row in result.history if row["phase"] == "adapter"),
        "seconds": round(time.perf_counter() - began, 1),
        "cpu_seconds": round(time.process_time() - processor, 1),
        "source_commit": source_commit(),
    }
    print(json.dumps(found), flush=True)
    return found


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """A row for each rule: mean and standard deviation over the seeds, bias, bytes a round."""
    there = {(row["data"], row["epsilon"]) for row in rows}
    columns = [key for key in itertools.product(DATA, RATES) if key in there]
    names = [
        f"{DATA[data]}; " + ("no privacy" if epsilon == "off" else f"epsilon {epsilon}")
        for data, epsilon in columns
    ]
    lines = [
        "| rule | " + " | ".join(names) + " | largest bias | KB up a round | KB down a round |",
        "|---|" + "---|" * (len(names) + 3),
    ]
    for rule in (HEAD, *RULES):
        mine = [row for row in rows if row["rule"] == rule]
        if not mine:
            continue
        cells = [
            _cell([r["accuracy"] for r in mine if (r["data"], r["epsilon"]) == column])
            for column in columns
        ]
        bias = [row["bias"] for row in mine if row["bias"] is not None]
        cells.append(f"{max(bias):.2g}" if bias else "-")
        demo = [row for row in mine if row["data"] == "demo" and rule != HEAD]
        for way in ("bytes_up", "bytes_down"):
            sizes = [row[way] / 2 / 1000 for row in demo]
            cells.append(f"{statistics.mean(sizes):.0f}" if sizes else "-")
        lines.append(f"| {rule if rule == HEAD else f'`{rule}`'} | " + " | ".join(cells) + " |")
    commits = sorted({str(row["source_commit"]) for row in rows})
    counted = "Mean ± standard deviation (number of seeds)."
    return "\n".join([*lines, "", f"{counted} Source commits: {'; '.join(commits)}."])


def _cell(found: Sequence[float]) -> str:
    if not found:
        return "-"
    spread = f" ± {statistics.stdev(found):.3f}" if len(found) > 1 else ""
    return f"{statistics.mean(found):.3f}{spread} ({len(found)})"


if __name__ == "__main__":
    main()
