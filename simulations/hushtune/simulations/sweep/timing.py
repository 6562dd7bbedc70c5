"""How long runs take, from a few rounds of each on a few rows, and from what work they share.

A run costs what it opens (model and rows), what it passes through the frozen model once, its
rounds, and what it writes. What points of a sweep share is counted at the first of them. A round
costs a part that no number of rows changes (messages, noise, ledgers, masks), timed in a real run
that is ended after a few rounds on few rows, and a gradient for each row of its batches.

Seconds are those of cores that are otherwise idle: of the clock or of this process's processors,
whichever are fewer, so that what else runs here meanwhile is not counted.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune.client import dp
from hushtune.common import lora
from hushtune.common.config import RunConfig
from hushtune.common.config_io import replace
from hushtune.common.errors import HushtuneError
from hushtune.common.lora_rules import RULES, trainable_keys
from hushtune.common.model import Level
from hushtune.common.names import OF_TABLES
from hushtune.common.planning import POOLED, local_batch, site_plans
from hushtune.common.privacy.plan import Unit
from hushtune.common.tasks.units import Units
from hushtune.common.tasks.workspace import Workspace, open_workspace
from hushtune.simulations.baselines import trained_baselines
from hushtune.simulations.estimate import timed_pass
from hushtune.simulations.observer import Silent
from hushtune.simulations.study import run

_ROWS_A_SITE = 100
_FEW_ROUNDS, _MANY_SITES = 3, 16
_ENDS = 2.0  # seconds of statements, pictures and cards, which hardly differ between runs
_TIMED = {Level.FEATURES: 256, Level.HIDDEN: 32, Level.TOKENS: 32}


@dataclass(frozen=True, kw_only=True)
class Round:
    """Seconds of a round: ``fixed`` whatever the rows, and for each example of its batches."""

    fixed: float
    per_row: float


@dataclass(frozen=True, kw_only=True)
class Costs:
    """Seconds of one kind of work. ``warmup`` and ``adapted``: a round of each; ``layers``: on how
    many more frozen layers a head is tried among the baselines."""

    warmup: Round
    adapted: Round
    layers: int


@dataclass(frozen=True, kw_only=True)
class Opening:
    """Seconds to open model and rows, and those of all rows in use through the frozen model."""

    opened: float
    frozen: float


def opening(config: RunConfig) -> Opening:
    """What the first point on its model and rows pays for those after it."""
    watch = _Watch()
    workspace = open_workspace(config)
    opened = watch.lap()
    task = workspace.task
    used = sum(len(workspace.rows(POOLED, part)) for part in ("train", "validation", "test"))
    if task.augments or not (task.model.reads_features or task.model.keeps_hidden):
        return Opening(opened=opened, frozen=0.0)  # nothing is kept
    rows, frozen_pass = timed_pass(workspace, _TIMED[Level.TOKENS])
    return Opening(opened=opened, frozen=used * _best(frozen_pass) / len(rows))


def costs(config: RunConfig) -> Costs:
    """Time one kind of work; trains on a few rows, in a folder of its own that is then removed."""
    try:
        return _costs(_cut(config, rows=_ROWS_A_SITE))
    except HushtuneError:  # too few rows for so many sites, or for what is asked of each
        return _costs(_cut(config, rows=None))


def _costs(config: RunConfig) -> Costs:
    few = _FEW_ROUNDS if len(config.data.public_sizes) < _MANY_SITES else 1
    kinds = _kinds(config)
    # All rounds are planned, so that steps, noise and what is charged are the point's own.
    warmups = min(few, config.train.warmup_rounds)
    short = replace(config, {"train.warmup_rounds": warmups})
    heard = _Rounds(warmups + few * (False in kinds))
    with tempfile.TemporaryDirectory(prefix="hushtune-") as folder, suppress(_SeenEnoughError):
        run(short, Path(folder) / "run", observer=heard)
    workspace = open_workspace(short)
    rule, state = RULES[config.aggregation.rule], workspace.initial_state
    drawn = _rows_a_round(config, rows=len(workspace.rows(POOLED, "train")))
    found: dict[bool, Round] = {}
    for is_warmup in kinds:
        keys = trainable_keys(rule, state.spec, turn=None if is_warmup else 0)
        per_row = _seconds_a_row(workspace, keys, microbatch=config.train.microbatch)
        seconds = min(heard.seconds[:warmups] if is_warmup else heard.seconds[warmups:])
        found[is_warmup] = Round(fixed=max(0.0, seconds - drawn * per_row), per_row=per_row)
    either = next(iter(found.values()))
    return Costs(
        warmup=found.get(True, either),
        adapted=found.get(False, either),
        layers=len(workspace.task.readable_layers),
    )


def _kinds(config: RunConfig) -> set[bool]:
    """Which rounds there are: warm-up (True), and those after it."""
    rounds, warmups = config.train.rounds, config.train.warmup_rounds
    return {number < warmups for number in range(rounds)}


def seconds_of(config: RunConfig, of: Costs) -> float:
    """A point's own seconds: its rounds, its baselines, and what it writes."""
    sites = len(config.data.public_sizes)
    total = _ENDS + _of_rounds(config, of, sites=sites)
    if not config.simulation.baselines:
        return total
    head = 0.0
    for name, baseline in trained_baselines(config).items():
        if name not in OF_TABLES:
            seconds = _of_rounds(baseline, of, sites=sites)
            total += seconds
            head = seconds if name == "head_private" else head
    return total + of.layers * head


