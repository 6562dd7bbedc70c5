"""What comes back in the exchanges of a secure sum, beside the sums."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from flwr.app import Message, RecordDict

from hushtune.common.errors import MessageError
from hushtune.common.messages import Refusal, decode_refusal, unpack_body
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.server.replies import short


@dataclass
class Traffic:
    """What the sites said beside their sums, over the exchanges of a round.

    ``lost``: why a site is no longer in it. ``refusals`` and ``charges`` by site, in order.
    """

    bytes_down: int = 0
    bytes_up: int = 0
    exchanges: int = 0
    lost: dict[str, str] = field(default_factory=dict[str, str])
    refusals: dict[str, Mapping[str, object]] = field(
        default_factory=dict[str, Mapping[str, object]]
    )
    charges: list[tuple[str, LedgerEntry]] = field(default_factory=list[tuple[str, LedgerEntry]])


class RefusedError(Exception):
    """A site refused."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.reason)
        self.refusal = refusal


def content_of(message: Message) -> RecordDict:
    """What a site answers; raises for an error and for a refusal."""
    if message.has_error():
        raise MessageError(short(f"failed: {message.error.reason or 'without a reason'}"))
    if unpack_body(message.content).get("refused"):
        raise RefusedError(decode_refusal(message.content))
    return message.content
