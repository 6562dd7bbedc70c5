"""What a site spent, as its statement tells it: read in several ways, unrounded."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from hushtune.common.privacy import accountant
from hushtune.common.privacy.figures import bounded
from hushtune.common.privacy.plan import Relation
from hushtune.common.privacy.selection import Charged
from hushtune.common.privacy.statement_site import SiteStatement

CURVE_DELTAS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7, 1e-8)
GROUP_SIZES = (1, 2, 4, 8)


def events_told(events: Sequence[Charged]) -> list[dict[str, Any]]:
    """Equal events with their number, in the order in which each was first charged."""
    return [{**event.to_dict(), "count": count} for event, count in Counter(events).items()]


def accounts(site: SiteStatement) -> dict[str, Any]:
    """The same spend, read in other ways: both relations, other deltas, several records.

    The Renyi bound and that of several records are of adding or removing, whatever is promised.
    """
    delta, relation = site.plan.delta, site.plan.relation
    events = site.bounding
    lifetime = [*(site.lifetime or site.events), *site.unspent, *site.untold]
    limit_delta = delta if site.limit_delta is None else site.limit_delta
    return {
        "epsilon_by_relation": {str(kind): spent_by(site, events, kind) for kind in Relation},
        "epsilon_rdp": _bound(site, accountant.epsilon_rdp(events, delta=delta)),
        "epsilon_rdp_relation": str(Relation.ADD_OR_REMOVE_ONE),
        "epsilon_lifetime": spent_by(site, lifetime, relation),
        "lifetime": {
            # At the limit's own delta, as the site itself compares the two.
            "epsilon": _bound(
                site, accountant.epsilon(lifetime, delta=limit_delta, relation=relation)
            ),
            "delta": limit_delta,
            "limit_epsilon": site.limit_epsilon,
            "limit_delta": site.limit_delta,
            "events": events_told(site.lifetime or site.events),
            "own_ledger": site.own_ledger,
        },
        "curve": [
            {
                "delta": other,
                "epsilon": _bound(site, accountant.epsilon(events, delta=other, relation=relation)),
            }
            for other in sorted({*CURVE_DELTAS, delta}, reverse=True)
        ],
        "epsilon_by_records": {
            # Of one record the finer figure is there already.
            str(count): spent_by(site, events, Relation.ADD_OR_REMOVE_ONE)
            if count == 1
            else _bound(site, accountant.epsilon_group(events, delta=delta, records=count))
            for count in GROUP_SIZES
        },
        "epsilon_by_records_relation": str(Relation.ADD_OR_REMOVE_ONE),
    }


def spent_by(site: SiteStatement, events: Sequence[Charged], relation: Relation) -> float | None:
    if not site.plan.is_private:
        return None
    return _bound(site, accountant.epsilon(events, delta=site.plan.delta, relation=relation))


def _bound(site: SiteStatement, epsilon: float) -> float | None:
    return bounded(epsilon + site.extra_epsilon)
