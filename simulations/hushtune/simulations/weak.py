"""A promise so weak that it has to be said: what an epsilon beyond the usual ones leaves open."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rich.console import Console

from hushtune.common.privacy.figures import most_true_positives, percent, upwards

USUAL = 10.0
"""Beyond this even a test that is wrong once in a hundred may find practically every record."""
_FALSE_POSITIVES, _LARGE = 0.01, 1000.0


def show_warning(console: Console, message: str, remedy: str) -> None:
    """A loud line, and what to do."""
    console.print("[bold yellow]warning[/] ", end="")
    console.print(message, markup=False, highlight=False)
    console.print(f"  do: {remedy}", markup=False, highlight=False)


def show_weak(
    console: Console, sites: Mapping[str, Mapping[str, Any]], *, unit: str = "example"
) -> None:
    """One line if a site's ``epsilon`` (None: no promise, or the site takes no part) is above
    ``USUAL``."""
    found = {name: site for name, site in sites.items() if (site.get("epsilon") or 0.0) > USUAL}
    if not found:
        return
    name = max(found, key=lambda site: found[site]["epsilon"])
    epsilon, delta = found[name]["epsilon"], found[name]["delta"]
    most = most_true_positives(epsilon, delta, false_positives=_FALSE_POSITIVES)
    console.print("[bold yellow]warning[/] ", end="")
    shown = upwards(epsilon, places=2 if epsilon < _LARGE else 0)
    console.print(
        f"epsilon {shown} protects next to nothing: whoever tests whether a "
        f"{'client' if unit == 'client' else 'record'} was used, with "
        f"{_FALSE_POSITIVES:.0%} false alarms, may find {percent(most)}% of "
        f"those that were ({USUAL:g} or less is usual, 1 to 3 strong)",
        markup=False,
        highlight=False,
    )
