"""How a run's length and model were chosen, as its statement says it, and what that costs.

A run that stops by what it released has no length that was fixed before. What it released is a part
of what the whole run would have released, cut where those releases say; so the whole plan's epsilon
bounds it, and that of the rounds that ran need not (Rogers et al. 1605.08294 on the difference).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.planning import metrics_events, metrics_rounds
from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan, Unit
from hushtune.common.privacy.statement import SELECTION
from hushtune.common.stopping import best_round, chosen_by, is_judged

Row = Mapping[str, Any]

_LOOK = {
    "told": (
        "by the accuracy and loss that the sites told with noise, which are charged and in the "
        "figures here: choosing by them costs nothing more"
    ),
    "researcher": (
        "by plain figures on validation rows, which the researcher of this simulation looked at "
        "after each round. Of the training records, which the promise is about, this takes "
        "nothing more: models that are released under the promise were compared on other records. "
        "Of the validation records nothing is promised, and where the run stopped, or which round "
        "was chosen, tells something of them without any noise. At real sites it would be refused"
    ),
}


@dataclass(frozen=True)
class NotRun:
    """What a stop left out of a plan: steps of training, and figures that were not told."""

    training: tuple[DpSgdEvent, ...] = ()
    figures: tuple[DpSgdEvent, ...] = ()


def not_run(config: RunConfig, plan: PrivacyPlan, *, done: int) -> NotRun:
    """What the whole plan has beyond ``done`` rounds, where the run chose its own length."""
    left = config.train.rounds - done
    if config.train.patience is None or not plan.is_private or left <= 0:
        return NotRun()
    steps = left if plan.unit is Unit.CLIENT else left * config.train.local_steps
    later = [number for number in metrics_rounds(config) if number > done]
    return NotRun((plan.event(steps),), tuple(metrics_events(config)[: len(later)]))


def selection(config: RunConfig, history: Sequence[Row]) -> str:
    """In words, without a full stop; ``history``: of the rounds that ran."""
    if not is_judged(config):
        return SELECTION
    done, planned = len(history), config.train.rounds
    what = "the loss" if config.train.watch == "loss" else "the main metric"
    words = f"the run went through all its {planned} rounds"
    if done < planned:
        words = f"the run stopped after round {done} of {planned}"
    if config.train.patience is not None:
        rounds = f"{config.train.patience} round{'s' * (config.train.patience != 1)}"
        words += f" (it stops when {what} has not improved for {rounds})"
    if config.train.keep == "best":
        kept = best_round(history, config)
        which = "the round that was best by it" if kept is None else f"round {kept}, the best"
        words += f", and the model is that after {which}"
    else:
        words += ", and the model is that after its last round"
    words += f". It was judged {_LOOK[chosen_by(config)]}"
    if done < planned and config.train.patience is not None:
        words += (
            ". As its length follows from what it released, each epsilon here is that of the "
            "whole plan, which bounds it wherever it stopped; the ledger has the rounds that ran"
        )
    return words
