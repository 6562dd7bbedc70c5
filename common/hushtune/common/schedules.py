"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


def learning_rate(base: float, schedule: str, step: int, steps: int, *, warmup: int = 0) -> float:
    """The rate of one step (from 0) of a phase of ``steps`` steps; linear and cosine fall to 0.

    In the first ``warmup`` steps it rises evenly to ``base`` (Goyal et al. 1706.02677); the
    schedule spans the steps after those.

    >>> [learning_rate(1.0, "constant", step, 9, warmup=4) for step in range(5)]
    [0.25, 0.5, 0.75, 1.0, 1.0]
    """
    if step < warmup:
        return base * (step + 1) / warmup
    passed = (step - warmup) / max(1, steps - warmup)
    shapes: Mapping[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "linear": lambda: 1.0 - passed,
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * passed)),
    }
    return base * shapes[schedule]()
