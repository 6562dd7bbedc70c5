"""What a round costs the server: 100 clients, rank 16, on the shapes of a model of 7 billion.

    python benchmarks/aggregation.py [--rules ffa fedit ...] [--clients 100] [--rank 16]
        [--modules 64] [--width 4096]

Each rule in a process of its own, on made-up updates of the query and value projections of 32
layers, 4096 wide: seconds of one ``Aggregator.apply``, peak memory of the process (updates
included) and without them, beside the floor: reading every number of the updates once.
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
from hushtune.common.config import AggregationConfig
from hushtune.common.lora_rules import RULES, sent_keys, trainable_keys
from hushtune.common.messages import ClientUpdate
from hushtune.common.tuning import keep_freed_memory
from hushtune.server.aggregation.aggregator import make_aggregator

GIB = 2**30


def main() -> None:
    """Measure each rule in a process of its own and print a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rules", nargs="+", choices=RULES, default=list(RULES))
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--rank", type=int, default=16)
    parser.add_argument("--modules", type=int, default=64)
    parser.add_argument("--width", type=int, default=4096)
    parser.add_argument("--one", choices=RULES, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.one is not None:
        print(json.dumps(measured(options.one, options)))
        return
    print("| rule | seconds | CPU seconds | floor, seconds | peak GiB | of which updates |")
    print("|---|---|---|---|---|---|")
    for rule in options.rules:
        numbers = [f"--{name}={getattr(options, name)}" for name in _NUMBERS]
        command = [sys.executable, __file__, "--one", rule, *numbers]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode:
            print(f"| `{rule}` | {done.stderr.strip().splitlines()[-1][:80] or 'killed'} | | | | |")
            continue
        row = json.loads(done.stdout)
        cells = [f"{row[key]:.2f}" for key in ("seconds", "cpu", "floor", "peak", "updates")]
        print(f"| `{rule}` | " + " | ".join(cells) + " |", flush=True)


_NUMBERS = ("clients", "rank", "modules", "width")


def measured(name: str, options: argparse.Namespace) -> dict[str, float]:
    """One rule, one round."""
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
    aggregator = make_aggregator(AggregationConfig(rule=name))  # type: ignore[arg-type]
    memory = aggregator.init(state)
    began, processor = time.perf_counter(), time.process_time()
    aggregator.apply(memory, state, updates)
    return {
        "seconds": time.perf_counter() - began,
        "cpu": time.process_time() - processor,
        "floor": floor,
        "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / GIB,
        "updates": 4 * sent.num_values() * options.clients / GIB,
    }


if __name__ == "__main__":
    main()
