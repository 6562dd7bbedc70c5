"""What sites train for themselves alone, asked for by the server and charged at each site.

Nothing of it is sent: a site's answer holds its charge, and an update over no tensors.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial

from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.lora_rules import RULES, all_trainable
from hushtune.common.messages import RoundOrder
from hushtune.common.planning import personal_charges
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.server.chains import Shown
from hushtune.server.orders import make_orders
from hushtune.server.plain import Asked, ask
from hushtune.server.roll_call import RollCall


def is_due(config: RunConfig, round: int) -> bool:
    """Whether sites train for themselves after a round."""
    return any(number == round for number, _ in personal_charges(config))


def exchange(
    state: AdapterState,
    grid: Grid,
    roll: RollCall,
    *,
    run: str,
    round: int,
    config: RunConfig,
    plans: Mapping[str, PrivacyPlan],
    sizes: Mapping[str, int],
    timeout: float,
    shown: Shown,
) -> Asked:
    """Ask every site to train for itself, beside or from the round's new global adapter."""
    everybody = config.simulation.model_copy(update={"sites_per_round": 0})
    orders = make_orders(
        state,
        run=run,
        round=round,
        config=config.model_copy(update={"simulation": everybody}),
        plans=plans,
        sizes=sizes,
    )
    own = partial(personal_order, config=config)
    return ask(
        {site: own(order) for site, order in orders.items()},
        grid=grid,
        roll=roll,
        max_norm=config.aggregation.max_update_norm,
        timeout=timeout,
        shown=shown,
    )


def personal_order(order: RoundOrder, *, config: RunConfig) -> RoundOrder:
    """A round's order as one for an adapter of the site's own.

    Ditto (2012.04221) draws it to the global adapter; fine-tuning begins there and goes on freely.
    Trained is what the rule trains in any round: of one that takes turns both factors at once,
    since turns keep an average exact, and here nothing is averaged.
    """
    personal, train = config.personal, config.train
    ditto = personal.method == "ditto"
    rate = train.learning_rate if personal.learning_rate is None else personal.learning_rate
    steps = train.local_steps if ditto else personal.steps
    return replace(
        order,
        personal=True,
        trainable=tuple(sorted(all_trainable(RULES[order.rule], order.adapter.spec))),
        local_steps=steps,
        training=replace(
            order.training,
            learning_rate=rate,
            schedule="constant",
            first_step=0,
            schedule_steps=steps,
            rate_warmup_steps=0,
            proximal=personal.proximal if ditto else 0.0,
        ),
    )
