"""``hushtune site status``: what a site's processes are at, and what its rows have spent."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hushtune.client.budget import budget
from hushtune.client.deployment.history_file import last_order
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.deployment.status_file import (
    WRITE_SECONDS,
    is_alive,
    read_status,
    seconds_since,
)
from hushtune.client.terms import load_terms
from hushtune.common.errors import HushtuneError
from hushtune.common.privacy.ledger_files import head_path
from hushtune.common.privacy.ledger_record import read_ledger

NOT_JOINED, GONE, SILENT = "not joined", "gone", "silent"
"""Never begun; ended without a word, as by a loss of power; running, and writing nothing."""
_SILENT_AFTER = 6 * WRITE_SECONDS


def site_status(folder: Path) -> dict[str, Any]:
    """State, since when, server, last order, and epsilon spent of the limit; JSON-ready.

    What is spent is read from the ledger, whatever the processes say; ``problem`` has the error of
    one that cannot be read. Raises DeploymentError and ConfigError where the folder is no site's.
    """
    site = SiteFile.read(folder)
    status = read_status(site.status)
    told: dict[str, Any] = {
        "site": site.name,
        "federation": site.table.server.name,
        "server": site.table.server.address,
        "state": NOT_JOINED,
        "since": None,
        "pid": None,
        "order": None,
        "refusals": 0,
        "last_error": None,
        "restarts": None,
        "connected_at": None,
        "updated": None,
    }
    if status is not None:
        kept = asdict(status)
        told |= {key: kept[key] for key in told if key in kept and key not in ("site", "server")}
        told["state"] = str(status.state)
        if status.state != "stopped" and not is_alive(status):
            told |= {"state": GONE, "since": status.updated, "pid": None, "order": None}
        elif status.state != "stopped" and seconds_since(status.updated) > _SILENT_AFTER:
            told |= {"state": SILENT, "since": status.updated}
    order = last_order(site.history)
    told["last_order"] = None if order is None else order.to_dict()
    return told | spent(site)


def spent(site: SiteFile) -> dict[str, Any]:
    """``epsilon`` of ``limit`` at ``delta``, and ``charges``; a ``problem`` where none is known.

    An ``epsilon`` of None without a problem has no bound.
    """
    found: dict[str, Any] = {"epsilon": None, "limit": None, "delta": None, "charges": None}
    try:
        terms = load_terms(site.table.policy)
        found |= {"limit": terms.max_epsilon, "delta": terms.max_delta, "problem": None}
        if not site.ledger.exists() and not head_path(site.ledger).exists():
            return found | {"epsilon": 0.0, "charges": 0}
        record = read_ledger(site.ledger)
        return found | {
            "epsilon": budget(record, terms)["epsilon"],
            "charges": len(record.entries),
        }
    except HushtuneError as error:
        return found | {"problem": f"{error.code} {error}"}
