"""What a run would do and take, without doing it."""

from __future__ import annotations

import math
import time
from collections.abc import Callable
from typing import Any

import numpy as np

from hushtune.client import dp
from hushtune.common import lora
from hushtune.common.config import RunConfig
from hushtune.common.lora_rules import RULES, trainable_keys
from hushtune.common.model import Level
from hushtune.common.names import OF_TABLES
from hushtune.common.planning import POOLED, least_sites, local_batch, site_plans
from hushtune.common.privacy.plan import Unit
from hushtune.common.rounded_weights import most_bytes
from hushtune.common.tasks import partition
from hushtune.common.tasks.activations import in_pieces
from hushtune.common.tasks.units import Rows, Units
from hushtune.common.tasks.workspace import Workspace, check_sizes, open_workspace, resolve
from hushtune.server.federation import check_sites
from hushtune.server.steps import steps_of_round
from hushtune.simulations.agreement import refusals
from hushtune.simulations.attacks import attack_of
from hushtune.simulations.baselines import trained_baselines
from hushtune.simulations.cautions import cautions
from hushtune.simulations.estimate_bytes import round_bytes
from hushtune.simulations.planner_clients import client_figures

_TIMED_ROWS = 64


def estimate(config: RunConfig) -> dict[str, Any]:
    """Sites, steps, epsilon, bytes, memory and minutes of a run, and what sites would refuse of it.

    Trains and writes nothing.

    Minutes come from timing the frozen model and one clipped batch on a few rows, here and now.
    """
    config = resolve(config)
    check_sizes(config)
    plans = site_plans(config)
    check_sites(config, plans, config.data.public_sizes)
    quorum, quorum_setting = least_sites(config)
    workspace = open_workspace(config)
    state, train = workspace.initial_state, config.train
    rule = RULES[config.aggregation.rule]
    of_clients = Unit(config.privacy.unit) is Unit.CLIENT
    plan = next(iter(plans.values()))
    per_round = config.simulation.sites_per_round or len(plans)
    if of_clients:  # as many as are expected
        per_round = max(1, round(plan.denominator))
    share = per_round / len(plans)
    adapted = train.rounds - train.warmup_rounds
    sent = round_bytes(config, state)
    in_a_round = per_round * (sent.adapter if adapted else sent.warmup)
    total = per_round * sent.total
    trained = trainable_keys(rule, state.spec, turn=0 if adapted else None)
    batch = share * sum(local_batch(config, site, plan) for site, plan in plans.items())
    # Heads alone are trained on kept features, which there are none of changed examples.
    steps = (train.rounds if config.augment.is_on else adapted) * train.local_steps
    compared = trained_baselines(config) if config.simulation.baselines else {}
    private_runs = max(1, len(compared.keys() - OF_TABLES.keys()))
    whole_runs = 4 if config.simulation.baselines else 1  # the sites alone make up one run
    keys = trainable_keys(rule, state.spec, turn=0)
    frozen, stepping = _seconds_a_row(workspace, full_keys=keys)
    used = sum(len(workspace.rows(POOLED, part)) for part in ("train", "validation", "test"))
    judged = len(workspace.rows(POOLED, "test")) * private_runs
    seconds = used * frozen + whole_runs * steps * batch * stepping + judged * stepping / 2
    tokens = int(workspace.task.inputs.lengths.sum())
    model = workspace.task.model
    layers = 1 + (len(workspace.task.readable_layers) if config.simulation.baselines else 0)
    values = tokens * model.hidden_size if model.keeps_hidden else 0
    values += used * model.feature_size * layers if model.reads_features else 0
    kept = min(config.train.cache_megabytes, math.ceil(values * 4 / 2**20))
    # A gradient of each example, and two copies of it while it is clipped.
    at_once = max(2 * config.train.microbatch, config.augment.views)  # of short texts
    samples = 3 * at_once * state.select(keys).num_values() * 4 / 2**20
    weights = (sum(p.numel() for p in model.parameters()) * 4 + most_bytes(model)) / 2**20
    return {
        "trust": config.privacy.trust,
        "unit": config.privacy.unit,
        "insecure_seeded_noise": config.privacy.insecure_seeded_noise,
        "group": config.data.group,
        **(
            {
                "clients": client_figures(
                    plan,
                    len(plans),
                    rounds=train.rounds,
                    turns=config.privacy.client_turns,
                    trained_values=state.select(trained).num_values(),
                )
            }
            if of_clients and plan.is_private
            else {}
        ),
        "rounds": train.rounds,
        "warmup_rounds": train.warmup_rounds,
        "trains_a_head": bool(state.spec.head),
        "unfreeze": train.unfreeze,
        "sites": {
            site: {
                "public_size": config.data.public_sizes[site],
                "batch": local_batch(config, site, plan),
                "sampling_probability": plan.sampling_probability,
                "steps": plan.steps,
                "noise_multiplier": plan.noise_multiplier,
                "epsilon": None if math.isinf(plan.epsilon) else plan.epsilon,
                "delta": plan.delta,
            }
            for site, plan in plans.items()
        },
        "who_has_what": partition.table(workspace.data),
        "data_notes": workspace.data_notes(),
        "quorum": quorum,
        "quorum_setting": quorum_setting,
        "refusals": refusals(config, plans, state),
        "attack": attack_of(config),
        "warnings": cautions(config),
        "bytes_per_round": in_a_round,
        "bytes_per_warmup_round": per_round * sent.warmup if train.warmup_rounds else 0,
        "bytes_per_step": round(in_a_round / steps_of_round(config)),
        "exchanges_per_step": sent.exchanges / steps_of_round(config),
        "bytes_total": total,
        "memory_megabytes": round(1000 + weights + kept + samples),
        "minutes": round(seconds / 60 + 0.2, 1),
    }


