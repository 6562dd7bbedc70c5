"""Compute once a round, charge, and answer: in this order, whatever happens in between."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TypedDict

from hushtune.client.site import Site
from hushtune.common.errors import HushtuneError, LedgerError, SiteError
from hushtune.common.messages import METRICS_RUN, PERSONAL_RUN
from hushtune.common.privacy.ledger import KeptReply, Ledger, LedgerEntry, Limit
from hushtune.common.privacy.plan import DpSgdEvent

log = logging.getLogger(__name__)


class _Charge(TypedDict):
    """What a charge is for, but for its round."""

    dataset: str
    run: str
    unit: str
    limit: Limit


def charged(
    event: DpSgdEvent,
    compute: Callable[[], bytes],
    *,
    run: str,
    round: int,
    asked: str,
    site: Site,
    ledger: Ledger,
    keep: Callable[[], None] | None = None,
) -> tuple[bytes, LedgerEntry]:
    """Compute once a round: charge and reply are durable together, before anything leaves.

    ``keep``: what the site keeps for itself along with the charge, see ``charge_with_reply``.
    A round that is asked for again gets the kept bytes, uncharged; LedgerError if ``asked``, the
    name of the order, is another than what they answered.
    """

    def answered() -> KeptReply | None:
        return ledger.resend(run, round, dataset=site.dataset, asked=asked)

    kept = answered()
    if kept is not None:
        return kept.reply, kept.entry
    what: _Charge = {
        "dataset": site.dataset,
        "run": run,
        "unit": site.unit,
        "limit": site.limit,
    }
    ledger.check(event, **what)
    check_whole_run(run, site=site, ledger=ledger)
    of_run = [entry for entry in ledger.entries() if entry.run == run]
    if any((entry.dataset, entry.round) == (site.dataset, round) for entry in of_run):
        raise LedgerError(
            f"round {round} was charged and refused before",
            given=f"run {run}",
            remedy="order another round",
        )
    if any(entry.dataset != site.dataset for entry in of_run):
        raise LedgerError(
            "the data changed while the run was going on",
            given=f"run {run}",
            expected="the rows with which the run began, or a policy that names the data_set",
            remedy="put the rows back, or begin a new run",
        )
    try:
        reply = compute()
    except Exception as error:
        # That it was refused follows from the rows: a server that crafts adapters could else
        # compare noised sums with thresholds of its choice for nothing.
        ledger.charge(event, round=round, **what)
        kept = answered()
        if kept is not None:  # another process answered meanwhile: one charge, one answer
            return kept.reply, kept.entry
        if isinstance(error, HushtuneError):
            raise
        raise unexpected(error) from error
    try:
        entry = ledger.charge_with_reply(
            event, round=round, reply=reply, asked=asked, keep=keep, **what
        )
    except LedgerError:
        kept = answered()
        if kept is None:
            raise
        return kept.reply, kept.entry  # another process answered meanwhile
    return reply, entry


def check_whole_run(run: str, *, site: Site, ledger: Ledger) -> None:
    """Raise BudgetExceededError for a run that has charged nothing yet and cannot be paid whole.

    Its first rounds would else be spent on a run that ends without a model. Where no settings are
    signed, nobody knows how much is to come. ``run``: as the ledger charges it.
    """
    signed = site.policy.signed
    if signed is None:
        return
    name = run.removesuffix(PERSONAL_RUN).removesuffix(METRICS_RUN)
    of_run = {name, f"{name}{PERSONAL_RUN}", f"{name}{METRICS_RUN}"}
    entries = ledger.entries()
    if not any(entry.run in of_run for entry in entries):
        site.limit.check_whole(signed.events(), entries, dataset=site.dataset)


def unexpected(error: Exception) -> SiteError:
    """What an error that nobody foresaw is called towards others."""
    log.debug("unexpected", exc_info=error)
    return SiteError("the site's own work failed", given=type(error).__name__)
