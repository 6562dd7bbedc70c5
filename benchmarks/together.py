"""What it saves to compute the steps of many sites at once, by how many there are.

    python benchmarks/together.py [--sites 4 16 100] [--rows 8 32] [--precision bfloat16]
        [--page docs/speed.md]

MiniLM with LoRA of rank 8 on query and value of all layers and a head, rated sentences of all
lengths: the clipped sums of one step of every site, one site after the other and at once, in turn,
the middle of three, CPU seconds of one thread, and of a head alone on kept features.
"""

from __future__ import annotations

import argparse
import math
import platform
import statistics
import time
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import torch
from markers import put_between

from hushtune.client import cohort, dp
from hushtune.client.together import Asked, Sums
from hushtune.common import lora
from hushtune.common.config_io import load_config
from hushtune.common.presets import PRESETS
from hushtune.common.tasks.units import Units
from hushtune.common.tasks.workspace import Workspace, open_workspace, resolve
from hushtune.common.tuning import keep_freed_memory
from hushtune.common.version import source_commit

BEGIN, END = "<!-- together:begin -->", "<!-- together:end -->"


def main() -> None:
    """Measure, print, and put the table where it belongs."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", nargs="+", type=int, default=[4, 16, 100])
    parser.add_argument("--rows", nargs="+", type=int, default=[8])
    parser.add_argument("--precision", default="auto")
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    keep_freed_memory()
    torch.set_num_threads(1)
    overrides = [f"model.precision={options.precision}"]
    config = resolve(load_config(preset="bench-w", presets=PRESETS, overrides=overrides))
    workspace = open_workspace(config)
    lines = [
        "| trained | sites | rows a step of each | one after the other | at once | ratio |",
        "|---|---|---|---|---|---|",
    ]
    for name, chosen in (("A, B and head", ""), ("head on kept features", "head.")):
        for sites in options.sites:
            for rows in options.rows:
                asked = steps(workspace, chosen, sites=sites, rows=rows)
                alone, at_once = medians(lambda a=asked: [one(each) for each in a], asked)
                lines.append(
                    f"| {name} | {sites} | {rows} | {alone:.3f} | {at_once:.3f} | "
                    f"{at_once / alone:.2f} |"
                )
                print(lines[-1], flush=True)
    lines += [
        "",
        f"CPU seconds of one step of all sites, {config.model.precision}, one core of "
        f"{platform.processor() or platform.machine()}, torch {torch.__version__}. Source commit: "
        f"{source_commit()}.",
    ]
    if options.page is not None:
        put_between(options.page, BEGIN, END, "\n".join(lines))


def steps(workspace: Workspace, chosen: str, *, sites: int, rows: int) -> list[Asked]:
    """A step's rows of each site, all of them different, and the adapter that all begin with."""
    task, state = workspace.task, workspace.initial_state
    keys = tuple(key for key in state.keys if key.startswith(chosen))
    everyone = np.random.default_rng(0).permutation(len(task.inputs.lengths))
    level = task.level(state, keys)
    return [
        Asked(
            task=task,
            units=Units.single(np.sort(everyone[site * rows : (site + 1) * rows])),
            begin=state,
            trained={key: torch.nn.Parameter(state.tensors[key].clone()) for key in keys},
            clip_norm=1.0,
            microbatch=math.ceil(math.sqrt(2 * rows)),
            level=level,
        )
        for site in range(sites)
    ]


def one(asked: Asked) -> Sums:
    """The sum of one site, as it is computed alone."""
    model = asked.task.model
    lora.install(model, asked.begin)
    trained = lora.set_trainable(model, tuple(asked.trained))
    model.training_mode()
    with dp.per_example_gradients(model):
        return dp.clipped_sum(
            asked.task,
            asked.units,
            trained=trained,
            clip_norm=asked.clip_norm,
            microbatch=asked.microbatch,
            level=asked.level,
        )


def medians(alone: Callable[[], object], asked: Sequence[Asked]) -> tuple[float, float]:
    """CPU seconds of each way, the middle of three, the two in turn, after one to warm up."""
    seconds: tuple[list[float], list[float]] = ([], [])
    for repeat in range(4):
        for found, way in zip(seconds, (alone, lambda: cohort.clipped_sums(asked)), strict=True):
            began = time.process_time()
            way()
            if repeat:
                found.append(time.process_time() - began)
    return statistics.median(seconds[0]), statistics.median(seconds[1])


if __name__ == "__main__":
    main()
