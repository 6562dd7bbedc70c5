"""What a round costs the server: 100 clients, rank 16, on the shapes of a model of 7 billion.

    python benchmarks/aggregation.py [--rules ffa fedit ...] [--clients 100] [--rank 16]
        [--modules 64] [--width 4096] [--runs 1] [--estimate geometric_median]

Each rule in a process of its own, on made-up updates of the query and value projections of 32
layers, 4096 wide: seconds of one ``Aggregator.apply`` and of the meter of the aggregation's bias
after it, and peak memory of the process, of which the updates, and what the rule gives out. Beside
it the floor: reading every number of the updates once. Of ``--runs`` the one of least seconds.
``--estimate``: in place of the mean, such as the geometric median with ``--rules fedit``, which
compares the products of all pairs of sites; the meter then makes the plain average once more.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import replace

import torch

from hushtune.common.adapter import AdapterSpec, AdapterState, a_key, b_key, r_key
from hushtune.common.compatibility import ESTIMATES
from hushtune.common.config import RunConfig
from hushtune.common.lora_rules import RULES, sent_keys, trainable_keys
from hushtune.common.messages import ClientUpdate
from hushtune.common.tuning import keep_freed_memory
from hushtune.server.aggregation.aggregator import make_aggregator
from hushtune.server.aggregation.bias import measured_bias

GIB = 2**30


def main() -> None:
    """Measure each rule in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--modules", type=int, default=64)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--runs", type=int, default=1)
    parser.add_argument("--estimate", choices=ESTIMATES, default="mean")
    parser.add_argument("--one", choices=RULES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(options.one, options)))
        return
    print("| rule | " + " | ".join(_COLUMNS.values()) + " |")
    print("|---" * (1 + len(_COLUMNS)) + "|")
    for rule in options.rules:
        numbers = [f"--{name}={getattr(options, name)}" for name in _NUMBERS]
        numbers.append(f"--estimate={options.estimate}")
        command = [sys.executable, __file__, "--one", rule, *numbers]
        rows: list[dict[str, float | None]] = []
        failure = ""
        for _ in range(options.runs):
            done = subprocess.run(command, capture_output=True, text=True, check=False)
            if done.returncode:
                failure = (done.stderr.strip().splitlines() or ["killed"])[-1][:80]
            else:
                rows.append(json.loads(done.stdout))
        if not rows:
            print(f"| `{rule}` | {failure} |" + " |" * (len(_COLUMNS) - 1), flush=True)
            continue
        row = min(rows, key=lambda row: row["seconds"] or 0.0)
        cells = ["-" if row[key] is None else f"{row[key]:.2f}" for key in _COLUMNS]
        print(f"| `{rule}` | " + " | ".join(cells) + " |", flush=True)


_COLUMNS = {
    "seconds": "seconds",
    "cpu": "CPU seconds",
    "meter": "bias meter, seconds",
    "meter_cpu": "its CPU seconds",
    "floor": "floor, seconds",
    "peak": "peak GiB",
    "updates": "of which updates",
    "output": "of which output",
}
_NUMBERS = ("clients", "rank", "modules", "width")


def measured(name: str, options: argparse.Namespace) -> dict[str, float | None]:
    """One rule, one round; no meter where a rule has no mean product."""
    keep_freed_memory()  # as every run does
    rule = RULES[name]
    spec = AdapterSpec(
        base="",
        rank=options.rank,
        alpha=float(options.rank),
        rslora=False,
        targets=tuple(f"layers.{index}" for index in range(options.modules)),
        head=(),
        inner=rule.inner,
    )
    shapes = {a_key: (options.rank, options.width), b_key: (options.width, options.rank)}
    if rule.inner:
        shapes[r_key] = (options.rank, options.rank)
    whole = {
        key(module): torch.randn(shape) for module in spec.targets for key, shape in shapes.items()
    }
    state = AdapterState(spec, whole)
    sent = state.select(sent_keys(rule, spec, trainable_keys(rule, spec, turn=0)))
    first = ClientUpdate(
        run="r", round=1, site="0", delta=sent, num_examples=1, charge=None, noise="none"
    )
    updates = [
        replace(first, site=str(place), num_examples=place + 1, delta=sent.map(torch.randn_like))
        for place in range(options.clients)
    ]
    began = time.perf_counter()
    for update in updates:
        update.delta.norm()
    floor = time.perf_counter() - began
    config = RunConfig.model_validate(
        {
            "aggregation": {"rule": name, "estimate": options.estimate},
            "data": {"source": "demo"},
            "privacy": {"trust": "off"},
        }
    )
    aggregator = make_aggregator(config.aggregation, seed=config.seed)
    memory = aggregator.init(state)
    began, processor = time.perf_counter(), time.process_time()
    _, after = aggregator.apply(memory, state, updates)
    seconds, cpu = time.perf_counter() - began, time.process_time() - processor
    began, processor = time.perf_counter(), time.process_time()
    bias = measured_bias(config, state, updates, after=after)
    meter, meter_cpu = time.perf_counter() - began, time.process_time() - processor
    return {
        "seconds": seconds,
        "cpu": cpu,
        "meter": None if bias is None else meter,
        "meter_cpu": None if bias is None else meter_cpu,
        "floor": floor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "updates": 4 * sent.num_values() * options.clients / GIB,
        "output": 4 * after.num_values() / GIB,
    }


if __name__ == "__main__":
    main()
