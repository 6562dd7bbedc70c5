"""A federation of one run, and the step from one round's checkpoint to the next one's."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from types import MappingProxyType
from typing import Any

from flwr.app import Message
from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import (
    BudgetExceededError,
    CheckpointError,
    ConfigError,
    FederationError,
    QuorumError,
)
from hushtune.common.messages import encode_order
from hushtune.common.planning import cohort_of, metrics_rounds
from hushtune.common.privacy.plan import PrivacyPlan, Trust
from hushtune.server import central, distributed
from hushtune.server.aggregation.aggregator import Aggregator
from hushtune.server.aggregation.central_dp import Memory
from hushtune.server.checkpoint import Checkpoint, Row
from hushtune.server.joined import Joined
from hushtune.server.metrics import ask_for_metrics
from hushtune.server.orders import is_warmup, make_orders
from hushtune.server.replies import content_bytes, read_replies
from hushtune.server.roll_call import RollCall
from hushtune.server.spending import appended, appended_charges, spent

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Federation:
    """What stays the same through a run; ``plans`` and ``sizes`` have the run's sites as keys.

    Raises ConfigError where they differ, or where a round asks for more sites than there are.
    """

    run: str
    config: RunConfig
    config_hash: str
    plans: Mapping[str, PrivacyPlan]
    sizes: Mapping[str, int]
    aggregator: Aggregator

    def __post_init__(self) -> None:
        check_sites(self.config, self.plans, self.sizes)

    def fresh(self, initial: AdapterState) -> Checkpoint:
        """The checkpoint before the first round; FederationError unless ``initial`` is whole."""
        if initial.keys != initial.spec.all_keys():
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
        charges, refusals = joined.charges, joined.refusals
        released = None
        if number in metrics_rounds(self.config):
            released = ask_for_metrics(
                grid,
                state,
                run=self.run,
                round=number,
                config=self.config,
                nodes=roll.nodes,
                timeout=timeout,
            )
            charges = appended_charges(charges, released.charges)
            refusals = appended(refusals, released.refusals)
        steps = distributed.steps_of_round(self.config)
        row: Row = {
            "round": number,
            "phase": "warmup" if is_warmup(self.config, number) else "adapter",
            "accepted": list(joined.accepted),
            "rejected": dict(joined.rejected),
            "update_norm": (state - now.state).norm(),
            "bytes_down": joined.bytes_down,
            "bytes_up": joined.bytes_up,
            "exchanges": joined.exchanges,
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
            agg=joined.agg,
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
            )
        began = time.perf_counter()
        number = now.round + 1
        orders = make_orders(
            now.state,
            run=self.run,
            round=number,
            config=self.config,
            plans=self.plans,
            sizes=self.sizes,
        )
        if self.at_server:
            orders = central.drawn(orders, self.config, round=number)
        messages = [
            Message(
                encode_order(order),
                dst_node_id=roll.nodes[site],
                message_type="train",
                group_id=str(number),
            )
            for site, order in orders.items()
            if site in roll.nodes
        ]
        answers = list(grid.send_and_receive(messages, timeout=timeout)) if messages else []
        trained = time.perf_counter()
        replies = read_replies(
            answers,
            orders=orders,
            nodes=roll.nodes,
            max_norm=self.config.aggregation.max_update_norm,
        )
        told = {site: roll.missing.get(site, why) for site, why in replies.rejected.items()}
        if self.at_server:
            self._require_answers(number, len(orders), len(replies.accepted), told)
            return central.joined(
                now,
                replies,
                told,
                run=self.run,
                config=self.config,
                plan=next(iter(self.plans.values())),
                bytes_down=sum(content_bytes(message.content) for message in messages),
                training=trained - began,
            )
        self._require_quorum(number, len(replies.accepted), told, replies.refusals)
        for site, reason in told.items():
            log.warning("round %d goes on without %s: %s", number, site, reason)
        memory, state = self.aggregator.apply(now.agg, now.state, replies.accepted)
        return Joined(
            state=state,
            agg=memory,
            rejected=told,
            noise={update.site: update.noise[:200] for update in replies.accepted},
            charges=appended_charges(now.charges, replies.charges),
            refusals=appended(now.refusals, replies.refusals),
            bytes_down=sum(content_bytes(message.content) for message in messages),
            bytes_up=replies.num_bytes,
            seconds={"training": trained - began, "aggregation": time.perf_counter() - trained},
            accepted=tuple(update.site for update in replies.accepted),
        )

    def _require_answers(
        self, number: int, asked: int, accepted: int, reasons: Mapping[str, str]
    ) -> None:
        """The quorum where clients are drawn: as many as that must not be known to fail.

        Nobody drawn is a round like any other: that it is skipped would tell.
        """
        failing = asked - accepted
        if central.secret_draws(self.config):  # by reason: an order by name would tell of names
            reasons = {
                f"{central.UNNAMED} ({place} of {len(reasons)})": why
                for place, why in enumerate(sorted(reasons.values()), start=1)
            }
        self._require_quorum(
            number, 0 if 0 < asked == failing else len(self.plans) - failing, reasons
        )

    def _require_quorum(
        self,
        number: int,
        accepted: int,
        reasons: Mapping[str, str],
        refusals: Mapping[str, Mapping[str, Any]] = MappingProxyType({}),
    ) -> None:
        quorum = self.config.simulation.quorum
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
    for key, given in (
        ("quorum", simulation.quorum),
        ("sites_per_round", simulation.sites_per_round),
    ):
        if given > len(plans):
            raise ConfigError(
                f"simulation.{key} is larger than the number of sites",
                given=given,
                expected=f"at most {len(plans)}",
            )
