"""A round without a trusted server: every step is a secure sum that carries all sites' noise.

With records or groups protected this is FedSGD (McMahan et al. 1602.05629): the sum is that of all
sites' clipped gradients, and the server takes the optimiser's step, as pooled DP-SGD would. With
clients protected it is the sum of their clipped changes.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import numpy as np
import torch
from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.messages import RoundOrder
from hushtune.common.planning import cohort_of
from hushtune.common.privacy.plan import PrivacyPlan, Unit
from hushtune.common.secagg.ring import Ring, from_ring
from hushtune.server.aggregation.aggregator import make_optimizer
from hushtune.server.aggregation.lora_rules import SERVER_RULES
from hushtune.server.chains import Shown
from hushtune.server.checkpoint import Checkpoint
from hushtune.server.joined import Joined, lost
from hushtune.server.orders import make_orders, step_of_round
from hushtune.server.roll_call import RollCall
from hushtune.server.secure import SecureSession
from hushtune.server.spending import appended, appended_charges
from hushtune.server.steps import numbers_of_round, round_optimizer
from hushtune.server.traffic import Traffic


def exchange(
    now: Checkpoint,
    grid: Grid,
    roll: RollCall,
    *,
    run: str,
    config: RunConfig,
    plans: Mapping[str, PrivacyPlan],
    sizes: Mapping[str, int],
    timeout: float,
    save: Callable[[Checkpoint], object],
    shown: Shown,
) -> Joined:
    """All steps of the round after ``now``.

    Steps are numbered through the run, and asked for once: of a round that was begun and not
    finished before the server stopped, they are lost. They were paid for, and under new keys the
    sites would have to noise, and to pay for, the same numbers again. Raises QuorumError where too
    few sites stay, which leaves the sums of unfinished steps closed.
    """
    if now.begun > now.round:
        return lost(now, plans)
    began, aggregation = time.perf_counter(), 0.0
    plan = next(iter(plans.values()))
    numbers = numbers_of_round(config, now.round + 1)
    session = SecureSession(
        run=run,
        cohort=cohort_of(config),
        plan=plan,
        steps=numbers,
        grid=grid,
        nodes=roll.nodes,
        timeout=timeout,
        shown=shown,
    )
    session.traffic.lost.update(roll.missing)
    session.begin()
    save(_begun(now, session.traffic))
    state, agg, noise = now.state, now.agg, dict[str, str]()
    for place in range(len(numbers)):
        orders = make_orders(
            state, run=run, round=now.round + 1, config=config, plans=plans, sizes=sizes
        )
        if plan.unit is not Unit.CLIENT:
            orders = {site: step_of_round(order, config, place) for site, order in orders.items()}
        try:
            opened = session.step(orders)
        finally:  # what sites have shown to have paid is known however this round ends
            save(_begun(now, session.traffic))
        adding = time.perf_counter()
        order = next(iter(orders.values()))
        mean = mean_of(opened.values, order)
        delta = mean if plan.unit is Unit.CLIENT else -1.0 * mean
        optimizer = round_optimizer(config, round=now.round + 1, step=place)
        agg, state = optimizer.apply(agg, state, delta)
        aggregation += time.perf_counter() - adding
        noise |= {site: opened.noise[site][:200] for site in opened.survivors}
    rule = SERVER_RULES[config.aggregation.rule]
    state = rule.finish(state)
    if rule.new_coordinates:  # what the optimiser remembers is about the old ones
        agg = make_optimizer(config.aggregation).init(state)
    traffic, paid = session.traffic, _begun(now, session.traffic)
    total = time.perf_counter() - began
    return Joined(
        state=state,
        agg=agg,
        accepted=tuple(sorted(noise)),
        rejected={site: why for site, why in traffic.lost.items() if site not in noise},
        noise=dict(sorted(noise.items())),
        charges=paid.charges,
        refusals=paid.refusals,
        bytes_down=traffic.bytes_down,
        bytes_up=traffic.bytes_up,
        exchanges=traffic.exchanges,
        seconds={"training": total - aggregation, "aggregation": aggregation},
    )


def _begun(now: Checkpoint, traffic: Traffic) -> Checkpoint:
    """``now`` in the round after it, with the charges and refusals that sites have shown in it."""
    charges = now.charges
    for site, entry in traffic.charges:
        charges = appended_charges(charges, {site: entry})
    refusals = appended(now.refusals, traffic.refusals)
    return replace(now, begun=now.round + 1, charges=charges, refusals=refusals)


def mean_of(total: Ring, order: RoundOrder) -> AdapterState:
    """The sum over the plan's public denominator, over the tensors that are trained."""
    values = from_ring(total, clip_norm=order.plan.clip_norm) / order.plan.denominator
    keys = order.sent
    like = order.adapter.select(keys).tensors
    ends = np.cumsum([like[key].numel() for key in keys])
    parts = np.split(values, ends[:-1])
    return AdapterState(
        order.adapter.spec,
        {
            key: torch.from_numpy(part.astype(np.float32)).reshape(like[key].shape)
            for key, part in zip(keys, parts, strict=True)
        },
    )
