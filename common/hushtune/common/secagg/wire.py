"""The messages of a secure sum as Flower records.

A *session* agrees on keys for a few steps. It asks each site for ``keys``, then for ``shares`` of
the secrets that open its masks, and hands these out (``received``). In each step it asks for a
masked sum (``StepOrder``), has each site sign whose sums arrived (``ConfirmOrder``; not where all
must stay), and last asks for those shares that open their sum (``OpenOrder``).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from flwr.app import RecordDict

from hushtune.common.errors import MessageError
from hushtune.common.messages import pack, read_run
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.keys import KEY_BYTES
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

MOST_STEPS = 10_000
"""Steps that one session has keys for."""


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
    """What a site publishes: a key for sealed shares, one that its signatures are checked by; for
    each step a key for masks, and a commitment to the seed of its own mask. 32 bytes each."""

    seal: bytes
    sign: bytes
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
class ReceivedOrder:
    """Who has shared secrets, and what of it is for this site: sealed shares, by sender."""

    run: str
    session: str
    site: str
    sharing: tuple[str, ...]
    sealed: Mapping[str, bytes]


@dataclass(frozen=True, kw_only=True, slots=True)
class Received:
    """Who has sent a site something that is no share for it, and its signature under who has shared
    (see ``agreement``)."""

    session: str
    site: str
    false: tuple[str, ...]
    signature: bytes


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
        steps = body["steps"]
        if not isinstance(steps, list) or not 0 < len(steps) <= MOST_STEPS:
            raise MessageError("a secure sum's steps are no list of numbers")
        numbers = tuple(read_count({"steps": step}, "steps") for step in steps)
        if list(numbers) != sorted(set(numbers)):
            raise MessageError("a secure sum's steps are not in order, each once")
        return KeysOrder(
            run=read_run(body),
            session=read_session(body),
            site=read_text(body, "site"),
            cohort=Cohort(
                sites=read_names(body["sites"]),
                min_survivors=read_count(body, "min_survivors"),
                colluding=read_count(body, "colluding"),
            ),
            plan=PrivacyPlan.from_dict(body["plan"]),
            steps=numbers,
        )

    return read_message(content, read)


def encode_keys(session: str, site: str, keys: SiteKeys) -> RecordDict:
    """Flower records for a site's public keys."""
    return pack({"session": session, "site": site, "keys": _plain(keys)}, None)


def decode_keys(content: RecordDict) -> tuple[str, str, SiteKeys]:
    """Session, site and keys; raises MessageError."""
    return read_message(
        content, lambda body: (read_session(body), read_text(body, "site"), _keys(body["keys"]))
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
            session=read_session(body),
            site=read_text(body, "site"),
            keys={name: _keys(raw) for name, raw in read_table(body["keys"]).items()},
        )

    return read_message(content, read)


def encode_shares(session: str, site: str, sealed: Mapping[str, bytes]) -> RecordDict:
    """Flower records for sealed shares, by receiver."""
    return pack({"session": session, "site": site, "sealed": hexed(sealed)}, None)


def decode_shares(content: RecordDict) -> tuple[str, str, dict[str, bytes]]:
    """Session, sender and sealed shares; raises MessageError."""
    return read_message(
        content, lambda body: (read_session(body), read_text(body, "site"), unhexed(body["sealed"]))
    )


def encode_received_order(order: ReceivedOrder) -> RecordDict:
    """Flower records for an order."""
    body = {
        "run": order.run,
        "session": order.session,
        "site": order.site,
        "sharing": list(order.sharing),
        "sealed": hexed(order.sealed),
    }
    return pack(body, None)


def decode_received_order(content: RecordDict) -> ReceivedOrder:
    """Inverse of ``encode_received_order``; raises MessageError."""

    def read(body: dict[str, Any]) -> ReceivedOrder:
        refuse_unknown(body, frozenset(("run", "session", "site", "sharing", "sealed")))
        return ReceivedOrder(
            run=read_run(body),
            session=read_session(body),
            site=read_text(body, "site"),
            sharing=read_names(body["sharing"]),
            sealed=unhexed(body["sealed"]),
        )

    return read_message(content, read)


def encode_received(reply: Received) -> RecordDict:
    """Flower records for a reply."""
    body = {
        "session": reply.session,
        "site": reply.site,
        "false": list(reply.false),
        "signature": reply.signature.hex(),
    }
    return pack(body, None)


def decode_received(content: RecordDict) -> Received:
    """Inverse of ``encode_received``; raises MessageError."""
    return read_message(
        content,
        lambda body: Received(
            session=read_session(body),
            site=read_text(body, "site"),
            false=read_names(body["false"]),
            signature=read_bytes(body["signature"]),
        ),
    )


def _plain(keys: SiteKeys) -> dict[str, Any]:
    return {
        "seal": keys.seal.hex(),
        "sign": keys.sign.hex(),
        "pair": [key.hex() for key in keys.pair],
        "own": [value.hex() for value in keys.own],
    }


def _keys(value: object) -> SiteKeys:
    raw = read_table(value)
    refuse_unknown(raw, frozenset(("seal", "sign", "pair", "own")))
    keys = SiteKeys(
        seal=read_bytes(raw["seal"]),
        sign=read_bytes(raw["sign"]),
        pair=_all_bytes(raw["pair"]),
        own=_all_bytes(raw["own"]),
    )
    if any(len(part) != KEY_BYTES for part in (keys.seal, keys.sign, *keys.pair, *keys.own)):
        raise MessageError("a key of a secure sum has a wrong length", expected=f"{KEY_BYTES}")
    return keys


def _all_bytes(value: object) -> tuple[bytes, ...]:
    if not isinstance(value, list) or len(value) > MOST_STEPS:  # pyright: ignore[reportUnknownArgumentType]
        raise MessageError("keys of a secure sum are no list")
    return tuple(read_bytes(item) for item in value)  # pyright: ignore[reportUnknownVariableType]