def _seconds_a_row(workspace: Workspace, full_keys: tuple[str, ...]) -> tuple[float, float]:
    """Seconds a row of the frozen model, and of a clipped gradient from its hidden states."""
    task = workspace.task
    timed, frozen_pass = timed_pass(workspace, _TIMED_ROWS)
    rows = workspace.rows(POOLED, "train")
    rows = rows[:: max(1, len(rows) // _TIMED_ROWS)][:_TIMED_ROWS]

    def private_pass() -> None:
        trained = lora.set_trainable(task.model, full_keys)
        task.model.training_mode()
        with dp.per_example_gradients(task.model):
            dp.clipped_sum(
                task,
                Units.single(rows),
                trained=trained,
                clip_norm=1.0,
                microbatch=32,
                level=Level.TOKENS,
            )
        task.model.requires_grad_(False)

    frozen, whole = _seconds(frozen_pass) / len(timed), _seconds(private_pass) / len(rows)
    # What the cache saves is the forward pass of the blocks under the first adapted one, where the
    # pass without pooling ends.
    kept = task.model.keeps_hidden and not task.augments
    whole_pass = not task.model.reads_features
    below = 1.0 if whole_pass or not kept else task.model.first_adapted / len(task.model.blocks)
    saved = frozen * below if kept else 0.0
    return frozen, max(whole - saved, 0.1 * whole)


def timed_pass(workspace: Workspace, count: int) -> tuple[Rows, Callable[[], None]]:
    """Some ``count`` training rows, and what passes them through the frozen model once: in some of
    the pieces in which all rows go through it, as few rows would have to fill up pieces of their
    own."""
    task = workspace.task
    rows: Rows = workspace.rows(POOLED, "train")
    pieces = in_pieces(task.inputs, Units.single(rows), task.evaluation_batch)
    few = math.ceil(min(1, count / len(rows)) * len(pieces))
    chosen = [pieces[(2 * place + 1) * len(pieces) // (2 * few)] for place in range(few)]
    lora.install(task.model, workspace.initial_state)

    def frozen_pass() -> None:
        task.model.frozen_mode()
        for piece in chosen:
            inputs = task.batch(piece.rows, Level.TOKENS).inputs
            task.model.frozen_activations(inputs, pooled=task.model.reads_features)

    return np.concatenate([piece.units.rows for piece in chosen]), frozen_pass


def _seconds(work: Callable[[], None]) -> float:
    """The best of three, after one that warms the libraries up."""
    times: list[float] = []
    for _ in range(4):
        began = time.perf_counter()
        work()
        times.append(time.perf_counter() - began)
    return min(times[1:])
