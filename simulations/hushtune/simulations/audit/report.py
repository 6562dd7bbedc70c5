"""An audit as a whole: which games are played, and what comes of them."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError
from hushtune.common.kinds import KINDS
from hushtune.common.planning import charged_unit
from hushtune.common.privacy.plan import Relation, Unit
from hushtune.common.tasks.workspace import Workspace, open_workspace
from hushtune.simulations.audit import membership
from hushtune.simulations.audit.assess import assess
from hushtune.simulations.audit.bounds import CONFIDENCE
from hushtune.simulations.audit.clients import client_games
from hushtune.simulations.audit.curves import Claim
from hushtune.simulations.audit.federation import audited
from hushtune.simulations.audit.games import Seen, gradient_games, mislabelled_game
from hushtune.simulations.audit.wrap import Plant

CANARIES, SHADOWS, FEWEST_CANARIES, MOST_CANARIES = 2000, 8, 20, 200_000
OnStage = Callable[[str], None]


@dataclass(frozen=True)
class Audit:
    """``report`` is JSON-ready; ``attacks`` are what the picture shows."""

    report: Mapping[str, Any]
    attacks: tuple[membership.Attack, ...]


def audit(
    config: RunConfig,
    *,
    canaries: int = CANARIES,
    shadows: int = SHADOWS,
    seed: int = 0,
    plant: Plant | None = None,
    on_stage: OnStage = lambda stage: None,
) -> Audit:
    """Train a configuration's run again with canaries, and bound epsilon from below.

    ``canaries``: gradient canaries, or clients, at least so many; ``shadows``: models of LiRA, and
    no membership inference with 0. The ``seed`` draws canaries and coins; noise and batches are the
    product's own, which no seed repeats. Raises HushtuneErrors.
    """
    began = time.perf_counter()
    _check(canaries, shadows)
    run = audited(config)
    if plant is Plant.RESET_LEDGER and Unit(run.privacy.unit) is Unit.CLIENT:
        raise ConfigError(
            "where whole clients are protected no site has a ledger: the server charges itself",
            given=f"--plant {plant}",
            expected=f"--plant {Plant.RESET_ACCOUNTANT}, or another",
        )
    on_stage("looking at data and model")
    workspace = open_workspace(run)
    workspace.warm()
    seen, claim = _gradients_or_clients(run, workspace, canaries, seed, plant, on_stage)
    rows = [row for one in seen for row in assess(one, claim)]
    found: list[membership.Attack] = []
    if _has_rows_of_classes(run, workspace):
        on_stage("mislabelled canaries")
        natural, claim = mislabelled_game(run, workspace, canaries=canaries, seed=seed, fault=plant)
        rows += [row for one in natural for row in assess(one, claim)]
        if shadows:
            on_stage("membership inference")
            found = membership.attacks(run, workspace, shadows=shadows, seed=seed, fault=plant)
    first = rows[0]
    report = {
        "claimed": first.claimed,
        "lower_bound": first.lower_bound,
        "in_family": first.in_family,
        "refuted": first.refutes,
        "confidence": CONFIDENCE,
        "canaries": first.canaries,
        "method": first.method,
        "canary": first.canary,
        "observer": first.observer,
        "delta": run.privacy.delta,
        "unit": charged_unit(run),
        "relation": Relation.ADD_OR_REMOVE_ONE.value,
        "relation_of_run": run.privacy.relation,
        "trust": run.privacy.trust,
        "plant": None if plant is None else plant.value,
        "seed": seed,
        "rounds": run.train.rounds,
        "steps": run.train.rounds * run.train.local_steps,
        "sites": len(run.data.public_sizes),
        "rows": [asdict(row) for row in rows],
        "membership": membership.told(found, shadows=shadows) if found else None,
        "seconds": time.perf_counter() - began,
    }
    return Audit(report, tuple(found))


def _gradients_or_clients(
    run: RunConfig,
    workspace: Workspace,
    canaries: int,
    seed: int,
    plant: Plant | None,
    on_stage: OnStage,
) -> tuple[list[Seen], Claim]:
    if Unit(run.privacy.unit) is Unit.CLIENT:
        on_stage("clients as canaries")
        return client_games(run, workspace, canaries=canaries, seed=seed, fault=plant)
    on_stage("gradient canaries")
    return gradient_games(run, workspace, canaries=canaries, seed=seed, fault=plant)


def _has_rows_of_classes(run: RunConfig, workspace: Workspace) -> bool:
    """Whether rows are units of their own with one class each, which can be given a wrong one."""
    single = Unit(run.privacy.unit) is Unit.EXAMPLE
    return single and KINDS[run.task.kind].has_classes and len(workspace.data.label_names) > 1


def _check(canaries: int, shadows: int) -> None:
    if not FEWEST_CANARIES <= canaries <= MOST_CANARIES:
        raise ConfigError(
            "an audit needs enough canaries to tell chance from a fault, and no more than fit",
            given=f"--canaries {canaries}",
            expected=f"{FEWEST_CANARIES} to {MOST_CANARIES}",
            remedy=f"leave --canaries out for {CANARIES}",
        )
    if shadows < 0:
        raise ConfigError(
            "a number of shadow models is at least 0",
            given=f"--shadows {shadows}",
            expected="0 for no membership inference, or more",
        )
