"""A round under trust = server: who is drawn, what is released, and the server's own charges."""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Mapping, Sequence

import numpy as np

from hushtune.common import seeds
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.lora_rules import RULES, sent_keys
from hushtune.common.messages import ClientUpdate, RoundOrder
from hushtune.common.privacy import correlated
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Unit
from hushtune.server.aggregation.central_dp import Mechanism, Memory, private_mean
from hushtune.server.aggregation.lora_rules import SERVER_RULES
from hushtune.server.aggregation.optimizers import AggState
from hushtune.server.checkpoint import Checkpoint, Row
from hushtune.server.joined import Joined
from hushtune.server.orders import trainable_of
from hushtune.server.replies import Replies
from hushtune.server.spending import appended
from hushtune.server.steps import round_optimizer

log = logging.getLogger(__name__)

SERVER = "the server"
"""What the server is called where others are called by a site's name."""
UNNAMED = "a client that was drawn"
"""What a client is called where it must not be known which ones were drawn."""


def mechanism(config: RunConfig, plan: PrivacyPlan) -> Mechanism:
    """What the server does in each round; ``plan`` is the one plan of all clients."""
    privacy, rounds = config.privacy, config.train.rounds
    factors, reach = (1.0,), 1.0
    if privacy.client_turns is not None:
        every = privacy.client_turns
        band = correlated.best_band(rounds=rounds, every=every)
        factors = tuple(correlated.coefficients(band).tolist())
        reach = correlated.sensitivity(band, rounds=rounds, every=every)
    return Mechanism(
        noise_multiplier=plan.noise_multiplier,
        denominator=plan.denominator,
        quantile=privacy.clipping_quantile if privacy.adaptive_clipping else None,
        rate=privacy.clipping_rate,
        coefficients=factors,
        sensitivity=reach,
    )


def secret_draws(config: RunConfig) -> bool:
    """Whether who takes part in a round must not become known: the accounting counts on it."""
    return config.privacy.client_sampling_probability < 1


def drawn(
    orders: Mapping[str, RoundOrder], config: RunConfig, *, round: int
) -> dict[str, RoundOrder]:
    """The orders of the clients that are drawn: each by itself, with the public probability.

    From the operating system's entropy, anew for a round that is begun again.
    """
    privacy = config.privacy
    if not secret_draws(config):
        return dict(orders)
    seeded = seeds.fold(config.seed, "clients", round)
    random = np.random.default_rng(
        seeded if privacy.insecure_seeded_noise else secrets.randbits(256)
    )
    chosen = random.random(len(orders)) < privacy.client_sampling_probability
    return {site: orders[site] for site, taken in zip(sorted(orders), chosen, strict=True) if taken}


def noise_source(config: RunConfig, *, round: int) -> NoiseSource:
    """Of a round: secure, unless the run says that it is not."""
    if config.privacy.insecure_seeded_noise:
        return NoiseSource.insecure(seeds.fold(config.seed, "noise of the server", round))
    return NoiseSource()


def release(
    now: Checkpoint,
    updates: Sequence[ClientUpdate],
    *,
    config: RunConfig,
    plan: PrivacyPlan,
    noise: NoiseSource,
) -> tuple[AggState, AdapterState, Memory]:
    """The next state from a round's updates, none of which has an influence beyond the noise."""
    assert now.central is not None
    number, spec = now.round + 1, now.state.spec
    name = config.aggregation.rule
    sent = sent_keys(RULES[name], spec, trainable_of(config, spec, round=number))
    mean, memory = private_mean(
        updates,
        like=now.state.select(sent),
        memory=now.central,
        mechanism=mechanism(config, plan),
        noise=noise,
    )
    if number == config.train.rounds:  # no later round takes any of it back
        memory = Memory(clip_norm=memory.clip_norm)
    optimizer = round_optimizer(config, round=number)
    agg, state = optimizer.apply(now.agg, now.state, mean)
    return agg, SERVER_RULES[name].finish(state), memory


def charged(
    ledger: tuple[Row, ...], plan: PrivacyPlan, *, config: RunConfig, run: str, round: int
) -> tuple[Row, ...]:
    """The server's charges with those of a round; of clients that take turns, one for the run."""
    if config.privacy.client_turns is not None and ledger:
        return ledger
    last = LedgerEntry.from_dict(ledger[-1]) if ledger else None
    entry = LedgerEntry.after(
        0 if last is None else last.sequence,
        GENESIS if last is None else last.hash,
        dataset=f"{len(config.data.public_sizes)} clients",
        run=run,
        round=round,
        unit=str(Unit.CLIENT),
        event=plan.event(1),
    )
    return (*ledger, entry.to_dict())


def spent_on_clients(
    plans: Mapping[str, PrivacyPlan], ledger: Sequence[Row]
) -> dict[str, float | None]:
    """Epsilon by the server's charges, which is the same for every client."""
    from hushtune.common.privacy.accountant import epsilon  # takes a second to import

    plan = next(iter(plans.values()))
    events = [LedgerEntry.from_dict(row).event for row in ledger]
    return dict.fromkeys(plans, epsilon(events, delta=plan.delta, relation=plan.relation))


def joined(
    now: Checkpoint,
    replies: Replies,
    told: Mapping[str, str],
    *,
    run: str,
    config: RunConfig,
    plan: PrivacyPlan,
    bytes_down: int,
    training: float,
) -> Joined:
    """A round's new state and the charge that goes with it; ``told`` says who is not in it and why.

    Where who was drawn is a secret, nothing that is kept or said tells it.
    """
    began, number, hidden = time.perf_counter(), now.round + 1, secret_draws(config)
    for site, reason in told.items():
        who = UNNAMED if hidden else site
        of = {"site": None if hidden else site}
        log.warning("round %d goes on without %s: %s", number, who, reason, extra=of)
    noise = noise_source(config, round=number)
    agg, state, memory = release(now, replies.accepted, config=config, plan=plan, noise=noise)
    return Joined(
        state=state,
        agg=agg,
        accepted=() if hidden else tuple(update.site for update in replies.accepted),
        rejected={} if hidden else told,
        noise={SERVER: noise.description},
        charges=now.charges,
        refusals=now.refusals if hidden else appended(now.refusals, replies.refusals),
        bytes_down=0 if hidden else bytes_down,
        bytes_up=0 if hidden else replies.num_bytes,
        seconds={"training": training, "aggregation": time.perf_counter() - began},
        central=memory,
        ledger=charged(now.ledger, plan, config=config, run=run, round=number),
    )
