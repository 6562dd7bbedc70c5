"""What a round costs with many sites, large adapters and long texts, and a model of it.

    python benchmarks/scaling.py [--sites 4 16 64 256 1000] [--values 0.07 0.6 5 20]
        [--tokens 16 64 256 512] [--rounds 300] [--page docs/speed.md] [--out runs/scaling]

Every run is a process of its own: a random BERT of two layers of width 768 with LoRA on all of its
linear layers, sites of eight made-up rows each with their ledgers, and one private step a site and
round on a row or so. So nearly all that is seen is what the sites, and their messages, cost by
themselves. A run is a line of ``results.jsonl``; what is there is not run again.
"""

from __future__ import annotations

import argparse
import csv
import json
import os
import random
import statistics
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from markers import put_between
from w_processes import watched

from hushtune.common.files import write_text
from hushtune.common.version import source_commit

BEGIN, END = "<!-- scaling:begin -->", "<!-- scaling:end -->"
WIDTH, LAYERS, ROWS = 768, 2, 8
LINEAR = ("query", "key", "value", "attention.output.dense", "intermediate.dense", "output.dense")
A_RANK = LAYERS * (4 * 2 * WIDTH + 2 * (WIDTH + 4 * WIDTH))
"""Trained values of LoRA at rank 1."""
FEW_SITES, SMALL, SHORT, MOST_TWICE = 4, 0.07, 16, 10.0
KEYS = ("sites", "values", "tokens", "rounds")
LEAST_ROUNDS, LEAST_FITTED = 20, 5
"""Of fewer rounds no growth is told, of fewer runs no three coefficients."""


def main() -> None:
    """Run what is not there yet, fit, print, and put the table where it belongs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", nargs="*", type=int, default=[4, 16, 64, 256, 1000])
    parser.add_argument("--values", nargs="*", type=float, default=[0.07, 0.6, 5.0, 20.0])
    parser.add_argument("--tokens", nargs="*", type=int, default=[16, 64, 256, 512])
    parser.add_argument("--rounds", type=int, default=300, help="of one long run; 0: none")
    parser.add_argument("--page", type=Path)
    parser.add_argument("--out", type=Path, default=Path("runs/scaling"))
    options = parser.parse_args()
    if 0 < options.rounds < LEAST_ROUNDS:
        parser.error(f"--rounds {options.rounds}: 0, or at least {LEAST_ROUNDS}")
    if min(options.sites, default=1) < 1:
        parser.error(f"--sites {min(options.sites)}: 1 or more")
    path = options.out / "results.jsonl"
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.exists() else []
    asked = {name_of(point): point for point in points(options)}
    there = {name_of(row): row for row in done}
    both = (asked | there).values()
    short = [each for each in both if each["tokens"] == SHORT and not each.get("rounds")]
    if len(short) < LEAST_FITTED:
        parser.error(
            f"{len(short)} runs on texts of {SHORT} tokens are too few for a fit, which takes "
            f"{LEAST_FITTED}: name more --sites or --values (each of these is run on "
            f"{FEW_SITES} and on {4 * FEW_SITES} sites)"
        )
    for name, point in asked.items():
        if name not in there:
            done.append({**point, **measured(point, options.out), "commit": source_commit()})
            print(json.dumps(done[-1]), flush=True)
            write_text(path, "".join(json.dumps(row) + "\n" for row in done))
    table = as_markdown(done)
    print(table)
    if options.page is not None:
        put_between(options.page, BEGIN, END, table)


def name_of(point: Mapping[str, Any]) -> tuple[Any, ...]:
    """What tells a run from the others."""
    return tuple(point.get(key) for key in KEYS)


def points(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """One thing varied at a time, and the adapter's size once more with some more sites."""
    for sites in options.sites:
        yield {"sites": sites, "values": SMALL, "tokens": SHORT}
    for values in options.values:
        yield {"sites": FEW_SITES, "values": values, "tokens": SHORT}
        if values < MOST_TWICE:
            yield {"sites": 4 * FEW_SITES, "values": values, "tokens": SHORT}
    for tokens in options.tokens:
        yield {"sites": FEW_SITES, "values": SMALL, "tokens": tokens}
    if options.rounds:
        yield {"sites": FEW_SITES, "values": SMALL, "tokens": SHORT, "rounds": options.rounds}


