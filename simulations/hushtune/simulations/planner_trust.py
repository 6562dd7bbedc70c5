"""The same sites under each trust model, at equal epsilon and from public numbers alone.

``site``: what `planner.plan_run` found for the federation's mean. ``distributed``: one noise over
all sites' records, in shares of which the fewest survivors' but those of false sites make the
whole; all survive here, so the noise is ``sqrt(n / (m - t))`` times the planned one. ``server``:
one noise over as many clients as there are sites, whose whole data are then the unit; it may be in
shares too.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
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

OF_CLIENTS = "distributed, of clients"
"""Secure sums of clients' changes: ``privacy.unit = "client"``."""

_PROTECTS = {
    "site": "a record, from the server too",
    "distributed": "a record, from the server and {sided}",
    OF_CLIENTS: "a whole client, from the server and {sided}",
    "server": "a whole client, from all but the server",
}


def compare_trust(
    sizes: Mapping[str, int],
    outline: Outline,
    federation: Mapping[str, Any] | None,
    *,
    colluding: int = 1,
    min_survivors: int | None = None,
) -> dict[str, dict[str, Any]]:
    """For each trust model what it protects and the federation's signal to noise, or why not.

    ``colluding`` and ``min_survivors``: of secure sums, as in the settings of [privacy]. A site
    without rows is in none.
    """
    rows = {name: size for name, size in sizes.items() if size > 0}
    taking_part = sorted(rows)

    def shared() -> Cohort:
        return cohort(taking_part, min_survivors, colluding)

    found: dict[str, dict[str, Any]] = {"site": {"signal_to_noise": None, "refused": "no site can"}}
    if federation:
        found["site"] = {"signal_to_noise": federation["signal_to_noise"], "refused": None}
    for name, plan in (
        ("distributed", lambda: _distributed(shared(), sum(rows.values()), outline)),
        (OF_CLIENTS, lambda: _of_clients(shared(), outline)),
        ("server", lambda: _server(len(taking_part), outline)),
    ):
        try:
            found[name] = {"signal_to_noise": plan(), "refused": None}
        except HushtuneError as error:
            found[name] = {"signal_to_noise": None, "refused": error.message}
    sided = {0: "no site besides", 1: "one site that sides with it"}.get(
        colluding, f"{colluding} sites that side with it"
    )
    return {
        name: {"protects": _PROTECTS[name].format(sided=sided), **found[name]} for name in _PROTECTS
    }


def cohort(names: Iterable[str], min_survivors: int | None, colluding: int) -> Cohort:
    """Those who would add up; PlanError where they could protect nothing."""
    sites = tuple(sorted(names))
    least = len(sites) if min_survivors is None else min_survivors
    return Cohort(sites=sites, min_survivors=least, colluding=colluding)


def excess_noise(shared: Cohort) -> float:
    """How many times as long as planned the noise of a sum is, if no site drops out."""
    return math.sqrt(len(shared.sites) / shared.noise_shares)


def show_excess(console: Console, shared: Cohort) -> None:
    """What it costs in noise that some sites may drop out or side with the server."""
    number, shares = len(shared.sites), shared.noise_shares
    console.print(
        f"noise in a sum: {excess_noise(shared):.2f} times as long as planned if no site drops "
        f"out, as {shares} of {number} shares make up the planned one (privacy.min_survivors "
        f"{shared.min_survivors}, privacy.colluding_sites {shared.colluding})",
        highlight=False,
        markup=False,
    )


def _of_clients(shared: Cohort, outline: Outline) -> dict[str, float]:
    ratios = plan_clients(len(shared.sites), outline)["signal_to_noise"]
    return {name: ratio / excess_noise(shared) for name, ratio in ratios.items()}


def _distributed(shared: Cohort, total: int, outline: Outline) -> dict[str, float]:
    pooled = replace(outline, batch_size=None, sampling_probability=_rate(outline, total))
    plan = pooled.plan(total, trust=Trust.DISTRIBUTED)
    deviation = excess_noise(shared) * plan.noise_multiplier / plan.denominator
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
    protected = "what is protected, or why it cannot be had"
    for column in ("privacy.trust", protected, "S/N step", "S/N run"):
        plain = column in ("privacy.trust", protected)
        table.add_column(column, justify="left" if plain else "right", overflow="fold")
    for name, model in models.items():
        ratios = model["signal_to_noise"]
        shown = (
            [f"not available: {model['refused']}", "-", "-"]
            if ratios is None
            else [model["protects"], f"{ratios['step']:.3g}", f"{ratios['run']:.3g}"]
        )
        table.add_row(name, *shown, style="red" if ratios is None or ratios["run"] < 1 else None)
    console.print(table)
