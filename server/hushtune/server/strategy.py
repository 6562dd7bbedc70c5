"""The one strategy: a plain loop over rounds that any aggregator fits, with resume and quorum.

A round is ``checkpoint -> orders -> replies -> next checkpoint``; nothing is kept anywhere else, so
a run that goes on from its checkpoint is the run that was never stopped. Nothing depends on the
clock, on the order of arrival or on global random state.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, NoReturn, final

from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from flwr.serverapp import Grid
from flwr.serverapp.strategy import Result, Strategy

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError, FederationError, MessageError
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.stopping import best_round, chosen_by, is_judged, is_over
from hushtune.server import checkpoint as storage
from hushtune.server.aggregation.aggregator import Aggregator
from hushtune.server.aggregation.guards import unguarded
from hushtune.server.chains import heads_before, note_heads
from hushtune.server.checkpoint import Checkpoint, Row
from hushtune.server.federation import Federation
from hushtune.server.roll_call import RollCall, call_roll

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class RoundResult:
    """A round that is over: its model (``Checkpoint.shown``), and its row of the history so far."""

    run: str
    round: int
    state: AdapterState
    row: Row


@dataclass(frozen=True, kw_only=True)
class FederationResult:
    """A federation that is over.

    ``run`` is its name in messages and ledgers; ``state`` its model (``Checkpoint.final``);
    ``history`` has a row a round; ``charges`` the ledger entries that each site has shown, those
    of rejected updates included; ``refusals`` for each site the rounds that it refused, with code
    and reason (a site is asked again in every round); ``seconds`` the time of this call by
    activity; ``ledger`` the server's own charges, where the noise is added there.
    """

    run: str
    state: AdapterState
    history: tuple[Row, ...]
    charges: Mapping[str, tuple[Row, ...]]
    refusals: Mapping[str, tuple[Row, ...]]
    seconds: Mapping[str, float]
    ledger: tuple[Row, ...] = ()


OnRound = Callable[[RoundResult], Mapping[str, Any]]


@final
class FederatedStrategy(Strategy):
    """Federates one run over a Flower grid.

    Args:
        run: the run's name, the same when it is resumed.
        config: what to do; its hash is ``config_hash``.
        plans: the privacy plan of each site; its keys are the sites of the run.
        sizes: the declared public number of training examples of each site.
        aggregator: joins the updates of a round.
        checkpoint_dir: where the checkpoint is kept; None keeps none.
        on_round: called after each round, before its checkpoint; what it returns joins the row.
        timeout: seconds that sites have to answer a round; those that do not are left out of it.
        connect_timeout: seconds to wait for all sites to be there before the first round.
        roll: which sites are there, asked before each round; None calls the roll once.
        heads: the folder in which the last charge that each site has shown is kept for later runs;
            None looks at this run alone.
    """

    def __init__(
        self,
        *,
        run: str,
        config: RunConfig,
        config_hash: str,
        plans: Mapping[str, PrivacyPlan],
        sizes: Mapping[str, int],
        aggregator: Aggregator,
        checkpoint_dir: Path | None = None,
        on_round: OnRound | None = None,
        timeout: float = 3600.0,
        connect_timeout: float = 120.0,
        roll: Callable[[Grid], RollCall] | None = None,
        heads: Path | None = None,
    ) -> None:
        self._federation = Federation(
            run=run,
            config=config,
            config_hash=config_hash,
            plans={site: plans[site] for site in sorted(plans)},
            sizes=sizes,
            aggregator=aggregator,
        )
        self._folder = checkpoint_dir
        self._on_round = on_round
        self._timeout = timeout
        self._connect_timeout = connect_timeout
        self._roll, self._heads = roll, heads

    def run(
        self, grid: Grid, initial: AdapterState, *, resume: Checkpoint | None = None
    ) -> FederationResult:
        """All rounds, or those after ``resume``, from the complete state ``initial``.

        Raises QuorumError where too few sites give a usable update, CheckpointError where
        ``resume`` is of another run, and FederationError; KeyboardInterrupt passes through. In each
        case the checkpoint of the last complete round (0 before the first) stays.
        """
        began = time.perf_counter()
        if self._heads is not None:
            name, resumed = self._federation.run, resume is not None
            known = heads_before(self._heads, name, resumed=resumed)
            self._federation = replace(self._federation, heads=known)
        federation = self._federation
        self._check_judge()
        now = federation.fresh(initial) if resume is None else federation.checked(resume, initial)
        saving = self._save(now) if resume is None else 0.0
        seconds = {"training": 0.0, "aggregation": 0.0, "evaluation": 0.0, "checkpoint": saving}
        rounds = federation.config.train.rounds
        if now.round < rounds:
            guard = unguarded(federation.config.aggregation, federation.updates_a_round)
            if guard is not None:
                log.warning("%s; %s", guard.message, guard.remedy)
            roll: RollCall | None = None
            for _ in range(now.round, rounds):
                if is_over(now.history, federation.config):
                    break
                if roll is None or self._roll is not None:
                    roll = self._called(grid)
                now = federation.next_round(
                    now, grid, roll, timeout=self._timeout, saved_in=saving, save=self._save
                )
                if federation.at_server:  # its charge is durable before anybody looks at the model
                    seconds["checkpoint"] += self._save(now)
                evaluating = time.perf_counter()
                now = self._told(now)
                seconds["evaluation"] += time.perf_counter() - evaluating
                saving = self._save(now)
                seconds["checkpoint"] += saving
                for name in ("training", "aggregation"):
                    seconds[name] += now.history[-1]["seconds"][name]
        for site, rows in now.refusals.items():
            words, of = "site %s refused %d rounds: %s", {"site": site}
            log.warning(words, site, len(rows), rows[-1]["reason"], extra=of)
        seconds["total"] = time.perf_counter() - began
        return FederationResult(
            run=now.run,
            state=now.final,
            history=now.history,
            charges=now.charges,
            refusals=now.refusals,
            seconds=seconds,
            ledger=now.ledger,
        )

    def _check_judge(self) -> None:
        """ConfigError where a run is to be judged by figures that nobody has."""
        config = self._federation.config
        if is_judged(config) and chosen_by(config) == "researcher" and self._on_round is None:
            raise ConfigError(
                "nobody can tell when to stop, or which round is best: this server has no rows, "
                "and no site tells figures with noise",
                given="train.patience" if config.train.patience is not None else "train.keep",
                expected='metrics.release = "noised", or hushtune simulate',
                remedy='set metrics.release = "noised", or leave train.patience and train.keep out',
            )

    def _called(self, grid: Grid) -> RollCall:
        if self._roll is not None:
            return self._roll(grid)
        return call_roll(
            grid,
            self._federation.plans,
            quorum=self._federation.config.simulation.quorum,
            connect_timeout=self._connect_timeout,
            answer_timeout=self._timeout,
        )

    def _told(self, now: Checkpoint) -> Checkpoint:
        """The checkpoint with what ``on_round`` adds to the last row."""
        if self._on_round is None:
            return self._with_best(now)
        row = now.history[-1]
        extra = self._on_round(RoundResult(run=now.run, round=now.round, state=now.shown, row=row))
        return self._with_best(replace(now, history=(*now.history[:-1], {**row, **extra})))

    def _with_best(self, now: Checkpoint) -> Checkpoint:
        """With the round's model kept where it is the best so far."""
        config = self._federation.config
        is_best = config.train.keep == "best" and best_round(now.history, config) == now.round
        return replace(now, best=now.shown) if is_best else now

    def _save(self, now: Checkpoint) -> float:
        began = time.perf_counter()
        if self._folder is not None:
            storage.save(self._folder, now)
        if self._heads is not None:
            note_heads(self._heads, now.run, now.charges, self._federation.heads)
        return time.perf_counter() - began

    # ------------------------------------------------------------- Flower's own interface ----

    def start(
        self,
        grid: Grid,
        initial_arrays: ArrayRecord,
        num_rounds: int = 0,
        timeout: float = 0.0,
        train_config: ConfigRecord | None = None,
        evaluate_config: ConfigRecord | None = None,
        evaluate_fn: Callable[[int, ArrayRecord], MetricRecord | None] | None = None,
    ) -> Result:
        """``run`` behind Flower's signature, on the arrays of ``to_arrays``.

        The run's configuration says how to train, for how long, and who evaluates: anything else
        given here raises ConfigError, since ignoring it would mislead.
        """
        given = {
            "num_rounds": num_rounds not in (0, self._federation.config.train.rounds),
            "timeout": timeout not in (0.0, self._timeout),
            "train_config": train_config is not None,
            "evaluate_config": evaluate_config is not None,
            "evaluate_fn": evaluate_fn is not None,
        }
        if any(given.values()):
            raise ConfigError(
                "the run's configuration decides this, not the call of start()",
                given=", ".join(name for name, set_here in given.items() if set_here),
                remedy="set it in the configuration, or where the strategy is made",
            )
        return Result(arrays=to_arrays(self.run(grid, from_arrays(initial_arrays)).state))

    def summary(self) -> None:
        """Log what will happen."""
        federation = self._federation
        sites = ", ".join(federation.plans)
        log.info("run %s: %d rounds at %s", federation.run, federation.config.train.rounds, sites)

    def configure_train(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """Closed: Flower's loop has no place for a checkpoint, a plan or a quorum; see ``run``."""
        _closed("configure_train")

    def aggregate_train(
        self, server_round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        """Closed: updates cannot be checked without the orders they answer; see ``run``."""
        _closed("aggregate_train")

    def configure_evaluate(
        self, server_round: int, arrays: ArrayRecord, config: ConfigRecord, grid: Grid
    ) -> Iterable[Message]:
        """No messages: ``run`` asks for metrics where the configuration says so, and plans them."""
        return []

    def aggregate_evaluate(
        self, server_round: int, replies: Iterable[Message]
    ) -> MetricRecord | None:
        """Nothing: see ``configure_evaluate``."""
        return None


def to_arrays(state: AdapterState) -> ArrayRecord:
    """A state as Flower arrays, for ``start``."""
    data = state.to_bytes()
    array = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
    return ArrayRecord({"adapter": array})


def from_arrays(arrays: ArrayRecord) -> AdapterState:
    """Inverse of ``to_arrays``; raises MessageError for anything else."""
    if "adapter" not in arrays:
        raise MessageError("these arrays hold no adapter", given=", ".join(arrays)[:200])
    return AdapterState.from_bytes(arrays["adapter"].data)


def _closed(hook: str) -> NoReturn:
    raise FederationError(
        f"{hook} is closed: rounds are driven by FederatedStrategy.run",
        remedy="call run(), or Flower's start(), which calls it",
    )
