"""What a sweep would do and take, without doing it."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from typing import Any

from hushtune.simulations.estimate import estimate
from hushtune.simulations.sweep.points import Point

_PRIVACY_ALONE = {"epsilon", "delta", "clip_norm", "colluding_sites", "min_survivors"}


def foresee(points: Sequence[Point], *, told: Callable[[int, int], None]) -> list[dict[str, Any]]:
    """A row a point: its privacy and the minutes it would take on its own.

    Minutes are estimated once for all points that do the same work. ``told(done, total)`` hears of
    each estimate.
    """
    works: dict[str, Point] = {}
    for point in points:
        works.setdefault(_work(point), point)
    minutes: dict[str, float] = {}
    for number, (work, point) in enumerate(works.items()):
        told(number, len(works))
        minutes[work] = estimate(point.config)["minutes"]
    told(len(works), len(works))
    return [{**privacy_of(point), "minutes": minutes[_work(point)]} for point in points]


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


def _work(point: Point) -> str:
    """What decides how long a point takes."""
    tree = point.config.model_dump(mode="json", exclude={"seed", "aggregation", "personal"})
    privacy = {k: v for k, v in tree.pop("privacy").items() if k not in _PRIVACY_ALONE}
    tree["data"].pop("public_sizes")
    return json.dumps([privacy, tree], sort_keys=True, default=str)