def _of_rounds(config: RunConfig, of: Costs, *, sites: int) -> float:
    """All rounds of a run; what does not depend on rows, by its share of the sites timed."""
    train, share = config.train, len(config.data.public_sizes) / sites
    rows = _rows_a_round(config)
    return sum(
        number * (share * each.fixed + rows * each.per_row)
        for number, each in (
            (train.warmup_rounds, of.warmup),
            (train.rounds - train.warmup_rounds, of.adapted),
        )
    )


def _rows_a_round(config: RunConfig, *, rows: int | None = None) -> float:
    """Examples in all batches of a round that are expected; ``rows``: of so many training rows in
    place of those that the public sizes tell of."""
    plans = site_plans(config)
    batch = sum(local_batch(config, site, plan) for site, plan in plans.items())
    share = (config.simulation.sites_per_round or len(plans)) / len(plans)
    plan = next(iter(plans.values()))
    if plan.unit is Unit.CLIENT:
        share = plan.denominator / len(plans)
    if rows is not None:
        batch *= rows / sum(config.data.public_sizes.values())
    return batch * share * config.train.local_steps


def _cut(config: RunConfig, *, rows: int | None) -> RunConfig:
    """The same kind of work on few rows: its public sizes, and so its plans, stay."""
    most = config.data.max_rows_per_site
    changes: Mapping[str, Any] = {
        "train.patience": None,
        "data.max_rows_per_site": most if rows is None else min(rows, most or rows),
        "simulation.baselines": False,
        "simulation.forgetting": False,
        "simulation.evaluate_every": config.train.rounds,
    }
    return replace(config, changes)


def _seconds_a_row(workspace: Workspace, keys: tuple[str, ...], *, microbatch: int) -> float:
    """Seconds of a row's clipped gradient, from what is kept of the frozen model."""
    task, state = workspace.task, workspace.initial_state
    level = task.level(state, keys)
    rows = workspace.rows(POOLED, "train")[: _TIMED[level]]
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, keys)
    task.model.training_mode()

    def private_pass() -> None:
        dp.clipped_sum(
            task,
            Units.single(rows),
            trained=trained,
            clip_norm=1.0,
            microbatch=microbatch,
            level=level,
        )

    with dp.per_example_gradients(task.model):
        seconds = _best(private_pass)
    task.model.requires_grad_(False)
    return seconds / len(rows)


def _best(work: Callable[[], None]) -> float:
    """The best of three, after one that warms the libraries up."""
    work()
    watch, times = _Watch(), list[float]()
    for _ in range(3):
        work()
        times.append(watch.lap())
    return min(times)


class _Watch:
    """Seconds since it was made, or since it was last asked."""

    def __init__(self) -> None:
        self._clock, self._processor = time.perf_counter(), time.process_time()

    def lap(self) -> float:
        """Of the clock or of the processors, whichever are fewer."""
        clock, processor = time.perf_counter(), time.process_time()
        found = min(clock - self._clock, processor - self._processor)
        self._clock, self._processor = clock, processor
        return found


class _SeenEnoughError(Exception):
    """Ends a run of which enough rounds were timed."""


class _Rounds(Silent):
    """Hears when rounds end, and ends the run after ``most`` of them."""

    def __init__(self, most: int) -> None:
        self.seconds = list[float]()
        self._most, self._watch = most, _Watch()

    def started(self, rounds: int, done: int) -> None:
        """See Observer."""
        self._watch.lap()

    def round_done(self, row: Mapping[str, Any]) -> None:
        """See Observer."""
        self.seconds.append(self._watch.lap())
        if len(self.seconds) == self._most:
            raise _SeenEnoughError
