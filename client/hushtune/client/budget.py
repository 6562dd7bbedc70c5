"""What a policy allows, and how much of it a ledger has spent."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

from hushtune.client.terms import Terms, load_terms
from hushtune.common.privacy.ledger_record import LedgerRecord
from hushtune.common.privacy.plan import Relation
from hushtune.common.privacy.selection import Charged


def policy_of(ledger: Path) -> Terms | None:
    """The terms of the policy that lies beside a ledger; None where there is none."""
    policy = ledger.with_suffix(".toml")
    return load_terms(policy) if policy.is_file() else None


def budget(record: LedgerRecord, terms: Terms) -> dict[str, Any]:
    """What a policy allows, and how much of it a ledger has spent, JSON-ready.

    All that the ledger holds counts together, or, for a policy that names its data set, the data
    set that has spent the most. What was charged for another unit cannot be added up with it.
    """
    from hushtune.common.privacy import accountant

    unit = terms.charged_unit
    counted: dict[str, list[Charged]] = {}
    for entry in record.entries:
        if entry.unit == unit:
            name = "all" if terms.data_set is None else entry.dataset
            counted.setdefault(name, []).append(entry.event)
    relation = Relation(terms.relation)
    spent = max(
        (accountant.epsilon(e, delta=terms.max_delta, relation=relation) for e in counted.values()),
        default=0.0,
    )
    return {
        "max_epsilon": terms.max_epsilon,
        "max_delta": terms.max_delta,
        "relation": terms.relation,
        "unit": unit,
        "data_set": terms.data_set,
        "epsilon": spent if spent < math.inf else None,
    }
