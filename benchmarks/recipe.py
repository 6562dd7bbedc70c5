"""What the demo's recipe was chosen on: accuracy on validation rows, never on test rows.

    python benchmarks/recipe.py [--seeds 3]

Federated and private: rounds, how many of them warm up the head alone, and the two learning rates.
Pooled and without privacy: by which factor the non-private baseline has lower rates. Seeds are
other than those of `five_seeds.py`.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
from pathlib import Path

from hushtune.common.config import RunConfig
from hushtune.common.config_io import load_config
from hushtune.common.planning import POOLED, not_private, pooled
from hushtune.common.presets import PRESETS
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.simulations.baselines import site_metrics
from hushtune.simulations.study import run_federation

FIRST_SEED = 10
RECIPES = [  # rounds, warm-up, its learning rate, learning rate
    (10, 8, 0.03, 0.02),
    (20, 18, 0.03, 0.02),
    (20, 18, 0.015, 0.01),
    (20, 14, 0.015, 0.01),
    (20, 18, 0.01, 0.005),
    (30, 27, 0.01, 0.007),
]
FACTORS = (1.0, 0.3, 0.1, 0.03)


def main() -> None:
    """Train every candidate under every seed and print the two tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    seeds = range(FIRST_SEED, FIRST_SEED + parser.parse_args().seeds)
    print(
        "| federated, private: rounds, warm-up, rates | validation accuracy | sd |\n|---|---|---|"
    )
    for rounds, warmup, first, later in RECIPES:
        found = [
            _validation(
                _demo(
                    seed,
                    f"train.rounds={rounds}",
                    f"train.warmup_rounds={warmup}",
                    f"train.warmup_learning_rate={first}",
                    f"train.learning_rate={later}",
                )
            )
            for seed in seeds
        ]
        _tell(f"{rounds}, {warmup}, {first} and {later}", found)
    print("\n| pooled, no privacy: rates times | validation accuracy | sd |\n|---|---|---|")
    for factor in FACTORS:
        _tell(f"{factor}", [_validation(_plain(_demo(seed), factor)) for seed in seeds])


def _demo(seed: int, *overrides: str) -> RunConfig:
    settings = [f"seed={seed}", "simulation.baselines=false", *overrides]
    return resolve(load_config(preset="demo", presets=PRESETS, overrides=settings))


def _plain(config: RunConfig, factor: float) -> RunConfig:
    """The non-private baseline at other rates than its own."""
    rates = {
        name: getattr(config.train, name) * factor
        for name in ("learning_rate", "warmup_learning_rate")
    }
    plain = not_private(pooled(config))
    return plain.model_copy(update={"train": plain.train.model_copy(update=rates)})


def _validation(config: RunConfig) -> float:
    workspace = open_workspace(config)
    with tempfile.TemporaryDirectory() as folder:
        state = run_federation(RunContext(config, Path(folder)), workspace).state
    return float(site_metrics(workspace, config, state, "validation")[POOLED]["accuracy"])


def _tell(what: str, found: list[float]) -> None:
    spread = statistics.stdev(found) if len(found) > 1 else 0.0
    print(f"| {what} | {statistics.mean(found):.4f} | {spread:.4f} |", flush=True)


if __name__ == "__main__":
    main()
