"""What is sound of a run's settings and probably not what was meant, told before it begins."""

from __future__ import annotations

from dataclasses import asdict

from hushtune.common.config import RunConfig
from hushtune.server.aggregation.guards import unguarded


def cautions(config: RunConfig) -> list[dict[str, str]]:
    """Each a ``message`` and a ``remedy``."""
    sites = config.simulation.sites_per_round or len(config.data.public_sizes)
    guard = unguarded(config.aggregation, sites)
    found = [] if guard is None else [asdict(guard)]
    if config.speed.together > 1 and (why := _one_by_one(config)):
        found.append(
            {
                "message": f"speed.together = {config.speed.together} does nothing {why[0]}",
                "remedy": f"leave it out, or {why[1]}",
            }
        )
    return found


def _one_by_one(config: RunConfig) -> tuple[str, str] | None:
    """Why sites take their steps one after the other whatever is asked for, and what changes it;
    None where nothing in the settings says so. See ``cohort.knows``."""
    if config.simulation.engine == "flower":
        engine = "on Flower's engine, which trains each site in a process of its own"
        return engine, 'set simulation.engine = "inprocess"'
    if config.privacy.trust == "distributed" and config.privacy.unit != "client":
        sums = "where each step is one secure sum, to which a site adds what it computed by itself"
        return sums, "set another privacy.trust"
    if config.adapter.dropout > 0:
        return "with dropout, which each site draws for itself", "set adapter.dropout = 0"
    if config.augment.is_on:
        return "where data are augmented, by draws of each site's own", "leave [augment] out"
    return None
