"""Early stopping and the choice of a round's model, by public figures on validation rows.

    best <- none
    for each round with a figure f:   if f > best + min_improvement:  best <- f, its round
    stop after a round when `patience` rounds have passed since the best one

Everything follows from the configuration and the rows of the history, so a run that goes on from
its checkpoint stops where it would have stopped. Whose figures count is ``chosen_by``:

- ``told``: where sites tell figures with noise, those alone. Noise and charge are theirs already.
- ``researcher``: in a simulation, plain figures of whoever holds all rows. They are of validation
  rows, which no promise about training records covers; the statement says so.

The head's rounds (``train.warmup_rounds``) stop no run in which adapters follow: that the head has
learned what it can says nothing of them.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal

from hushtune.common.config import RunConfig
from hushtune.common.kinds import higher_is_better

Row = Mapping[str, Any]


def is_judged(config: RunConfig) -> bool:
    """Whether a run is stopped, or its model chosen, by figures."""
    return config.train.patience is not None or config.train.keep == "best"


def chosen_by(config: RunConfig) -> Literal["told", "researcher"]:
    """Whose figures decide."""
    return "told" if config.metrics.release == "noised" else "researcher"


def score(row: Row, config: RunConfig) -> float | None:
    """A round's figure, the higher the better; None of a round without one."""
    told = chosen_by(config) == "told"
    name = config.task.of.score if told else config.task.main_metric
    if config.train.watch == "loss":
        name = "loss"
    if told:
        found = row.get("released", {}).get(name)
    else:
        found = row.get(name) if row.get("evaluated_on") == "validation" else None
    if found is None:
        return None
    return float(found) if higher_is_better(name) else -float(found)


def best_round(history: Sequence[Row], config: RunConfig) -> int | None:
    """The round with the best figure so far, the first of equals; None without any."""
    best, number = -float("inf"), None
    for row in history:
        found = score(row, config)
        if found is not None and (number is None or found > best + config.train.min_improvement):
            best, number = found, int(row["round"])
    return number


def is_over(history: Sequence[Row], config: RunConfig) -> bool:
    """Whether a run stops after the last of these rounds."""
    train = config.train
    if train.patience is None or not history or score(history[-1], config) is None:
        return False
    head = train.warmup_rounds if train.warmup_rounds < train.rounds else 0
    since = max(best_round(history, config) or 0, head)
    return int(history[-1]["round"]) - since >= train.patience
