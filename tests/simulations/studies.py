"""A study's results for tests of its report: made-up figures in the form of real ones."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

SITES = ("amazon", "movie", "news")
BASELINES = {
    "majority": 0.5,
    "untrained": 0.45,
    "alone_private": 0.6,
    "head_private": 0.7,
    "pooled_private": 0.72,
    "pooled": 0.75,
    "columns": None,
}


def summary(
    value: float,
    *,
    epsilon: float | None = 3.0,
    sites: Sequence[str] = SITES,
    higher_is_better: bool = True,
    **changes: Any,
) -> dict[str, Any]:
    """What a report reads of a run's summary; each site is 0.01 above the one before it."""
    values = {name: value + 0.01 * place for place, name in enumerate(sites)}
    worst = (min if higher_is_better else max)(values, key=lambda name: values[name])
    told: dict[str, Any] = {
        "task": "text-classification",
        "metric": "accuracy" if higher_is_better else "rmse",
        "higher_is_better": higher_is_better,
        "trust": "off" if epsilon is None else "site",
        "baselines": dict(BASELINES),
        "value": value,
        "worst_site": {"site": worst, "value": values[worst]},
        "sites": {
            name: {"value": found, "epsilon": epsilon, "delta": 1e-3, "alone_private": 0.6}
            for name, found in values.items()
        },
        "seconds": {"total": 20.0, "training": 5.0, "baselines": 9.0},
    }
    return {**told, **changes}


def done(name: str, settings: Mapping[str, Any], seed: int, found: Mapping[str, Any]) -> Any:
    """A line of a run that is done."""
    return {
        "name": name,
        "settings": dict(settings),
        "seed": seed,
        "status": "done",
        "error": None,
        "summary": found,
        "seconds": 21.5,
        "cpu_seconds": 20.0,
        "bytes_up": 400_000,
        "bytes_down": 600_000,
        "code_commit": "0" * 40,
        "config_hash": "f" * 64,
    }


def failed(name: str, settings: Mapping[str, Any], text: str) -> Any:
    """A line of a run that failed."""
    told = {"name": name, "settings": dict(settings), "seed": 0, "status": "failed"}
    return {**told, "error": {"code": "HT403", "text": text}, "summary": None}


def write(folder: Path, rows: Sequence[Any]) -> Path:
    """The folder of a study."""
    folder.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(row) + "\n" for row in rows)
    (folder / "results.jsonl").write_text(text, encoding="utf-8")
    return folder


def rules_by_epsilon(folder: Path, *, seeds: int = 4) -> Path:
    """Two rules at three epsilons: `ffa` is better by 0.05 at epsilon 8 alone; one run failed."""
    rows: list[Any] = []
    for seed in range(seeds):
        for epsilon in (1.0, 3.0, 8.0):
            for rule in ("fedit", "ffa"):
                # Seeds differ by more than rules do, so that only pairs can tell rules apart.
                value = 0.6 + 0.02 * epsilon**0.5 + 0.05 * seed
                value += 0.003 * ((seed * 7 + int(epsilon)) % 3) * (rule == "ffa")
                value += 0.05 * (rule == "ffa" and epsilon == 8.0)
                settings = {"privacy.epsilon": epsilon, "aggregation.rule": rule}
                found = summary(value, epsilon=epsilon)
                rows.append(done(f"{len(rows):03}", settings, seed, found))
    settings = {"privacy.epsilon": 1e-4, "aggregation.rule": "ffa"}
    rows.append(failed("bad", settings, "no amount of noise reaches this epsilon"))
    return write(folder, rows)
