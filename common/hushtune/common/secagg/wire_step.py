"""The messages of one step of a secure sum as Flower records: the masked sum, and its opening."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from hushtune.common.errors import MessageError
from hushtune.common.messages import (
    RoundOrder,
    decode_order,
    encode_order,
    pack,
    read_run,
    with_body,
)
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.secagg.ring import Ring
from hushtune.common.secagg.wire import MOST_SITES
from hushtune.common.secagg.wire_parts import (
    hexed,
    read_message,
    read_session,
    read_table,
    unhexed,
)
from hushtune.common.wire_values import read_count, read_text, refuse_unknown

_VALUES, _MASKED, _RAW = "values", "masked", "uint64"


@dataclass(frozen=True, kw_only=True, slots=True)
class StepOrder:
    """An order for one step, and the place of this step in a session; ``sealed`` is what other
    sites have sent to this one, by sender."""

    order: RoundOrder
    session: str
    sealed: Mapping[str, bytes]


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
class OpenOrder:
    """Asks for the shares that open the sum of ``survivors``, those whose masked sums arrived."""

    run: str
    session: str
    site: str
    step: int
    survivors: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class OpenReply:
    """Shares by the site whose they are: of survivors' own seeds, of the others' pair seeds."""

    session: str
    site: str
    step: int
    own: Mapping[str, bytes]
    pair: Mapping[str, bytes]


def encode_step(order: StepOrder) -> RecordDict:
    """Flower records for an order."""
    secure = {"session": order.session, "sealed": hexed(order.sealed)}
    return encode_order(order.order, secure=secure)


def decode_step(content: RecordDict) -> StepOrder:
    """Inverse of ``encode_step``; raises MessageError."""

    def read(body: dict[str, Any]) -> StepOrder:
        secure = read_table(body.pop("secure"))
        refuse_unknown(secure, frozenset(("session", "sealed")))
        order = decode_order(with_body(content, body))
        return StepOrder(
            order=order, session=read_session(secure), sealed=unhexed(secure["sealed"])
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
        array = content.array_records[_VALUES][_MASKED]
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


def encode_open_order(order: OpenOrder) -> RecordDict:
    """Flower records for an order."""
    body = {
        "run": order.run,
        "session": order.session,
        "site": order.site,
        "step": order.step,
        "survivors": list(order.survivors),
    }
    return pack(body, None)


def decode_open_order(content: RecordDict) -> OpenOrder:
    """Inverse of ``encode_open_order``; raises MessageError."""

    def read(body: dict[str, Any]) -> OpenOrder:
        refuse_unknown(body, frozenset(("run", "session", "site", "step", "survivors")))
        names = body["survivors"]
        if not isinstance(names, list) or len(names) > MOST_SITES:
            raise MessageError("the survivors of a step are no list of names")
        return OpenOrder(
            run=read_run(body),
            session=read_session(body),
            site=read_text(body, "site"),
            step=read_count(body, "step"),
            survivors=tuple(read_text({"site": name}, "site") for name in names),
        )

    return read_message(content, read)


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
