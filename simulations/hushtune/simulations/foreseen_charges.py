"""What a site would be asked to pay for in a run, and the first of it that it could not pay."""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Sequence
from typing import NamedTuple

from hushtune.common.config import RunConfig
from hushtune.common.config_rules import sends_gradients
from hushtune.common.errors import HushtuneError
from hushtune.common.messages import METRICS_RUN, PERSONAL_RUN
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.ledger_limit import Limit
from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan, Trust
from hushtune.server.steps import numbers_of_round

DRY_RUN = "dry run"
TRAINING, PERSONAL, FIGURES = "training", "personal training", "figures"
CHARGED_AS = {TRAINING: DRY_RUN, PERSONAL: DRY_RUN + PERSONAL_RUN, FIGURES: DRY_RUN + METRICS_RUN}
"""What a round is charged for, in the order in which it is asked for."""


class Charge(NamedTuple):
    """What a site would be asked to pay for in a round, and under which number."""

    round: int
    what: str
    number: int
    event: DpSgdEvent


def training_charges(config: RunConfig, plan: PrivacyPlan, *, round: int) -> list[Charge]:
    """What a site is charged for a round's training: once, or step by step in secure sums."""
    if config.privacy.trust == Trust.DISTRIBUTED or sends_gradients(
        config.aggregation, config.privacy
    ):
        numbers = numbers_of_round(config, round)
        return [Charge(round, TRAINING, number, plan.event(1)) for number in numbers]
    return [Charge(round, TRAINING, round, plan.event(config.train.local_steps))]


def first_unpaid(
    limit: Limit,
    spent: Sequence[LedgerEntry],
    charges: Sequence[Charge],
    *,
    unit: str,
) -> tuple[Charge, HushtuneError] | None:
    """The first charge that the limit refuses, with its reason; None if all can be paid.

    The data set is taken to be the ledger's last: which one a name stands for, its key alone tells.
    """
    dataset = spent[-1].dataset if spent else "rows"
    entries = list(spent)
    for charge in charges:
        last = entries[-1] if entries else None
        entries.append(
            LedgerEntry.after(
                0 if last is None else last.sequence,
                GENESIS if last is None else last.hash,
                dataset=dataset,
                run=CHARGED_AS[charge.what],
                round=charge.number,
                event=charge.event,
                unit=unit,
            )
        )

    def refusal(place: int) -> HushtuneError | None:
        before = entries[: len(spent) + place]
        charge = charges[place]
        run = CHARGED_AS[charge.what]
        try:
            limit.check(charge.event, before, dataset=dataset, run=run, unit=unit)
        except HushtuneError as error:
            return error
        return None

    if not charges or refusal(len(charges) - 1) is None:
        return None
    # What is spent only grows, so that after the first refusal there are only refusals.
    place = bisect_left(range(len(charges)), True, key=lambda k: refusal(k) is not None)
    error = refusal(place)
    assert error is not None
    return charges[place], error
