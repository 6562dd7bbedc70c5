"""What the demo's recipe was chosen on: accuracy on validation rows, never on test rows.

    python benchmarks/recipe.py [--seeds 3] [--tables recipes factors layers]

Federated and private: rounds, how many of them warm up the head alone, and the two learning rates.
Pooled and without privacy: by which factor the non-private baseline has lower rates. The private
head alone: which frozen layer it reads best. Seeds are other than those of `five_seeds.py`.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from hushtune.common.config import RunConfig
from hushtune.common.config_io import load_config
from hushtune.common.planning import POOLED, head_only, not_private, pooled
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
LAYERS = range(1, 7)
TABLES = {
    "recipes": "federated, private: rounds, warm-up, rates",
    "factors": "pooled, no privacy: rates times",
    "layers": "private head alone, on frozen features of layer",
}

Candidate = Callable[[int], RunConfig]


def main() -> None:
    """Train every candidate under every seed and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--tables", nargs="+", choices=TABLES, default=list(TABLES))
    options = parser.parse_args()
    seeds = range(FIRST_SEED, FIRST_SEED + options.seeds)
    for table in options.tables:
        candidates = dict(CANDIDATES[table]())
        found: dict[str, list[float]] = {what: [] for what in candidates}
        for seed in seeds:  # outermost, so that frozen features are computed once a seed
            for what, candidate in candidates.items():
                found[what].append(_validation(candidate(seed)))
                print(f"{table}: {what}, seed {seed}: {found[what][-1]:.4f}", file=sys.stderr)
        print(f"\n| {TABLES[table]} | validation accuracy | sd |\n|---|---|---|")
        for what, values in found.items():
            spread = statistics.stdev(values) if len(values) > 1 else 0.0
            print(f"| {what} | {statistics.mean(values):.4f} | {spread:.4f} |", flush=True)


def _recipes() -> Iterator[tuple[str, Candidate]]:
    for rounds, warmup, first, later in RECIPES:
        overrides = (
            f"train.rounds={rounds}",
            f"train.warmup_rounds={warmup}",
            f"train.warmup_learning_rate={first}",
            f"train.learning_rate={later}",
        )
        yield (
            f"{rounds}, {warmup}, {first} and {later}",
            lambda seed, overrides=overrides: _demo(*overrides, seed=seed),
        )


def _factors() -> Iterator[tuple[str, Candidate]]:
    for factor in FACTORS:
        yield str(factor), lambda seed, factor=factor: _plain(_demo(seed=seed), factor)


def _layers() -> Iterator[tuple[str, Candidate]]:
    for layer in LAYERS:
        override = f"model.layer={layer}"
        yield str(layer), lambda seed, override=override: head_only(_demo(override, seed=seed))


CANDIDATES: Mapping[str, Callable[[], Iterator[tuple[str, Candidate]]]] = {
    "recipes": _recipes,
    "factors": _factors,
    "layers": _layers,
}


def _demo(*overrides: str, seed: int) -> RunConfig:
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


if __name__ == "__main__":
    main()
