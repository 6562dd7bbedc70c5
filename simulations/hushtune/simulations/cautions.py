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
    if config.simulation.engine == "flower" and config.speed.together > 1:
        found.append(
            {
                "message": f"speed.together = {config.speed.together} does nothing on Flower's "
                "engine, which trains each site in a process of its own",
                "remedy": 'leave it out, or set simulation.engine = "inprocess"',
            }
        )
    return found
