"""What secure noise takes, against `torch.randn` on as many values in the same run.

    python benchmarks/noise.py [--values 10000000] [--repeats 7] [--threads 1 2]

Draws take turns, so that a busy machine is unfair to all of them alike. Medians; CPU seconds are
those of all threads together.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch

from hushtune.common.privacy.noise import NoiseSource


def main() -> None:
    """Print a table for each number of threads."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--values", type=int, default=10_000_000)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    options = parser.parse_args()
    shape, source, total = (options.values,), NoiseSource(), torch.zeros(options.values)
    draws: dict[str, Callable[[], object]] = {
        "torch.randn": lambda: torch.randn(shape),
        "NoiseSource.noised": lambda: source.noised(total, std=1.0),
    }
    for threads in options.threads:
        torch.set_num_threads(threads)
        print(f"\n{options.values:,} values, {threads} threads, {_load()}\n")
        print(as_markdown(_measured(draws, options.repeats)))


def _measured(
    draws: dict[str, Callable[[], object]], repeats: int
) -> dict[str, list[tuple[float, float]]]:
    """Wall and CPU seconds of each repeat, by name; a first round warms up and is left out."""
    seconds: dict[str, list[tuple[float, float]]] = {name: [] for name in draws}
    for _ in range(repeats + 1):
        for name, draw in draws.items():
            wall, cpu = time.perf_counter(), time.process_time()
            draw()
            seconds[name].append((time.perf_counter() - wall, time.process_time() - cpu))
    return {name: found[1:] for name, found in seconds.items()}


def as_markdown(seconds: dict[str, list[tuple[float, float]]]) -> str:
    """A row a draw: median wall and CPU seconds, and how many times the first row's they are."""
    lines = ["| | wall s | ratio | CPU s | ratio |", "|---|---|---|---|---|"]
    medians = {
        name: [statistics.median(times) for times in zip(*found, strict=True)]
        for name, found in seconds.items()
    }
    base = next(iter(medians.values()))
    for name, (wall, cpu) in medians.items():
        lines.append(
            f"| {name} | {wall:.3f} | {wall / base[0]:.2f} | {cpu:.3f} | {cpu / base[1]:.2f} |"
        )
    return "\n".join(lines)


def _load() -> str:
    return f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}"


if __name__ == "__main__":
    main()
