"""What a sweep would do and take, without doing it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.tasks.shared_states import share_states
from hushtune.simulations.sweep.execute import SHARED_MEGABYTES
from hushtune.simulations.sweep.points import Point, told_at
from hushtune.simulations.sweep.timing import Costs, Opening, costs, opening, seconds_of

_PRIVACY_ALONE = {"epsilon", "delta", "clip_norm", "colluding_sites", "min_survivors"}
_NUMBERS_ALONE = ("rounds", "warmup_rounds", "learning_rate", "warmup_learning_rate")


def foresee(points: Sequence[Point], *, told: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """A row a point: its privacy, and the minutes that it adds to the sweep in one process.

    What points share is counted at the first of them: model and rows that are opened once for equal
    seeds and adapters, and rows that pass the frozen model once. Each kind of work is timed once,
    here and now, by a short run of it (``timing``). ``told(done, total)`` hears of each.
    """
    first: dict[str, Point] = {}
    for point in points:
        first.setdefault(_work(point.config), point)
    bases = {point.shares[0]: point for point in reversed(points)}
    timed: dict[str, Costs] = {}
    openings: dict[str, Opening] = {}
    share_states(SHARED_MEGABYTES)  # as the sweep's own processes do
    try:
        for base, point in bases.items():
            told(len(openings), len(bases) + len(first))
            with told_at(_would_fail(point)):
                openings[base] = opening(point.config)
        # Those of equal rows beside each other: one table of rows is kept at a time.
        for work, point in sorted(first.items(), key=lambda item: item[1].shares):
            told(len(openings) + len(timed), len(bases) + len(first))
            with told_at(_would_fail(point)):
                timed[work] = costs(point.config)
    finally:
        share_states(0)
    seen: set[str] = set()
    rows: list[dict[str, Any]] = []
    for point in points:
        base, workspace = point.shares
        seconds = seconds_of(point.config, timed[_work(point.config)])
        seconds += openings[base].frozen * (base not in seen)
        seconds += openings[base].opened * (workspace not in seen)
        seen |= {base, workspace}
        rows.append({**privacy_of(point), "minutes": seconds / 60})
    return rows


def _would_fail(point: Point) -> str:
    """Where an error is: a sweep fails this point alone, and the others go on."""
    return f"the point {point.name}, which a sweep would fail"


def privacy_of(point: Point) -> dict[str, Any]:
    """What a point promises: figures of the site that promises least."""
    plans = list(point.plans.values())
    seeded = point.config.privacy.insecure_seeded_noise
    private = all(plan.is_private for plan in plans) and not seeded
    return {
        "point": point.key,
        "name": point.name,
        "settings": dict(point.settings),
        "seed": point.config.seed,
        "trust": point.config.privacy.trust,
        "sites": len(plans),
        "epsilon": max(plan.epsilon for plan in plans) if private else None,
        "delta": max(plan.delta for plan in plans) if private else None,
        "noise_multiplier": min(plan.noise_multiplier for plan in plans) if private else None,
        "steps": max(plan.steps for plan in plans),
    }


def total_minutes(rows: Sequence[dict[str, Any]], *, jobs: int) -> float:
    """Of all points, ``jobs`` of them at once."""
    return math.ceil(sum(row["minutes"] for row in rows) / max(1, jobs) * 10) / 10


def _work(config: RunConfig) -> str:
    """What decides how long a round takes."""
    tree = config.model_dump(mode="json", exclude={"seed", "aggregation", "personal"})
    privacy = {k: v for k, v in tree.pop("privacy").items() if k not in _PRIVACY_ALONE}
    tree["data"].pop("public_sizes")
    tree["data"].pop("alpha")
    tree["simulation"].pop("baselines")
    train = config.train
    kinds = (train.warmup_rounds > 0, train.rounds > train.warmup_rounds)
    for name in _NUMBERS_ALONE:
        tree["train"].pop(name)
    return json.dumps([kinds, privacy, tree], sort_keys=True, default=str)
