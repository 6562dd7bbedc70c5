"""The messages of one step of a secure sum as Flower records: masked sum, agreement, opening."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from hushtune.common.errors import MessageError
from hushtune.common.messages import (
    RoundOrder,
    decode_order,
    encode_orders,
    pack,
    read_run,
    with_body,
)
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.records import arrays_of
from hushtune.common.secagg.ring import Ring
from hushtune.common.secagg.wire_parts import (
    hexed,
    read_bytes,
    read_message,
    read_names,
    read_session,
    read_table,
    unhexed,
)
from hushtune.common.wire_values import read_count, read_text, refuse_unknown

_VALUES, _MASKED, _RAW = "values", "masked", "uint64"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOrder:
    """An order for one step, and the place of this step in a session; ``agreed`` has the signatures
    of sites, by name, under who has shared secrets: a site wants them once."""

    order: RoundOrder
    session: str
    agreed: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class StepReply:
    """A masked sum, and the charge that pays for it."""

    run: str
    round: int
    site: str
    session: str
    charge: LedgerEntry | None
    noise: str
    values: Ring


@dataclass(frozen=True, kw_only=True, slots=True)
class ConfirmOrder:
    """Has a site sign that ``survivors`` are those whose masked sums of a step arrived."""

    run: str
    session: str
    site: str
    step: int
    survivors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Confirmed:
    """A site's signature under whose sums arrived (see ``agreement``)."""

    session: str
    site: str
    step: int
    signature: bytes


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenOrder:
    """Asks for the shares that open the sum of ``survivors``; ``confirmed`` has the survivors'
    signatures under that list, by name."""

    run: str
    session: str
    site: str
    step: int
    survivors: tuple[str, ...]
    confirmed: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenReply:
    """Shares by the site whose they are: of survivors' own seeds, of the others' pair seeds."""

    session: str
    site: str
    step: int
    own: Mapping[str, bytes]
    pair: Mapping[str, bytes]


def encode_steps(orders: Sequence[StepOrder]) -> list[RecordDict]:
    """Flower records for orders."""
    secure = [{"session": each.session, "agreed": hexed(each.agreed)} for each in orders]
    return encode_orders([each.order for each in orders], [{"secure": more} for more in secure])


def decode_step(content: RecordDict) -> StepOrder:
    """Inverse of ``encode_step``; raises MessageError."""

    def read(body: dict[str, Any]) -> StepOrder:
        secure = read_table(body.pop("secure"))
        refuse_unknown(secure, frozenset(("session", "agreed")))
        order = decode_order(with_body(content, body))
        return StepOrder(
            order=order, session=read_session(secure), agreed=unhexed(secure["agreed"])
        )

    return read_message(content, read)


def encode_step_reply(reply: StepReply) -> RecordDict:
    """Flower records for a reply: the masked numbers as raw little-endian bytes."""
    body = {
        "run": reply.run,
        "round": reply.round,
        "site": reply.site,
        "session": reply.session,
        "charge": None if reply.charge is None else reply.charge.to_dict(),
        "noise": reply.noise,
    }
    record = pack(body, None)
    data = reply.values.astype("<u8").tobytes()
    array = Array(dtype=_RAW, shape=(reply.values.size,), stype=_RAW, data=data)
    record[_VALUES] = ArrayRecord({_MASKED: array})
    return record


def decode_step_reply(content: RecordDict) -> StepReply:
    """Inverse of ``encode_step_reply``; raises MessageError."""

    def read(body: dict[str, Any]) -> StepReply:
        array = arrays_of(content)[_VALUES][_MASKED]
        if array.stype != _RAW or len(array.data) % 8:
            raise MessageError("masked values are encoded in an unknown way", given=array.stype)
        charge = body["charge"]
        return StepReply(
            run=read_text(body, "run"),
            round=read_count(body, "round"),
            site=read_text(body, "site"),
            session=read_session(body),
            charge=None if charge is None else LedgerEntry.from_dict(charge),
            noise=read_text(body, "noise"),
            values=np.frombuffer(array.data, "<u8").astype(np.uint64),
        )

    return read_message(content, read)


def encode_confirm_order(order: ConfirmOrder) -> RecordDict:
    """Flower records for an order."""
    return pack(_named(order), None)


def decode_confirm_order(content: RecordDict) -> ConfirmOrder:
    """Inverse of ``encode_confirm_order``; raises MessageError."""

    def read(body: dict[str, Any]) -> ConfirmOrder:
        refuse_unknown(body, _NAMED)
        return ConfirmOrder(**_read_named(body))

    return read_message(content, read)


def encode_confirmed(reply: Confirmed) -> RecordDict:
    """Flower records for a reply."""
    body = {
        "session": reply.session,
        "site": reply.site,
        "step": reply.step,
        "signature": reply.signature.hex(),
    }
    return pack(body, None)


def decode_confirmed(content: RecordDict) -> Confirmed:
    """Inverse of ``encode_confirmed``; raises MessageError."""
    return read_message(
        content,
        lambda body: Confirmed(
            session=read_session(body),
            site=read_text(body, "site"),
            step=read_count(body, "step"),
            signature=read_bytes(body["signature"]),
        ),
    )


def encode_open_order(order: OpenOrder) -> RecordDict:
    """Flower records for an order."""
    return pack({**_named(order), "confirmed": hexed(order.confirmed)}, None)


def decode_open_order(content: RecordDict) -> OpenOrder:
    """Inverse of ``encode_open_order``; raises MessageError."""

    def read(body: dict[str, Any]) -> OpenOrder:
        refuse_unknown(body, _NAMED | {"confirmed"})
        return OpenOrder(**_read_named(body), confirmed=unhexed(body["confirmed"]))

    return read_message(content, read)


_NAMED = frozenset(("run", "session", "site", "step", "survivors"))


def _named(order: ConfirmOrder | OpenOrder) -> dict[str, Any]:
    return {
        "run": order.run,
        "session": order.session,
        "site": order.site,
        "step": order.step,
        "survivors": list(order.survivors),
    }


def _read_named(body: Mapping[str, Any]) -> dict[str, Any]:
    return {
        "run": read_run(body),
        "session": read_session(body),
        "site": read_text(body, "site"),
        "step": read_count(body, "step"),
        "survivors": read_names(body["survivors"]),
    }


def encode_open_reply(reply: OpenReply) -> RecordDict:
    """Flower records for a reply."""
    body = {
        "session": reply.session,
        "site": reply.site,
        "step": reply.step,
        "own": hexed(reply.own),
        "pair": hexed(reply.pair),
    }
    return pack(body, None)


def decode_open_reply(content: RecordDict) -> OpenReply:
    """Inverse of ``encode_open_reply``; raises MessageError."""

    def read(body: dict[str, Any]) -> OpenReply:
        return OpenReply(
            session=read_session(body),
            site=read_text(body, "site"),
            step=read_count(body, "step"),
            own=unhexed(body["own"]),
            pair=unhexed(body["pair"]),
        )

    return read_message(content, read)
