"""What the server knows of the sites' spending: the charges that they have shown it.

A site's own ledger is the authority. A site that trained and whose answer was lost on the way has
spent more than is known here, until the server asks again and gets the kept answer.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import PrivacyPlan

Rows = Mapping[str, tuple[dict[str, Any], ...]]
"""JSON rows by site, sorted by name."""


def appended(rows: Rows, new: Mapping[str, Mapping[str, Any]]) -> Rows:
    """``rows`` with one more for each site in ``new``."""
    sites = sorted({*rows, *new})
    return {
        site: (*rows.get(site, ()), *([dict(new[site])] if site in new else [])) for site in sites
    }


def appended_charges(charges: Rows, new: Mapping[str, LedgerEntry]) -> Rows:
    """``charges`` with the new ones; a charge that is shown again counts once."""
    unseen = {
        site: entry.to_dict()
        for site, entry in new.items()
        if entry.hash not in {row["hash"] for row in charges.get(site, ())}
    }
    return appended(charges, unseen)


def spent(plans: Mapping[str, PrivacyPlan], charges: Rows) -> dict[str, float | None]:
    """Epsilon of each site by its shown charges; None where privacy is off."""
    return {site: _epsilon(plan, charges.get(site, ())) for site, plan in plans.items()}


def _epsilon(plan: PrivacyPlan, rows: tuple[dict[str, Any], ...]) -> float | None:
    if not plan.is_private:
        return None
    # The accountant takes a second to import: a run without privacy does not pay for it.
    from hushtune.common.privacy.accountant import epsilon

    events = [LedgerEntry.from_dict(row).event for row in rows]
    return epsilon(events, delta=plan.delta, relation=plan.relation)
