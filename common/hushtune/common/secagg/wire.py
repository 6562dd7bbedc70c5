"""The messages of a secure sum as Flower records.

A *session* agrees on keys for a few steps. It asks each site for ``keys``, then for ``shares`` of
the secrets that open its masks, then in each step for its masked sum (``StepOrder``), and last for
those shares that open the sum of whoever answered (``OpenOrder``).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
from flwr.app import Array, ArrayRecord, RecordDict

from hushtune.common.errors import HushtuneError, MessageError
from hushtune.common.messages import (
    RoundOrder,
    decode_order,
    encode_order,
    pack,
    read_count,
    read_run,
    read_text,
    refuse_unknown,
    unpack_body,
    with_body,
)
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.keys import KEY_BYTES
from hushtune.common.secagg.ring import Ring

MOST_STEPS = 10_000
"""Steps that one session has keys for."""
_MOST_SITES = 10_000
_HEX = re.compile(r"(?:[0-9a-f]{2})*")
_SESSION = re.compile(r"[0-9a-f]{32}")
_VALUES, _MASKED, _RAW = "values", "masked", "uint64"

_T = TypeVar("_T")


@dataclass(frozen=True, kw_only=True, slots=True)
class KeysOrder:
    """Begins a session: its name, its cohort, its plan, and the numbers of its steps."""

    run: str
    session: str
    site: str
    cohort: Cohort
    plan: PrivacyPlan
    steps: tuple[int, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SiteKeys:
    """What a site publishes: a key for sealed shares; for each step a key for masks, and a
    commitment to the seed of its own mask. 32 bytes each."""

    seal: bytes
    pair: tuple[bytes, ...]
    own: tuple[bytes, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SharesOrder:
    """The keys of all sites that take part, by name."""

    run: str
    session: str
    site: str
    keys: Mapping[str, SiteKeys]


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


def encode_keys_order(order: KeysOrder) -> RecordDict:
    """Flower records for an order."""
    cohort = order.cohort
    body = {
        "run": order.run,
        "session": order.session,
        "site": order.site,
        "sites": list(cohort.sites),
        "min_survivors": cohort.min_survivors,
        "colluding": cohort.colluding,
        "plan": order.plan.to_dict(),
        "steps": list(order.steps),
    }
    return pack(body, None)


def decode_keys_order(content: RecordDict) -> KeysOrder:
    """Inverse of ``encode_keys_order``; raises MessageError or PlanError."""

    def read(body: dict[str, Any]) -> KeysOrder:
        known = ("run", "session", "site", "sites", "min_survivors", "colluding", "plan", "steps")
        refuse_unknown(body, frozenset(known))
        sites, steps = body["sites"], body["steps"]
        if not isinstance(sites, list) or not 1 < len(sites) <= _MOST_SITES:
            raise MessageError("a secure sum's sites are no list of names")
        if not isinstance(steps, list) or not 0 < len(steps) <= MOST_STEPS:
            raise MessageError("a secure sum's steps are no list of numbers")
        numbers = tuple(read_count({"steps": step}, "steps") for step in steps)
        if list(numbers) != sorted(set(numbers)):
            raise MessageError("a secure sum's steps are not in order, each once")
        return KeysOrder(
            run=read_run(body),
            session=_session(body),
            site=read_text(body, "site"),
            cohort=Cohort(
                sites=tuple(read_text({"site": name}, "site") for name in sites),
                min_survivors=read_count(body, "min_survivors"),
                colluding=read_count(body, "colluding"),
            ),
            plan=PrivacyPlan.from_dict(body["plan"]),
            steps=numbers,
        )

    return _read(content, read)


def encode_keys(session: str, site: str, keys: SiteKeys) -> RecordDict:
    """Flower records for a site's public keys."""
    return pack({"session": session, "site": site, "keys": _plain(keys)}, None)


def decode_keys(content: RecordDict) -> tuple[str, str, SiteKeys]:
    """Session, site and keys; raises MessageError."""
    return _read(
        content, lambda body: (_session(body), read_text(body, "site"), _keys(body["keys"]))
    )


def encode_shares_order(order: SharesOrder) -> RecordDict:
    """Flower records for an order."""
    keys = {name: _plain(own) for name, own in order.keys.items()}
    body = {"run": order.run, "session": order.session, "site": order.site, "keys": keys}
    return pack(body, None)


def decode_shares_order(content: RecordDict) -> SharesOrder:
    """Inverse of ``encode_shares_order``; raises MessageError."""

    def read(body: dict[str, Any]) -> SharesOrder:
        refuse_unknown(body, frozenset(("run", "session", "site", "keys")))
        return SharesOrder(
            run=read_run(body),
            session=_session(body),
            site=read_text(body, "site"),
            keys={name: _keys(raw) for name, raw in _table(body["keys"]).items()},
        )

    return _read(content, read)


