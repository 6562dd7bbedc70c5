"""From a round's Flower replies to the updates that may be used and the reasons for all others."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import Message, RecordDict

from hushtune.common.errors import HushtuneError, UpdateRejectedError
from hushtune.common.messages import ClientUpdate, Refusal, RoundOrder, decode_reply
from hushtune.common.privacy.accountant import LEAST_NOISE_MULTIPLIER
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.records import arrays_of, texts_of
from hushtune.server.aggregation.check import check_update
from hushtune.server.chains import NOTHING_SHOWN, Shown

log = logging.getLogger(__name__)

_LONGEST_REASON = 500


@dataclass(frozen=True, kw_only=True)
class Replies:
    """What came back in a round, each by site name, sorted.

    ``rejected`` gives the reason for every site that was asked and whose update is not used.
    ``charges`` are all that were shown, those of rejected updates included: the site has spent
    them. ``refusals`` are rows with round, code and reason.
    """

    accepted: tuple[ClientUpdate, ...]
    rejected: Mapping[str, str]
    charges: Mapping[str, LedgerEntry]
    refusals: Mapping[str, Mapping[str, Any]]
    num_bytes: int


def read_replies(
    messages: Iterable[Message],
    *,
    orders: Mapping[str, RoundOrder],
    nodes: Mapping[str, int],
    max_norm: float,
    shown: Shown = NOTHING_SHOWN,
) -> Replies:
    """Decode and check the replies of the sites that got ``orders``.

    A site is known by the node that answered, never by what the answer says. Of two replies of one
    node the first counts; replies of nodes that were not asked are left out. ``shown``: the sites'
    charges so far.
    """
    sites = {nodes[site]: site for site in orders if site in nodes}
    accepted: dict[str, ClientUpdate] = {}
    rejected: dict[str, str] = {}
    charges: dict[str, LedgerEntry] = {}
    refusals: dict[str, Mapping[str, Any]] = {}
    num_bytes = 0
    for message in messages:
        site = sites.pop(message.metadata.src_node_id, None)
        if site is None:
            log.warning("an unasked reply of node %s is ignored", message.metadata.src_node_id)
            continue
        order = orders[site]
        num_bytes += content_bytes(message.content) if message.has_content() else 0
        reply = _decode(message)
        if isinstance(reply, ClientUpdate):
            if reply.charge is not None and countable(reply.charge, order):
                charges[site] = reply.charge
            fault = _objection(reply, order, max_norm)
            if fault is None and reply.charge is not None:
                broken = shown.objection(site, reply.charge)
                fault = None if broken is None else short(f"rejected, ledger: {broken}")
            if fault is None:
                accepted[site] = reply
            else:
                rejected[site] = fault
        elif isinstance(reply, Refusal):
            refusals[site] = refusal_row(reply, order.round)
            rejected[site] = refusal_words(reply)
        else:
            rejected[site] = reply
    for site in orders:
        if site not in accepted and site not in rejected:
            rejected[site] = "no answer" if site in nodes else "not connected"
    return Replies(
        accepted=tuple(accepted[site] for site in sorted(accepted)),
        rejected=dict(sorted(rejected.items())),
        charges=dict(sorted(charges.items())),
        refusals=dict(sorted(refusals.items())),
        num_bytes=num_bytes,
    )


def each_once(messages: list[Message]) -> Iterator[Message]:
    """In their order. Empties the list: those that were read leave it, each as large as what it
    held."""
    messages.reverse()
    while messages:
        yield messages.pop()


def content_bytes(content: RecordDict) -> int:
    """Bytes of a message's records."""
    records = (*arrays_of(content).values(), *texts_of(content).values())
    return sum(record.count_bytes() for record in records)


def _decode(message: Message) -> ClientUpdate | Refusal | str:
    """The reply, or why it is none."""
    if message.has_error():
        return short(f"failed: {message.error.reason or 'without a reason'}")
    try:
        return decode_reply(message.content)
    except HushtuneError as error:
        return short(f"rejected, message: {error.message}")


def _objection(update: ClientUpdate, order: RoundOrder, max_norm: float) -> str | None:
    try:
        check_update(update, order=order, max_norm=max_norm)
    except UpdateRejectedError as error:
        return short(f"rejected, {error.reason}: {error.given}")
    return None


def countable(charge: LedgerEntry, order: RoundOrder) -> bool:
    """Whether a shown charge belongs to this run and can be put to the accountant.

    A charge of another event than the one ordered is counted too, since the site has spent it; but
    not one that no plan could hold, which would only serve to exhaust the server's memory.
    """
    return (
        order.plan.trust.charges_sites
        and charge.run == order.charged_run
        and charge.release.noise_multiplier >= LEAST_NOISE_MULTIPLIER
        and charge.release.steps <= order.plan.steps
    )


def refusal_row(refusal: Refusal, round: int, *, of: str = "") -> dict[str, Any]:
    """A refusal as it is kept; ``of`` says what was refused where it was not training."""
    return {"round": round, "code": short(refusal.code), "reason": short(f"{of}{refusal.reason}")}


def refusal_words(refusal: Refusal) -> str:
    """A refusal as it is shown."""
    return f"refused, {short(refusal.code)}: {short(refusal.reason)}"


def short(text: str) -> str:
    """What a site says is shown and kept, but it must not fill the server's disk."""
    return text if len(text) <= _LONGEST_REASON else text[:_LONGEST_REASON] + "..."
