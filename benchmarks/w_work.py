"""W, one piece of work of known size that every contender does: its rows, its numbers, its clock.

W is four sites of 512 rated sentences, MiniLM with LoRA of rank 8 on query and value of all layers
and a head, 5 rounds of 4 AdamW steps on 32 rows at each site under DP-SGD, and 400 other rows
judged after each round. ``hushtune simulate --preset bench-w`` is W; ``write_work`` puts the same
rows and numbers into a file that the others read.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

EVENTS = "HUSHTUNE_BENCH_EVENTS"
"""The environment variable that names the file of a run's events."""

Row = tuple[str, int]


@dataclass(frozen=True, kw_only=True)
class Work:
    """What is to be done. ``layers``: adapt so many of the top layers, 0 = all; ``noise``: the
    noise multiplier; ``clip``: of one example's gradient; ``autocast``: products in bfloat16."""

    model: str
    train: Mapping[str, Sequence[Row]]
    test: Mapping[str, Sequence[Row]]
    labels: int
    rank: int
    alpha: float
    targets: Sequence[str]
    layers: int
    feature_scale: float
    max_tokens: int
    rounds: int
    steps: int
    batch: int
    rate: float
    clip: float
    noise: float
    autocast: bool = False
    seed: int = 0

    @classmethod
    def read(cls, path: Path | str) -> Work:
        """Inverse of ``write_work``."""
        found = json.loads(Path(path).read_text(encoding="utf-8"))
        return cls(**{field.name: found[field.name] for field in fields(cls)})

    @property
    def judged(self) -> list[Row]:
        """The rows that are judged after each round, of all sites."""
        return [row for site in sorted(self.test) for row in self.test[site]]


def write_work(path: Path, settings: Sequence[str] = (), *, preset: str | None = "bench-w") -> Any:
    """Write what hushtune would do with ``settings`` as a file for the others; its RunConfig."""
    from hushtune.common.config_io import load_config
    from hushtune.common.planning import site_plans
    from hushtune.common.presets import PRESETS
    from hushtune.common.tasks.assets import resolve_model
    from hushtune.common.tasks.data import load_data
    from hushtune.common.tasks.workspace import resolve

    asked = load_config(preset=preset, presets=PRESETS, overrides=settings)
    config = resolve(asked)
    data = load_data(
        config.data,
        config.task,
        seed=config.seed,
        records_per_group=config.privacy.records_per_group,
    )
    plan = next(iter(site_plans(config).values()))
    rows = {
        part: {
            site: [(data.texts[i], int(data.labels[i])) for i in getattr(split, part).tolist()]
            for site, split in data.sites.items()
        }
        for part in ("train", "test")
    }
    numbers = {
        "model": str(resolve_model(config.model.name)),
        "labels": len(data.label_names),
        "rank": config.adapter.rank,
        "alpha": config.adapter.alpha,
        "targets": list(config.adapter.targets),
        "layers": config.adapter.layers,
        "feature_scale": config.model.feature_scale,
        "max_tokens": config.model.max_tokens,
        "rounds": config.train.rounds,
        "steps": config.train.local_steps,
        "batch": round(plan.denominator),
        "rate": config.train.learning_rate,
        "clip": plan.clip_norm if plan.noise_multiplier else 1e9,
        "noise": plan.noise_multiplier,
        "autocast": asked.model.precision == "bfloat16",
        "seed": config.seed,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({**numbers, **rows}), encoding="utf-8")
    return config


def tell(part: str, *, began: float, seconds: float = 0.0, **more: Any) -> None:
    """Add an event to the run's file, in one write, as several processes may tell at once."""
    place = os.environ.get(EVENTS)
    if place is None:
        return
    line = json.dumps({"part": part, "began": began, "seconds": seconds, **more}) + "\n"
    file = os.open(place, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    try:
        os.write(file, line.encode())
    finally:
        os.close(file)


@contextmanager
def timed(part: str) -> Generator[dict[str, Any]]:
    """Tell how long the block took; what is put into the dictionary goes with it."""
    more: dict[str, Any] = {}
    began, clock = time.time(), time.perf_counter()
    yield more
    tell(part, began=began, seconds=time.perf_counter() - clock, **more)


def tell_steps() -> None:
    """Tell when the first optimiser's step of this process was taken."""
    from torch.optim.optimizer import register_optimizer_step_post_hook

    def once(*_args: Any) -> None:
        handle.remove()
        tell("step", began=time.time())

    handle = register_optimizer_step_post_hook(once)
