"""The same sites under each trust model, at equal epsilon and from public numbers alone.

``site``: what `planner.plan_run` found for the federation's mean. ``distributed``: one noise over
all sites' records, in shares of which the fewest survivors' but those of false sites make the
whole; all survive here, so the noise is ``sqrt(n / (m - t))`` times the planned one. ``server``:
one noise over as many clients as there are sites, whose whole data are then the unit.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rich.console import Console
from rich.table import Table

from hushtune.common.errors import HushtuneError
from hushtune.common.privacy.plan import Trust
from hushtune.common.secagg.cohort import Cohort
from hushtune.simulations.planner import signal_to_noise
from hushtune.simulations.planner_clients import plan_clients
from hushtune.simulations.planner_outline import Outline

_PROTECTS = {
    "site": "a record, from the server too",
    "distributed": "a record, from the server and {colluding} site that sides with it",
    "server": "a whole client, from all but the server",
}


def compare_trust(
    sizes: Mapping[str, int], outline: Outline, federation: Mapping[str, Any] | None
) -> dict[str, dict[str, Any]]:
    """For each trust model what it protects and the federation's signal to noise, or why not."""
    taking_part = sorted(sizes)
    found: dict[str, dict[str, Any]] = {"site": {"signal_to_noise": None, "refused": "no site can"}}
    if federation:
        found["site"] = {"signal_to_noise": federation["signal_to_noise"], "refused": None}
    for name, plan in (
        ("distributed", lambda: _distributed(taking_part, sum(sizes.values()), outline)),
        ("server", lambda: _server(len(taking_part), outline)),
    ):
        try:
            found[name] = {"signal_to_noise": plan(), "refused": None}
        except HushtuneError as error:
            found[name] = {"signal_to_noise": None, "refused": error.message}
    colluding = min(1, len(taking_part) - 1)
    return {
        name: {"protects": _PROTECTS[name].format(colluding=colluding), **found[name]}
        for name in _PROTECTS
    }


def _distributed(sites: list[str], total: int, outline: Outline) -> dict[str, float]:
    cohort = Cohort(sites=tuple(sites), min_survivors=len(sites), colluding=1)
    pooled = replace(outline, batch_size=None, sampling_probability=_rate(outline, total))
    plan = pooled.plan(total, trust=Trust.DISTRIBUTED)
    deviation = plan.noise_multiplier / plan.denominator
    deviation *= math.sqrt(len(sites) / cohort.noise_shares)
    values = outline.values()
    return signal_to_noise(deviation, trained_values=values, steps=plan.steps)


def _rate(outline: Outline, total: int) -> float | None:
    """A batch is of all sites together here."""
    if outline.batch_size is None:
        return outline.sampling_probability
    return min(1.0, outline.batch_size / total)


def _server(clients: int, outline: Outline) -> dict[str, float]:
    return plan_clients(clients, outline)["signal_to_noise"]


def show_trust(console: Console, models: Mapping[str, Mapping[str, Any]], epsilon: float) -> None:
    """The comparison as a table; what cannot be had says why."""
    table = Table(
        title=f"Trust models at epsilon {epsilon:g}: noise of the federation's mean",
        title_justify="left",
    )
    for column in ("privacy.trust", "what is protected", "S/N step", "S/N run"):
        plain = column in ("privacy.trust", "what is protected")
        table.add_column(column, justify="left" if plain else "right", overflow="fold")
    for name, model in models.items():
        ratios = model["signal_to_noise"]
        shown = (
            [model["refused"], "-", "-"]
            if ratios is None
            else [model["protects"], f"{ratios['step']:.3g}", f"{ratios['run']:.3g}"]
        )
        table.add_row(name, *shown, style="red" if ratios is None or ratios["run"] < 1 else None)
    console.print(table)
