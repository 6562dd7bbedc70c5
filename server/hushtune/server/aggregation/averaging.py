"""The average of a run's iterates, which is what is shown, while training goes on from the last.

An exponential average without bias: ``e_t = e_(t-1) + (1 - d) / (1 - d^t) (x_t - e_(t-1))`` is
``sum_i d^(t-i) x_i / sum_i d^(t-i)``, whatever came before the first. It is a function of what was
released, so that it costs no privacy (De et al. 2204.13650 do so too).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.server.aggregation.optimizers import AggState

AVERAGE = "average"
"""The average's name among the moments."""


def follow(
    before: AggState,
    after: AggState,
    state: AdapterState,
    *,
    trained: Iterable[str],
    decay: float,
) -> AggState:
    """``after`` with the average of ``before`` moved on to the round's new ``state``.

    Over the tensors trained so far. It begins anew in a round that trains one for the first time,
    as after the warm-up: iterates of another phase do not belong to it. ``decay`` 0 keeps none.
    """
    if decay == 0:
        return after
    old = before.moments.get(AVERAGE)
    known = set[str]() if old is None else set(old.keys)
    keys = sorted(known.union(trained))
    now = state.select(keys)
    if old is None or len(keys) > len(known):
        average, count = now, 1
    else:
        count = before.averaged + 1
        rate = (1 - decay) / (1 - decay**count)

        def moved(mean: Tensor, new: Tensor) -> Tensor:
            return (mean.double() + rate * (new.double() - mean.double())).float()

        average = old.zip_with(now, moved)
    return replace(after, moments={**after.moments, AVERAGE: average}, averaged=count)


def shown(memory: AggState, state: AdapterState) -> AdapterState:
    """What is evaluated and handed out: the average where one is kept, else the iterate itself."""
    average = memory.moments.get(AVERAGE)
    return state if average is None else state.merge(average)