def encode_shares(session: str, site: str, sealed: Mapping[str, bytes]) -> RecordDict:
    """Flower records for sealed shares, by receiver."""
    return pack({"session": session, "site": site, "sealed": _hexed(sealed)}, None)


def decode_shares(content: RecordDict) -> tuple[str, str, dict[str, bytes]]:
    """Session, sender and sealed shares; raises MessageError."""
    return _read(
        content, lambda body: (_session(body), read_text(body, "site"), _unhexed(body["sealed"]))
    )


def encode_step(order: StepOrder) -> RecordDict:
    """Flower records for an order."""
    secure = {"session": order.session, "sealed": _hexed(order.sealed)}
    return encode_order(order.order, secure=secure)


def decode_step(content: RecordDict) -> StepOrder:
    """Inverse of ``encode_step``; raises MessageError."""

    def read(body: dict[str, Any]) -> StepOrder:
        secure = _table(body.pop("secure"))
        refuse_unknown(secure, frozenset(("session", "sealed")))
        order = decode_order(with_body(content, body))
        return StepOrder(order=order, session=_session(secure), sealed=_unhexed(secure["sealed"]))

    return _read(content, read)


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
            session=_session(body),
            charge=None if charge is None else LedgerEntry.from_dict(charge),
            noise=read_text(body, "noise"),
            values=np.frombuffer(array.data, "<u8").astype(np.uint64),
        )

    return _read(content, read)


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
        if not isinstance(names, list) or len(names) > _MOST_SITES:
            raise MessageError("the survivors of a step are no list of names")
        return OpenOrder(
            run=read_run(body),
            session=_session(body),
            site=read_text(body, "site"),
            step=read_count(body, "step"),
            survivors=tuple(read_text({"site": name}, "site") for name in names),
        )

    return _read(content, read)


def encode_open_reply(reply: OpenReply) -> RecordDict:
    """Flower records for a reply."""
    body = {
        "session": reply.session,
        "site": reply.site,
        "step": reply.step,
        "own": _hexed(reply.own),
        "pair": _hexed(reply.pair),
    }
    return pack(body, None)


def decode_open_reply(content: RecordDict) -> OpenReply:
    """Inverse of ``encode_open_reply``; raises MessageError."""

    def read(body: dict[str, Any]) -> OpenReply:
        return OpenReply(
            session=_session(body),
            site=read_text(body, "site"),
            step=read_count(body, "step"),
            own=_unhexed(body["own"]),
            pair=_unhexed(body["pair"]),
        )

    return _read(content, read)


def _read(content: RecordDict, read: Callable[[dict[str, Any]], _T]) -> _T:
    body = unpack_body(content)
    try:
        return read(body)
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MessageError(
            "a message of a secure sum is damaged", given=ascii(str(error))[:200]
        ) from error


def _session(body: Mapping[str, Any]) -> str:
    session = read_text(body, "session")
    if not _SESSION.fullmatch(session):
        raise MessageError("a session's name is 32 hexadecimal digits", given=ascii(session)[:80])
    return session


def _table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageError("a message of a secure sum lacks a table", given=type(value).__name__)
    return {str(key): item for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def _plain(keys: SiteKeys) -> dict[str, Any]:
    return {
        "seal": keys.seal.hex(),
        "pair": [key.hex() for key in keys.pair],
        "own": [value.hex() for value in keys.own],
    }


def _keys(value: object) -> SiteKeys:
    raw = _table(value)
    refuse_unknown(raw, frozenset(("seal", "pair", "own")))
    keys = SiteKeys(
        seal=_bytes(raw["seal"]), pair=_all_bytes(raw["pair"]), own=_all_bytes(raw["own"])
    )
    if any(len(part) != KEY_BYTES for part in (keys.seal, *keys.pair, *keys.own)):
        raise MessageError("a key of a secure sum has a wrong length", expected=f"{KEY_BYTES}")
    return keys


def _all_bytes(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MOST_STEPS:  # pyright: ignore[reportUnknownArgumentType]
        raise MessageError("keys of a secure sum are no list")
    return tuple(_bytes(item) for item in value)  # pyright: ignore[reportUnknownVariableType]


def _bytes(value: object) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise MessageError("a value of a secure sum is not hexadecimal")
    return bytes.fromhex(value)


def _hexed(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def _unhexed(value: object) -> dict[str, bytes]:
    return {name: _bytes(text) for name, text in _table(value).items()}
