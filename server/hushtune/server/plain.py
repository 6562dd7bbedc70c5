"""A round whose updates the server sees one by one: orders, replies, and what they make together.

The sites' noise is in each update, or the server adds its own, or there is none. A rule of
gradients takes several such exchanges a round, one a step.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from hushtune.common.config import RunConfig
from hushtune.common.errors import BudgetExceededError, QuorumError
from hushtune.common.lora_rules import RULES
from hushtune.common.messages import RoundOrder, encode_orders
from hushtune.common.privacy.plan import PrivacyPlan, Trust
from hushtune.server import central, scaffold
from hushtune.server.aggregation.aggregator import Aggregator, make_aggregator
from hushtune.server.aggregation.bias import measured_bias
from hushtune.server.chains import Shown
from hushtune.server.checkpoint import Checkpoint
from hushtune.server.joined import Joined, lost
from hushtune.server.orders import make_orders, step_of_round
from hushtune.server.replies import Replies, content_bytes, each_once, read_replies
from hushtune.server.roll_call import RollCall
from hushtune.server.spending import appended, appended_charges
from hushtune.server.steps import round_optimizer, steps_of_round

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Asked:
    """What came of some orders: ``told`` says of each site why its update is not used."""

    replies: Replies
    told: Mapping[str, str]
    bytes_down: int
    seconds: float


def ask(
    orders: Mapping[str, RoundOrder],
    *,
    grid: Grid,
    roll: RollCall,
    max_norm: float,
    timeout: float,
    shown: Shown,
) -> Asked:
    """Send orders to those sites that are there, and check what comes back."""
    began = time.perf_counter()
    asked = {site: order for site, order in orders.items() if site in roll.nodes}
    messages = [
        Message(
            content,
            dst_node_id=roll.nodes[site],
            message_type="train",
            group_id=str(asked[site].round),
        )
        for site, content in zip(asked, encode_orders(list(asked.values())), strict=True)
    ]
    answers = list(grid.send_and_receive(messages, timeout=timeout)) if messages else []
    seconds = time.perf_counter() - began
    replies = read_replies(
        each_once(answers), orders=orders, nodes=roll.nodes, max_norm=max_norm, shown=shown
    )
    told = {site: roll.missing.get(site, why) for site, why in replies.rejected.items()}
    bytes_down = sum(content_bytes(message.content) for message in messages)
    return Asked(replies, told, bytes_down, seconds)


def exchange(
    now: Checkpoint,
    grid: Grid,
    roll: RollCall,
    *,
    run: str,
    config: RunConfig,
    plans: Mapping[str, PrivacyPlan],
    sizes: Mapping[str, int],
    aggregator: Aggregator,
    timeout: float,
    save: Callable[[Checkpoint], object],
    shown: Shown,
) -> Joined:
    """The round after ``now``; QuorumError where too few sites give a usable update.

    Charged steps of one round are asked for once, as in secure sums: each order follows from the
    answers to the one before, and who answers may be others the second time.
    """
    number, control = now.round + 1, scaffold.control_of(now, config)
    ordered = partial(
        make_orders, run=run, round=number, config=config, plans=plans, sizes=sizes, control=control
    )
    asking = partial(
        ask,
        grid=grid,
        roll=roll,
        max_norm=config.aggregation.max_update_norm,
        timeout=timeout,
    )
    if config.privacy.trust == Trust.SERVER:
        orders = central.drawn(ordered(now.state), config, round=number)
        asked = asking(orders, shown=shown)
        _require_answers(config, number, len(orders), len(plans), asked)
        return central.joined(
            now,
            asked.replies,
            asked.told,
            run=run,
            config=config,
            plan=next(iter(plans.values())),
            bytes_down=asked.bytes_down,
            training=asked.seconds,
        )
    begun = _begun(now)
    if RULES[config.aggregation.rule].gradient:
        charged = config.privacy.trust == Trust.SITE
        if now.begun > now.round:
            return lost(now, plans)
        for step in range(steps_of_round(config)):
            if charged:
                told = {"charges": begun.charges, "refusals": begun.refusals}
                save(replace(now, begun=number, **told))
            optimizer = round_optimizer(config, round=number, step=step)
            own = make_aggregator(config.aggregation, seed=config.seed, optimizer=optimizer)
            orders = ordered(begun.state)
            steps = {k: step_of_round(order, config, step) for k, order in orders.items()}
            asked = asking(steps, shown=replace(shown, charges=begun.charges))
            begun = _with_step(begun, asked, config, number, own)
        return begun
    orders = ordered(now.state)
    asked = asking(orders, shown=shown)
    joined = _with_step(begun, asked, config, number, aggregator)
    accepted = asked.replies.accepted
    if control is not None:
        memory = scaffold.moved(joined.agg, now.agg, control, accepted, orders, len(plans))
        joined = replace(joined, agg=memory)
    bias = measured_bias(config, now.state, accepted, after=joined.state)
    return replace(joined, bias=bias)


def _begun(now: Checkpoint) -> Joined:
    return Joined(
        state=now.state,
        agg=now.agg,
        rejected={},
        noise={},
        charges=now.charges,
        refusals=now.refusals,
        bytes_down=0,
        bytes_up=0,
        seconds={"training": 0.0, "aggregation": 0.0},
        accepted=(),
        exchanges=0,
    )


def _with_step(
    before: Joined, asked: Asked, config: RunConfig, number: int, aggregator: Aggregator
) -> Joined:
    """What one exchange makes of the round so far."""
    began, replies = time.perf_counter(), asked.replies
    require_quorum(config, number, len(replies.accepted), asked.told, replies.refusals)
    for site, reason in asked.told.items():
        of = {"site": site}
        log.warning("round %d goes on without %s: %s", number, site, reason, extra=of)
    memory, state = aggregator.apply(before.agg, before.state, replies.accepted)
    noise = {update.site: update.noise[:200] for update in replies.accepted}
    accepted = sorted({*before.accepted, *noise})
    told = {**before.rejected, **asked.told}
    return Joined(
        state=state,
        agg=memory,
        rejected={site: why for site, why in told.items() if site not in accepted},
        noise={**before.noise, **noise},
        charges=appended_charges(before.charges, replies.charges),
        refusals=appended(before.refusals, replies.refusals),
        bytes_down=before.bytes_down + asked.bytes_down,
        bytes_up=before.bytes_up + replies.num_bytes,
        seconds={
            "training": before.seconds["training"] + asked.seconds,
            "aggregation": before.seconds["aggregation"] + time.perf_counter() - began,
        },
        accepted=tuple(accepted),
        exchanges=before.exchanges + 1,
    )


def _require_answers(
    config: RunConfig, number: int, num_asked: int, num_clients: int, asked: Asked
) -> None:
    """The quorum where clients are drawn: as many as that must not be known to fail.

    Nobody drawn is a round like any other: that it is skipped would tell.
    """
    failing, reasons = num_asked - len(asked.replies.accepted), asked.told
    if central.secret_draws(config):  # by reason: an order by name would tell of names
        reasons = {
            f"{central.UNNAMED} ({place} of {len(reasons)})": why
            for place, why in enumerate(sorted(reasons.values()), start=1)
        }
    usable = 0 if 0 < num_asked == failing else num_clients - failing
    require_quorum(config, number, usable, reasons)


def require_quorum(
    config: RunConfig,
    number: int,
    accepted: int,
    reasons: Mapping[str, str],
    refusals: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
) -> None:
    """QuorumError, with each site's reason, where fewer than the quorum gave a usable update."""
    quorum = config.simulation.quorum
    if accepted >= quorum:
        return
    spent = any(row["code"] == BudgetExceededError.code for row in refusals.values())
    error = QuorumError(
        f"too few usable updates in round {number}\n"
        + "\n".join(f"  {site}: {reason}" for site, reason in reasons.items()),
        given=f"{accepted} usable",
        expected=f"at least {quorum} (simulation.quorum)",
        remedy="--resume goes on only once the sites' policies allow more; else begin anew "
        + (f"with train.rounds = {number - 1} or " if number > 1 else "")
        + "with less to spend, in another folder: what was spent is spent"
        if spent
        else "mend the sites and run again with --resume; where the settings are at fault, "
        "change them and begin anew, with --overwrite or in another folder",
    )
    error.refusals = refusals
    raise error
