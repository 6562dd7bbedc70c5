"""One federation as it is audited: the real apps in this process, in a folder that is thrown away.

Its ledgers are its own and empty: an audit charges no budget that outlives it.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flwr.app import Context, Message
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid

from hushtune.client.app import app as client_app
from hushtune.client.site import close_sites, simulated_ledger
from hushtune.common.adapter import AdapterState
from hushtune.common.config import PersonalConfig, RunConfig, SimulationConfig
from hushtune.common.config_augment import AugmentConfig
from hushtune.common.errors import ConfigError
from hushtune.common.messages import ClientUpdate, RoundOrder, decode_order, decode_reply
from hushtune.common.planning import head_only
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import Trust, Unit
from hushtune.common.run_context import RunContext, run_config
from hushtune.common.tasks.workspace import Workspace, resolve
from hushtune.server.app import federate
from hushtune.server.strategy import FederationResult, RoundResult
from hushtune.simulations import engine
from hushtune.simulations.audit.curves import Claim, Events

OnUpdate = Callable[[RoundOrder, ClientUpdate], None]


def audited(config: RunConfig) -> RunConfig:
    """The run that an audit trains in place of a configuration's: the same sampling, clipping,
    noise, steps and sites, of the head alone on frozen features.

    Raises ConfigError where nothing is promised, or not by what an audit looks at.
    """
    trust = Trust(config.privacy.trust)
    if trust is Trust.OFF:
        raise ConfigError(
            "there is no claim to audit: the run has no privacy",
            given="privacy.trust = off",
            expected="a run that claims an epsilon",
            remedy="--set privacy.trust=site",
        )
    if trust is Trust.DISTRIBUTED:
        raise ConfigError(
            "an audit looks at what each site or a trusted server releases, not at secure sums",
            given="privacy.trust = distributed",
            expected="site, or server",
            remedy="--set privacy.trust=site: the same clipping and accounting, with noise at each "
            "site",
        )
    if config.data.source == "sites":
        raise ConfigError(
            "an audit trains the run again, which needs the sites' rows",
            given="data.source = sites",
            expected="a simulation's configuration",
            remedy="audit a simulation with the same [privacy] and [train]",
        )
    # No claim depends on the quorum, and clients that a coin leaves out never answer.
    simulation = SimulationConfig().model_copy(
        update={"sites_per_round": config.simulation.sites_per_round}
    )
    # A run that ended early would be charged for less than its plan says.
    train = config.train.model_copy(update={"patience": None, "keep": "last"})
    update = {
        "simulation": simulation,
        "train": train,
        "personal": PersonalConfig(),
        "augment": AugmentConfig(),
    }
    return resolve(head_only(config.model_copy(update=update)))


@dataclass(frozen=True)
class Trained:
    """A federation that is over: its result, and what each site's own ledger says was charged."""

    result: FederationResult
    ledgers: tuple[Events, ...]


def federated(
    config: RunConfig,
    workspace: Workspace,
    *,
    app: ClientApp = client_app,
    on_round: Callable[[RoundResult], None] | None = None,
) -> Trained:
    """Run a whole federation of the configuration; its folder is gone afterwards.

    ``on_round`` hears of each round's model.
    """

    def told(result: RoundResult) -> dict[str, object]:
        if on_round is not None:
            on_round(result)
        return {}

    results: list[FederationResult] = []
    ledgers: list[Events] = []
    with tempfile.TemporaryDirectory(prefix="hushtune-audit-") as folder:
        context = RunContext(config, Path(folder))

        def serve(grid: Grid) -> None:
            results.append(federate(context, grid, initial=workspace.initial_state, on_round=told))

        close_sites()
        try:
            engine.run_in_process(
                serve,
                app,
                num_sites=len(config.data.public_sizes),
                run_config=run_config(config, context.out),
            )
            if Unit(config.privacy.unit) is not Unit.CLIENT:
                paths = (simulated_ledger(context, site) for site in config.data.public_sizes)
                ledgers += [tuple(e.release for e in Ledger(path).entries()) for path in paths]
        finally:
            close_sites()
    return Trained(results[0], tuple(ledgers))


def watched(hear: OnUpdate) -> ClientApp:
    """The real app; ``hear`` gets each order with the update that answered it."""

    def call(message: Message, context: Context) -> Message:
        reply = client_app(message, context)
        if message.metadata.message_type.startswith("train") and not reply.has_error():
            update = decode_reply(reply.content)
            if isinstance(update, ClientUpdate):
                hear(decode_order(message.content), update)
        return reply

    return engine.around(call)


def claimed(config: RunConfig, trained: Trained) -> Claim:
    """What the run's charges claim: as the server knows them, or, where that is less, by the sites'
    own ledgers."""
    if Unit(config.privacy.unit) is Unit.CLIENT:
        charges = [trained.result.ledger]
    else:
        charges = list(trained.result.charges.values())
    known = [tuple(LedgerEntry.from_dict(row).release for row in rows) for rows in charges]
    claims = [_claim(config, sites) for sites in (known, trained.ledgers) if sites]
    return claims[0] if len(set(claims)) == 1 else min(claims, key=Claim.epsilon)


def _claim(config: RunConfig, sites: Sequence[Events]) -> Claim:
    return Claim(tuple(sorted(set(sites), key=repr)), config.privacy.delta)


def after(order: RoundOrder, update: ClientUpdate) -> AdapterState:
    """The adapter that an update makes of the order's."""
    delta = update.delta
    return order.adapter.merge(order.adapter.select(delta.keys) + delta)