def measured(point: Mapping[str, Any], out: Path) -> dict[str, Any]:
    """One run: the median round after the first one, and the peak of its memory."""
    name = "-".join(str(value) for value in point.values())
    folder = out / name
    rank = max(1, round(point["values"] * 1e6 / A_RANK))
    settings = {
        "data.file": rows_of(point["sites"], point["tokens"], out),
        "data.site": "site",
        "data.validation_fraction": 0.0,
        "model.name": model(out),
        "model.max_tokens": point["tokens"],
        "model.precision": "float32",
        "adapter.rank": rank,
        "adapter.layers": 0,
        "adapter.targets": json.dumps(LINEAR),
        "aggregation.rule": "fedit",
        "privacy.delta": 0.05,
        "train.rounds": point.get("rounds", 3),
        "train.warmup_rounds": 0,
        "train.local_steps": 1,
        "train.sampling_probability": 0.2,
        "train.microbatch": 1,
        "simulation.baselines": "false",
        "simulation.forgetting": "false",
        "simulation.train_sample": 0,
        "simulation.evaluate_every": 1000,
    }
    asked = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    command = [sys.executable, "-m", "hushtune.simulations.cli", "simulate", "--overwrite"]
    cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else [None]
    found = watched(
        [*command, "--out", str(folder / "run"), *asked], folder, core=cores[-1], timeout=3600
    )
    lines = (folder / "run" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    rounds = [sum(row["seconds"].values()) for row in rows[1:]]
    part = max(1, len(rounds) // 10)
    return {
        "growth": statistics.median(rounds[-part:]) / statistics.median(rounds[:part]),
        "megabytes": rows[-1]["bytes_up"] / point["sites"] / 1e6,
        "round_seconds": statistics.median(rounds),
        "wall": found["wall"],
        "memory_mb": found["memory_mb"],
    }


def rows_of(sites: int, tokens: int, out: Path) -> Path:
    """A CSV of made-up sentences of one length, eight a site."""
    path, drawn = out / f"rows-{sites}-{tokens}.csv", random.Random(0)
    words = [
        "time",
        "year",
        "people",
        "way",
        "day",
        "man",
        "thing",
        "woman",
        "life",
        "child",
        "world",
        "school",
        "state",
    ]
    out.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("site", "text", "label"))
        for site in range(sites):
            for place in range(ROWS):
                text = " ".join(drawn.choices(words, k=tokens - 2))
                writer.writerow((f"s{site:05d}", text, ("no", "yes")[place % 2]))
    return path.absolute()


def model(out: Path) -> Path:
    """A random BERT, with the tokenizer of the default model."""
    folder = (out / "model").absolute()
    if not (folder / "config.json").exists():
        import torch
        from transformers import AutoTokenizer, BertConfig, BertModel

        from hushtune.common.tasks.assets import resolve_model

        torch.manual_seed(0)
        tokenizer = AutoTokenizer.from_pretrained(resolve_model("demo"))
        tokenizer.save_pretrained(folder)
        config = BertConfig(
            vocab_size=len(tokenizer), hidden_size=WIDTH, num_hidden_layers=LAYERS,
            num_attention_heads=12, intermediate_size=4 * WIDTH,
        )  # fmt: skip
        BertModel(config).save_pretrained(folder)
    return folder


def fitted(rows: Sequence[Mapping[str, Any]]) -> tuple[float, float, float]:
    """``a, b, c`` of ``seconds = a + b sites + c sites megabytes``, none of them below zero.

    Least squares of relative errors, as the largest run would else decide alone.
    """
    from scipy.optimize import nnls

    sizes = np.array([(1.0, r["sites"], r["sites"] * r["megabytes"]) for r in rows])
    seconds = np.array([row["round_seconds"] for row in rows])
    found, _ = nnls(sizes / seconds[:, None], np.ones(len(rows)))
    return float(found[0]), float(found[1]), float(found[2])


def as_markdown(rows: Sequence[Mapping[str, Any]]) -> str:
    """All runs, the fit, and what it says of more sites."""
    few = [row for row in rows if not row.get("rounds")]
    short = [row for row in few if row["tokens"] == SHORT]
    if len(short) < LEAST_FITTED:
        raise SystemExit(f"{len(short)} runs are too few for a fit, which takes {LEAST_FITTED}")
    a, b, c = fitted(short)

    def seconds(sites: int, megabytes: float) -> float:
        return a + sites * (b + c * megabytes)

    lines = [
        "| sites | adapter, million values | MB sent a site | tokens | seconds a round | fit "
        "| peak MB |",
        "|---" * 7 + "|",
    ]
    for row in sorted(few, key=lambda r: (r["tokens"], r["values"], r["sites"])):
        fit = seconds(row["sites"], row["megabytes"])
        lines.append(
            f"| {row['sites']} | {row['values']:g} | {row['megabytes']:.2f} | {row['tokens']} "
            f"| {row['round_seconds']:.2f} | {f'{fit:.2f}' if row in short else ''} "
            f"| {row['memory_mb']:.0f} |"
        )
    small = min(row["megabytes"] for row in short)
    off = max(
        abs(seconds(row["sites"], row["megabytes"]) / row["round_seconds"] - 1) for row in short
    )
    told = [f"{n:,} sites {seconds(n, small):.0f} s" for n in (1000, 3000, 10000)]
    lines += [
        "",
        f"Fit on texts of {SHORT} tokens: a = {a:.3f} s, b = {b:.4f} s, c = {c:.4f} s. With "
        f"{small:.2f} MB a site it foresees, a round: {'; '.join(told)}. Of what was measured it "
        f"is at most {off:.0%} off.",
    ]
    by_sites = sorted((r for r in short if r["values"] == SMALL), key=lambda r: r["sites"])
    if len(by_sites) > 1:
        least, most = by_sites[0], by_sites[-1]
        more = (most["memory_mb"] - least["memory_mb"]) / (most["sites"] - least["sites"])
        lines.append(
            f"From {least['sites']} to {most['sites']} sites memory grows by {more:.2f} MB a site, "
            f"{more / small:.1f} times what it sends."
        )
    lines += [
        f"Of {row['rounds']:,} rounds of {row['sites']} sites the last tenth took "
        f"{row['growth']:.2f} times as long as the first."
        for row in rows
        if row.get("rounds")
    ]
    commits = sorted({str(row["commit"]) for row in rows})
    return "\n".join([*lines, "", f"Source commit of these runs: {'; '.join(commits)}."])


if __name__ == "__main__":
    main()
