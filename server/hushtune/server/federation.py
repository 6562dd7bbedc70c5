"""A federation of one run, and the step from one round's checkpoint to the next one's."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import (
    CheckpointError,
    ConfigError,
    FederationError,
)
from hushtune.common.planning import cohort_of, metrics_rounds
from hushtune.common.privacy.plan import PrivacyPlan, Trust
from hushtune.server import central, distributed, personal, plain
from hushtune.server.aggregation import averaging
from hushtune.server.aggregation.aggregator import Aggregator, check_estimate
from hushtune.server.aggregation.central_dp import Memory
from hushtune.server.chains import Head, Heads, Shown
from hushtune.server.checkpoint import Checkpoint, Row
from hushtune.server.joined import Joined
from hushtune.server.metrics import ask_for_metrics
from hushtune.server.orders import is_warmup, trainable_of
from hushtune.server.roll_call import RollCall
from hushtune.server.spending import appended, appended_charges, spent
from hushtune.server.steps import steps_of_round

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What stays the same through a run; ``plans`` and ``sizes`` have the run's sites as keys.

    ``heads``: the last charge that each site had shown when the run began.

    Raises ConfigError where they differ, or where a round asks for more sites than there are.
    """

    run: str
    config: RunConfig
    config_hash: str
    plans: Mapping[str, PrivacyPlan]
    sizes: Mapping[str, int]
    aggregator: Aggregator
    heads: Heads = field(default_factory=dict[str, Head])

    def __post_init__(self) -> None:
        check_sites(self.config, self.plans, self.sizes)

    def fresh(self, initial: AdapterState) -> Checkpoint:
        """The checkpoint before the first round; FederationError unless ``initial`` is whole."""
        if not initial.is_whole():
            raise FederationError("a federation starts from a complete adapter")
        return Checkpoint(
            run=self.run,
            round=0,
            config_hash=self.config_hash,
            state=initial,
            agg=self.aggregator.init(initial),
            history=(),
            charges={},
            refusals={},
            central=Memory(clip_norm=next(iter(self.plans.values())).clip_norm)
            if self.at_server
            else None,
        )

    @property
    def updates_a_round(self) -> int:
        """The updates of a round in which every site answers that is asked."""
        return self.config.simulation.sites_per_round or len(self.plans)

    @property
    def is_distributed(self) -> bool:
        """Whether the sites' answers are joined by secure sums."""
        return self.config.privacy.trust == Trust.DISTRIBUTED

    @property
    def at_server(self) -> bool:
        """Whether the server adds the noise, and has to charge what it releases."""
        return self.config.privacy.trust == Trust.SERVER

    def checked(self, resume: Checkpoint, initial: AdapterState) -> Checkpoint:
        """``resume`` itself; CheckpointError where it is of another run, setting or adapter."""
        pairs = {
            "configuration": (resume.config_hash, self.config_hash),
            "run": (resume.run, self.run),
            "adapter": (resume.state.spec, initial.spec),
        }
        for name, (given, expected) in pairs.items():
            if given != expected:
                raise CheckpointError(
                    f"the checkpoint is of another {name}", given=given, expected=expected
                )
        return resume

    def next_round(
        self,
        now: Checkpoint,
        grid: Grid,
        roll: RollCall,
        *,
        timeout: float,
        saved_in: float,
        save: Callable[[Checkpoint], object],
    ) -> Checkpoint:
        """One exchange with the sites, joined into the next checkpoint, which is not saved yet.

        ``saved_in``: seconds that saving ``now`` took, for the new row; ``save`` makes a checkpoint
        durable before steps are asked for that must not be asked for twice. Raises QuorumError with
        each site's reason, and FederationError where the new adapter is not finite.
        """
        number = now.round + 1
        joined = self._exchange(now, grid, roll, timeout=timeout, save=save)
        state = joined.state
        if not state.is_finite():
            raise FederationError(
                f"the global adapter is not finite after round {number}",
                remedy="lower the learning rates or aggregation.max_update_norm",
            )
        agg = averaging.follow(
            now.agg,
            joined.agg,
            state,
            trained=trainable_of(self.config, state.spec, round=number),
            decay=self.config.aggregation.average,
        )
        charges, refusals = joined.charges, joined.refusals
        kept: Row | None = None
        if personal.is_due(self.config, number):
            asked = personal.exchange(
                averaging.shown(agg, state),
                grid,
                roll,
                run=self.run,
                round=number,
                config=self.config,
                plans=self.plans,
                sizes=self.sizes,
                timeout=timeout,
                shown=Shown(charges, self.heads),
            )
            charges = appended_charges(charges, asked.replies.charges)
            refusals = appended(refusals, asked.replies.refusals)
            kept = {
                "trained": [update.site for update in asked.replies.accepted],
                "missing": dict(asked.told),
            }
        released = None
        if number in metrics_rounds(self.config):
            released = ask_for_metrics(
                grid,
                averaging.shown(agg, state),
                run=self.run,
                round=number,
                config=self.config,
                nodes=roll.nodes,
                timeout=timeout,
                shown=Shown(charges, self.heads),
            )
            charges = appended_charges(charges, released.charges)
            refusals = appended(refusals, released.refusals)
        steps = steps_of_round(self.config)
        row: Row = {
            "round": number,
            "phase": "warmup" if is_warmup(self.config, number) else "adapter",
            "accepted": list(joined.accepted),
            "rejected": dict(joined.rejected),
            "update_norm": (state.adapter_part() - now.state.adapter_part()).norm(),
            **({} if joined.bias is None else {"aggregation_bias": dict(joined.bias)}),
            "bytes_down": joined.bytes_down,
            "bytes_up": joined.bytes_up,
            "exchanges": joined.exchanges,
            **({} if kept is None else {"personal": kept}),
            "bytes_per_step": round((joined.bytes_down + joined.bytes_up) / steps),
            "exchanges_per_step": joined.exchanges / steps,
            **({} if released is None else {"released": released.row}),
            "epsilon": central.spent_on_clients(self.plans, joined.ledger)
            if self.at_server
            else spent(self.plans, charges),
            **({} if now.central is None else {"clip_norm": now.central.clip_norm}),
            "noise": dict(joined.noise),
            "seconds": {
                **joined.seconds,
                "checkpoint": saved_in,  # of the save before: a row cannot hold its own
            },
        }
        return replace(
            now,
            round=number,
            state=state,
            agg=agg,
            history=(*now.history, row),
            charges=charges,
            refusals=refusals,
            central=joined.central,
            ledger=joined.ledger,
        )

    def _exchange(
        self,
        now: Checkpoint,
        grid: Grid,
        roll: RollCall,
        *,
        timeout: float,
        save: Callable[[Checkpoint], object],
    ) -> Joined:
        """Orders to the sites, and what their updates make of the checkpoint's adapter."""
        if self.is_distributed:
            return distributed.exchange(
                now,
                grid,
                roll,
                run=self.run,
                config=self.config,
                plans=self.plans,
                sizes=self.sizes,
                timeout=timeout,
                save=save,
                shown=Shown(now.charges, self.heads),
            )
        return plain.exchange(
            now,
            grid,
            roll,
            run=self.run,
            config=self.config,
            plans=self.plans,
            sizes=self.sizes,
            aggregator=self.aggregator,
            timeout=timeout,
            save=save,
            shown=Shown(now.charges, self.heads),
        )


def check_sites(
    config: RunConfig, plans: Mapping[str, PrivacyPlan], sizes: Mapping[str, int]
) -> None:
    simulation = config.simulation
    if config.privacy.trust == Trust.DISTRIBUTED:
        cohort_of(config)
    if not plans or set(plans) != set(sizes):
        raise ConfigError(
            "each site needs a plan and a public size",
            given=f"plans of {', '.join(sorted(plans))}; sizes of {', '.join(sorted(sizes))}",
        )
    unknown = sorted(set(config.adapter.ranks) - set(plans))
    if unknown:
        raise ConfigError(
            "adapter.ranks names a site that the run does not have",
            given=", ".join(unknown),
            expected=", ".join(sorted(plans)),
            remedy="name only sites of the run in adapter.ranks",
        )
    for key, given in (
        ("quorum", simulation.quorum),
        ("sites_per_round", simulation.sites_per_round),
    ):
        if given > len(plans):
            raise ConfigError(
                f"simulation.{key} is larger than the number of sites",
                given=given,
                expected=f"at most {len(plans)}",
                remedy=f"lower simulation.{key}, or have more sites",
            )
    check_estimate(config.aggregation, simulation.sites_per_round or len(plans))
