"""Messages of a secure sum: what goes in comes out, and whatever else comes in is refused."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as some

from hushtune.common.errors import HushtuneError
from hushtune.common.messages import unpack_body
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan, Relation, Trust, Unit
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.wire import (
    KeysOrder,
    Received,
    ReceivedOrder,
    SharesOrder,
    SiteKeys,
    decode_keys,
    decode_keys_order,
    decode_received,
    decode_received_order,
    decode_shares,
    decode_shares_order,
    encode_keys,
    encode_keys_order,
    encode_received,
    encode_received_order,
    encode_shares,
    encode_shares_order,
)
from hushtune.common.secagg.wire_step import (
    Confirmed,
    ConfirmOrder,
    OpenOrder,
    OpenReply,
    StepReply,
    decode_confirm_order,
    decode_confirmed,
    decode_open_order,
    decode_open_reply,
    decode_step,
    decode_step_reply,
    encode_confirm_order,
    encode_confirmed,
    encode_open_order,
    encode_open_reply,
    encode_step_reply,
)

SESSION = "ab" * 16
PLAN = PrivacyPlan(
    epsilon=3.0,
    delta=1e-5,
    sampling_probability=0.1,
    noise_multiplier=1.5,
    clip_norm=0.5,
    denominator=20.0,
    steps=10,
    unit=Unit.EXAMPLE,
    relation=Relation.ADD_OR_REMOVE_ONE,
    trust=Trust.DISTRIBUTED,
)
EVENT = DpSgdEvent(sampling_probability=0.1, noise_multiplier=1.5, steps=1)
CHARGE = LedgerEntry.after(
    0, GENESIS, dataset="rows", run="run", round=3, unit="example", event=EVENT
)


def keys(steps: int = 2) -> SiteKeys:
    return SiteKeys(
        seal=os.urandom(32),
        sign=os.urandom(32),
        pair=tuple(os.urandom(32) for _ in range(steps)),
        own=tuple(os.urandom(32) for _ in range(steps)),
    )


COHORT = Cohort(sites=("east", "north", "süd"), min_survivors=3, colluding=1)
KEYS_ORDER = KeysOrder(
    run="run", session=SESSION, site="east", cohort=COHORT, plan=PLAN, steps=(3, 4)
)
SHARES_ORDER = SharesOrder(
    run="run", session=SESSION, site="east", keys={name: keys() for name in COHORT.sites}
)
RECEIVED_ORDER = ReceivedOrder(
    run="run", session=SESSION, site="east", sharing=COHORT.sites, sealed={"north": b"text"}
)
RECEIVED = Received(session=SESSION, site="east", false=("süd",), signature=bytes(64))
CONFIRM_ORDER = ConfirmOrder(
    run="run", session=SESSION, site="east", step=3, survivors=COHORT.sites
)
CONFIRMED = Confirmed(session=SESSION, site="east", step=3, signature=bytes(64))
OPEN_ORDER = OpenOrder(
    run="run",
    session=SESSION,
    site="east",
    step=3,
    survivors=COHORT.sites,
    confirmed={"süd": bytes(64)},
)
OPEN_REPLY = OpenReply(
    session=SESSION, site="east", step=3, own={"east": bytes(16)}, pair={"süd": bytes(16)}
)
STEP_REPLY = StepReply(
    run="run",
    round=3,
    site="east",
    session=SESSION,
    charge=CHARGE,
    noise="a line",
    values=np.array([0, 1, 2**64 - 1], np.uint64),
)
SEALED = {"north": b"text", "süd": b""}
DECODERS: dict[str, Callable[[RecordDict], Any]] = {
    "keys order": decode_keys_order,
    "keys": decode_keys,
    "shares order": decode_shares_order,
    "shares": decode_shares,
    "received order": decode_received_order,
    "received": decode_received,
    "step": decode_step,
    "confirm order": decode_confirm_order,
    "confirmed": decode_confirmed,
    "step reply": decode_step_reply,
    "open order": decode_open_order,
    "open reply": decode_open_reply,
}
GOOD: dict[str, RecordDict] = {
    "keys order": encode_keys_order(KEYS_ORDER),
    "keys": encode_keys(SESSION, "east", keys()),
    "shares order": encode_shares_order(SHARES_ORDER),
    "shares": encode_shares(SESSION, "east", SEALED),
    "received order": encode_received_order(RECEIVED_ORDER),
    "received": encode_received(RECEIVED),
    "step reply": encode_step_reply(STEP_REPLY),
    "confirm order": encode_confirm_order(CONFIRM_ORDER),
    "confirmed": encode_confirmed(CONFIRMED),
    "open order": encode_open_order(OPEN_ORDER),
    "open reply": encode_open_reply(OPEN_REPLY),
}


def test_what_goes_in_comes_out() -> None:
    assert decode_keys_order(GOOD["keys order"]) == KEYS_ORDER
    assert decode_shares_order(GOOD["shares order"]) == SHARES_ORDER
    assert decode_shares(GOOD["shares"]) == (SESSION, "east", SEALED)
    assert decode_received_order(GOOD["received order"]) == RECEIVED_ORDER
    assert decode_received(GOOD["received"]) == RECEIVED
    assert decode_confirm_order(GOOD["confirm order"]) == CONFIRM_ORDER
    assert decode_confirmed(GOOD["confirmed"]) == CONFIRMED
    assert decode_open_order(GOOD["open order"]) == OPEN_ORDER
    assert decode_open_reply(GOOD["open reply"]) == OPEN_REPLY
    own = keys()
    assert decode_keys(encode_keys(SESSION, "east", own)) == (SESSION, "east", own)
    found = decode_step_reply(GOOD["step reply"])
    assert np.array_equal(found.values, STEP_REPLY.values)
    assert (found.charge, found.round) == (CHARGE, 3)


@pytest.mark.parametrize("kind", GOOD)
def test_every_field_is_checked(kind: str) -> None:
    """Taken away, or of a wrong type, each is refused by name and not by a stack trace."""
    body = unpack_body(GOOD[kind])
    for key in body:
        rest = {name: value for name, value in body.items() if name != key}
        wrong: list[object] = [*({**rest, key: v} for v in (1.5, True, {"a": []}, [[]], "\ud800"))]
        for spoiled in (rest, *wrong):
            if kind == "keys" and key == "keys":
                continue
            content = with_text(GOOD[kind], json.dumps(spoiled))
            try:
                DECODERS[kind](content)
            except HushtuneError:
                continue
            assert spoiled is not rest, key


def with_text(content: RecordDict, text: str) -> RecordDict:
    return RecordDict({**content, "hushtune": ConfigRecord({"json": text})})


@given(
    kind=some.sampled_from(sorted(DECODERS)),
    body=some.recursive(
        some.none() | some.booleans() | some.floats() | some.integers() | some.text(),
        lambda inner: (
            some.lists(inner, max_size=4)
            | some.dictionaries(
                some.sampled_from(
                    ["run", "session", "site", "sites", "keys", "sealed", "secure", "plan", "x"]
                ),
                inner,
                max_size=5,
            )
        ),
        max_leaves=12,
    ),
)
def test_any_body_is_decoded_or_refused(kind: str, body: object) -> None:
    try:
        DECODERS[kind](with_text(RecordDict(), json.dumps(body)))
    except HushtuneError:
        return
    pytest.fail("made-up text was taken for a message")


@given(
    kind=some.sampled_from(sorted(GOOD)), place=some.integers(0, 400), byte=some.integers(32, 126)
)
def test_an_altered_character_is_another_message_or_none(kind: str, place: int, byte: int) -> None:
    text = str(GOOD[kind].config_records["hushtune"]["json"])
    place %= len(text)
    altered = text[:place] + chr(byte) + text[place + 1 :]
    try:
        DECODERS[kind](with_text(GOOD[kind], altered))
    except HushtuneError:
        return


@given(data=some.binary(max_size=64), stype=some.sampled_from(["uint64", "pickle", ""]))
def test_masked_values_of_any_bytes_are_numbers_or_refused(data: bytes, stype: str) -> None:
    content = encode_step_reply(STEP_REPLY)
    array = Array(dtype="uint64", shape=(len(data),), stype=stype, data=data)
    content["values"] = ArrayRecord({"masked": array})
    try:
        found = decode_step_reply(content)
    except HushtuneError:
        assert stype != "uint64" or len(data) % 8
        return
    assert found.values.dtype == np.uint64
    assert found.values.size == len(data) // 8


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("steps", []),
        ("steps", [4, 3]),
        ("steps", [3, 3]),
        ("steps", list(range(10_001))),
        ("sites", ["east"]),
        ("sites", ["north", "east", "süd"]),
        ("session", "AB" * 16),
        ("session", "ab"),
        ("min_survivors", 2),
        ("colluding", 3),
        ("strange", 1),
    ],
)
def test_an_order_for_a_session_that_makes_no_sense_is_refused(key: str, value: object) -> None:
    body = {**unpack_body(GOOD["keys order"]), key: value}
    with pytest.raises(HushtuneError):
        decode_keys_order(with_text(RecordDict(), json.dumps(body)))


@pytest.mark.parametrize("bad", ["ab" * 31, "ab" * 33, "zz" * 32, "", 7, None])
def test_a_key_that_is_none_is_refused(bad: object) -> None:
    raw = unpack_body(GOOD["keys"])
    for change in ({"seal": bad}, {"sign": bad}, {"pair": [bad]}, {"own": [bad, bad]}):
        body = {**raw, "keys": {**raw["keys"], **change}}
        with pytest.raises(HushtuneError):
            decode_keys(with_text(RecordDict(), json.dumps(body)))
