"""How far the model fits training rows better than rows that it never saw: the researcher's look.

Both figures are computed where all rows are, in a simulation, and no site sends them.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from hushtune.common.adapter import AdapterState
from hushtune.common.lora_rules import RULES
from hushtune.common.planning import POOLED
from hushtune.common.run_context import RunContext
from hushtune.common.seeds import rng
from hushtune.common.tasks.base import Metrics
from hushtune.common.tasks.units import Rows
from hushtune.common.tasks.workspace import Workspace
from hushtune.simulations.own_models import site_states


def sampled(context: RunContext, workspace: Workspace) -> dict[str, Rows]:
    """A seeded draw of `simulation.train_sample` training rows of all sites, by site; sorted."""
    config = context.config
    sites = sorted(config.data.public_sizes)
    everything = np.concatenate([workspace.rows(site, "train") for site in sites])
    chosen = rng(config.seed, "train sample").permutation(np.sort(everything))
    chosen = chosen[: config.simulation.train_sample]
    found = {site: np.intersect1d(workspace.rows(site, "train"), chosen) for site in sites}
    return {site: rows for site, rows in found.items() if len(rows)}


def train_figures(
    context: RunContext,
    workspace: Workspace,
    state: AdapterState,
    rows: Mapping[str, Rows],
    *,
    run: str,
) -> Metrics:
    """Plain figures on training rows, of all sites together; each with its own part of the model
    where a rule leaves one there."""
    if RULES[context.config.aggregation.rule].kept:
        states = site_states(context, state, run=run)
        models = {site: (states[site], mine) for site, mine in rows.items()}
        return workspace.task.metrics_of_models(models, together=POOLED)[POOLED]
    together = np.concatenate(list(rows.values()))
    return workspace.task.metrics_by_group(state, {POOLED: together})[POOLED]
