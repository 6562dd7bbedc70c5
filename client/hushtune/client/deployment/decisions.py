"""What became of an order, as the site's history has it: read from the reply and the ledger."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flwr.app import Message, RecordDict

from hushtune.client.deployment.history_file import ANSWERED, FAILED, REFUSED, Spent
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.terms import load_terms
from hushtune.common.errors import HushtuneError
from hushtune.common.messages import decode_refusal, unpack_body
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger import LedgerEntry
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.records import arrays_of, texts_of
from hushtune.common.signed_files import Signed

log = logging.getLogger(__name__)

_OWN_FAULTS = ("HT000", "HT2", "HT3", "HT504", "HT6")
"""Beginnings of the codes that say that the site could not, and not that it would not."""
_LONGEST_NAME = 200


@dataclass(frozen=True)
class Decision:
    """One of ``ANSWERED``, ``REFUSED`` and ``FAILED``, and the code and reason that left."""

    decision: str
    code: str = ""
    reason: str = ""


def decision_of(reply: Message) -> Decision:
    """What a reply says was decided."""
    if reply.has_error():
        code, _, reason = (reply.error.reason or "").partition(" ")
        return _declined(code, reason)
    try:
        body = unpack_body(reply.content)
        if not body.get("refused"):
            return Decision(ANSWERED)
        refusal = decode_refusal(reply.content)
    except HushtuneError:
        return Decision(ANSWERED)  # a message of another form, which no refusal has
    return _declined(refusal.code, refusal.reason)


def _declined(code: str, reason: str) -> Decision:
    own = code.startswith(_OWN_FAULTS)
    return Decision(FAILED if own else REFUSED, code, reason)


def names_of_order(content: RecordDict | None) -> tuple[str, int | None]:
    """The run and round that a message speaks of; nothing where it tells none."""
    try:
        body = unpack_body(content) if content is not None else {}
    except HushtuneError:
        body = {}
    run, number = body.get("run") or _handed_over(body), body.get("round")
    named = isinstance(run, str) and run.isprintable()
    return (
        run[:_LONGEST_NAME] if named and isinstance(run, str) else "",
        number if isinstance(number, int) and not isinstance(number, bool) else None,
    )


def _handed_over(body: Mapping[str, object]) -> object:
    """The run of the record that a hand-over brings; None in any other message."""
    try:
        return Signed.from_dict(body.get("record"), what="a run's record").document.get("run")
    except HushtuneError:
        return None


def group_round(group: str) -> int:
    """The round that Flower's metadata tell; 0 where they tell none.

    >>> group_round("12"), group_round("")
    (12, 0)
    """
    return int(group) if group.isdecimal() and len(group) < 10 else 0


def charges(site: SiteFile) -> Sequence[LedgerEntry]:
    """What the site's ledger holds; nothing where there is none yet, or none that can be read."""
    if not site.ledger.exists():
        return ()
    try:
        return read_ledger(site.ledger).entries
    except HushtuneError as error:
        log.warning("the ledger cannot be read for the history: %s", error)
        return ()


def spent_since(site: SiteFile, before: int) -> Spent | None:
    """What was charged since the ledger held ``before`` charges; None for nothing."""
    now = charges(site)
    if len(now) <= before:
        return None
    last = now[-1]
    try:
        terms = load_terms(site.table.policy)
        limit = terms.limit(whole_ledger=terms.data_set is None)
        epsilon = accountant.epsilon(
            [one.event for one in limit.counted(now, last.dataset)],
            delta=limit.delta,
            relation=limit.relation,
        )
    except HushtuneError as error:
        log.warning("what was spent cannot be told in the history: %s", error)
        return None
    return Spent(
        charge=last.sequence, epsilon=epsilon, limit=terms.max_epsilon, delta=terms.max_delta
    )


def size_of(content: RecordDict) -> int:
    """Bytes of what a message holds: its arrays and its texts."""
    arrays = sum(len(a.data) for record in arrays_of(content).values() for a in record.values())
    texts = sum(
        len(str(value)) for record in texts_of(content).values() for value in record.values()
    )
    return arrays + texts
