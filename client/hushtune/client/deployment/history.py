"""``hushtune site history``: every order, what was decided, and what it cost."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path
from typing import Any

from hushtune.client.deployment.history_file import ANSWERED, read_history
from hushtune.client.deployment.site_file import SiteFile
from hushtune.common.errors import ConfigError


def site_history(
    folder: Path, *, run: str | None = None, last: int | None = None
) -> dict[str, Any]:
    """The orders of a site, oldest first, JSON-ready.

    Args:
        run: of this run alone; the beginning of its name is enough.
        last: the newest ones alone.

    ``orders`` has rows as in ``orders.jsonl``, ``total`` counts all of the file, ``charged`` and
    ``refused`` those of ``orders``; ``damaged`` lines cannot be read. Raises DeploymentError, and
    ConfigError for a run of which there is no order.
    """
    site = SiteFile.read(folder)
    history = read_history(site.history)
    chosen = list(history.orders)
    if run is not None:
        chosen = [order for order in chosen if order.run.startswith(run)]
        if not chosen:
            raise _unknown(run, sorted({order.run for order in history.orders}))
    chosen = chosen[-last:] if last is not None else chosen
    return {
        "site": site.name,
        "total": len(history.orders),
        "damaged": history.damaged,
        "charged": sum(order.spent is not None for order in chosen),
        "refused": sum(order.decision != ANSWERED for order in chosen),
        "orders": [order.to_dict() for order in chosen],
    }


def _unknown(run: str, runs: list[str]) -> ConfigError:
    near = get_close_matches(run, runs, n=1)
    return ConfigError(
        "no order was of that run",
        given=f"--run {run}",
        expected=", ".join(runs[:6]) or "any run: no order has come yet",
        remedy=f"--run {near[0]}" if near else None,
    )
