"""Learning rates over the steps of a run."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping


def learning_rate(base: float, schedule: str, step: int, steps: int) -> float:
    """The rate of one step (from 0) of a phase of ``steps`` steps; linear and cosine fall to 0."""
    passed = step / max(1, steps)
    shapes: Mapping[str, Callable[[], float]] = {
        "constant": lambda: 1.0,
        "linear": lambda: 1.0 - passed,
        "cosine": lambda: 0.5 * (1.0 + math.cos(math.pi * passed)),
    }
    return base * shapes[schedule]()
