"""SCAFFOLD at the server (Karimireddy et al. 1910.06378, option II): the mean control variate.

A site's new variate follows from its change alone, ``c_k - c + (x - y_k) / sum of its learning
rates``, so that no message but the update is needed.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.messages import ClientUpdate, RoundOrder
from hushtune.server.aggregation.optimizers import AggState
from hushtune.server.checkpoint import Checkpoint
from hushtune.server.orders import trainable_of

CONTROL = "control"
"""The variate's name among the moments."""


def control_of(now: Checkpoint, config: RunConfig) -> AdapterState | None:
    """The variate ``c`` over what the next round trains, zero where it is new; or None."""
    if not config.train.scaffold:
        return None
    keys = trainable_of(config, now.state.spec, round=now.round + 1)
    zero = 0.0 * now.state.select(keys)
    known = now.agg.moments.get(CONTROL)
    if known is None:
        return zero
    return zero.merge(known.select(key for key in zero.keys if key in known.tensors))


def moved(
    memory: AggState,
    before: AggState,
    control: AdapterState,
    updates: Sequence[ClientUpdate],
    orders: Mapping[str, RoundOrder],
    num_sites: int,
) -> AggState:
    """``c <- c + 1/N sum_k (c_k' - c_k)``, with ``c_k' - c_k = -c - delta_k / sum of rates``.

    ``before``: what was remembered when the round began. Over tensors that are not trained in every
    round the variate stays as it was, whatever the server's optimiser, whose ``memory`` it joins,
    remembers.
    """
    change = 0.0 * control
    for update in sorted(updates, key=lambda update: update.site):
        how, steps = orders[update.site].training, orders[update.site].local_steps
        rates = sum(how.rate(step) for step in range(steps))
        change = change - control - (1.0 / rates) * update.delta
    known = before.moments.get(CONTROL)
    new = control + (1.0 / num_sites) * change
    whole = new if known is None else known.merge(new)
    return replace(memory, moments={**memory.moments, CONTROL: whole})
