"""Orders, updates, refusals and the roll call as real Flower records."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict
from flwr.common.serde import recorddict_from_proto, recorddict_to_proto
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.encoding import ENCODINGS, decode, encode
from hushtune.common.errors import HushtuneError, MessageError, PlanError
from hushtune.common.local_training import LocalTraining
from hushtune.common.messages import (
    ClientUpdate,
    Refusal,
    RoundOrder,
    decode_order,
    decode_reply,
    encode_order,
    encode_orders,
    encode_refusal,
    encode_update,
)
from hushtune.common.privacy.ledger_entry import GENESIS, RECORD, LedgerEntry
from hushtune.common.privacy.plan import DpSgdEvent, PrivacyPlan, Relation, Trust, Unit
from hushtune.common.roll_call_messages import decode_hello, decode_site, encode_hello, encode_site

SPEC = AdapterSpec(base="ab" * 32, rank=1, alpha=1.0, rslora=True, targets=("q",), head=("weight",))
STATE = AdapterState(
    SPEC,
    {
        "head.weight": torch.ones(2, 2),
        "q.lora_A": torch.full((1, 3), 0.1),
        "q.lora_B": torch.zeros(2, 1),
    },
)
PRIVATE = PrivacyPlan(
    epsilon=3.0,
    delta=1e-5,
    sampling_probability=0.1,
    noise_multiplier=2.0,
    clip_norm=1.0,
    denominator=10.0,
    steps=12,
    unit=Unit.EXAMPLE,
    relation=Relation.REPLACE_ONE,
    trust=Trust.SITE,
)
OFF = replace(
    PRIVATE,
    epsilon=float("inf"),
    noise_multiplier=0.0,
    clip_norm=float("inf"),
    trust=Trust.OFF,
)
ORDER = RoundOrder(
    run="run",
    round=3,
    site="north",
    adapter=STATE,
    trainable=("head.weight", "q.lora_B"),
    rule="ffa",
    plan=PRIVATE,
    local_steps=2,
    num_examples=100,
    training=LocalTraining(
        learning_rate=0.1,
        optimizer="adamw",
        schedule="cosine",
        weight_decay=0.01,
        first_step=4,
        schedule_steps=12,
        microbatch=32,
    ),
)
CHARGE = LedgerEntry.after(
    0, GENESIS, dataset="d", run="run", round=3, unit=RECORD, event=PRIVATE.event(2)
)
UPDATE = ClientUpdate(
    run="run",
    round=3,
    site="north",
    delta=STATE.select(ORDER.trainable),
    num_examples=100,
    charge=CHARGE,
    noise="ChaCha20",
)
REFUSAL = Refusal(run="run", round=3, site="north", code="HT401", reason="spent\n  do: stop")


def wired(content: RecordDict) -> RecordDict:
    """What arrives after Flower has put the records on the wire."""
    return recorddict_from_proto(recorddict_to_proto(content))


def plain(value: RoundOrder | ClientUpdate) -> dict[str, Any]:
    """All fields, the state by its digest, which compares tensors bit for bit."""
    fields = {name: getattr(value, name) for name in value.__slots__}
    return {k: v.digest() if isinstance(v, AdapterState) else v for k, v in fields.items()}


@pytest.mark.parametrize("plan", [PRIVATE, OFF], ids=["site", "off"])
def test_orders_round_trip(plan: PrivacyPlan) -> None:
    order = replace(ORDER, plan=plan)
    assert plain(decode_order(wired(encode_order(order)))) == plain(order)


def test_what_several_orders_carry_is_encoded_once() -> None:
    control = STATE.select(ORDER.trainable)
    own = replace(STATE, tensors={key: t + 1 for key, t in STATE.tensors.items()})
    orders = [
        ORDER,
        replace(ORDER, site="south", control=control),
        replace(ORDER, site="west", adapter=own, control=control),
    ]
    contents = encode_orders(orders)
    assert [plain(decode_order(wired(content))) for content in contents] == [
        plain(order) for order in orders
    ]
    north, south, west = (content.array_records["adapter"] for content in contents)
    assert north["state"].data is south["state"].data
    assert south["control"].data is west["control"].data


@pytest.mark.parametrize("charge", [CHARGE, None])
def test_updates_round_trip(charge: LedgerEntry | None) -> None:
    update = replace(UPDATE, charge=charge)
    back = decode_reply(wired(encode_update(update)))
    assert isinstance(back, ClientUpdate)
    assert plain(back) == plain(update)


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_an_update_crosses_in_the_encoding_that_an_order_names(encoding: str) -> None:
    asked = decode_order(wired(encode_order(replace(ORDER, encoding=encoding))))
    assert plain(asked) == plain(replace(ORDER, encoding=encoding))  # its own adapter is exact
    content = wired(encode_update(replace(UPDATE, encoding=asked.encoding)))
    back = decode_reply(content)
    assert isinstance(back, ClientUpdate)
    assert back.encoding == encoding
    assert back.delta.to_bytes() == decode(encode(UPDATE.delta, encoding)).to_bytes()
    assert content.array_records["adapter"]["state"].data == encode(UPDATE.delta, encoding)


@pytest.mark.parametrize("encoding", ["int4", "", "FLOAT32", None, 8, ["int8"]])
def test_an_order_of_an_unknown_encoding_is_a_message_error(encoding: object) -> None:
    with pytest.raises(MessageError, match="encoding"):
        decode_order(edited(encode_order(ORDER), lambda body: body.update(encoding=encoding)))


@pytest.mark.parametrize("encoding", ["bfloat16", "int8"])
def test_an_order_s_own_adapter_is_float32(encoding: str) -> None:
    rounded = replace(UPDATE, delta=STATE, encoding=encoding)
    content = RecordDict({**encode_order(ORDER), "adapter": encode_update(rounded)["adapter"]})
    with pytest.raises(MessageError, match="damaged"):
        decode_order(content)


def test_refusals_and_the_roll_call_round_trip() -> None:
    assert decode_reply(wired(encode_refusal(REFUSAL))) == REFUSAL
    decode_hello(wired(encode_hello()))
    assert decode_site(wired(encode_site("Universitätsklinikum 北"))) == "Universitätsklinikum 北"


finite = st.floats(min_value=1e-6, max_value=1e6)
counts = st.integers(0, 2**53 - 1)


@settings(max_examples=50, deadline=None)
@given(st.text(max_size=200).filter(str.isprintable), st.text(), counts, finite, counts)
def test_any_order_round_trips(run: str, site: str, round: int, rate: float, steps: int) -> None:
    training = replace(ORDER.training, learning_rate=rate, schedule_steps=max(1, steps))
    order = replace(ORDER, run=run, round=round, site=site, num_examples=round, training=training)
    assert plain(decode_order(encode_order(order))) == plain(order)


@settings(max_examples=50, deadline=None)
@given(st.floats(1e-6, 1.0), finite, st.integers(1, 10**6))
def test_a_charge_keeps_every_bit_of_its_event(rate: float, noise: float, steps: int) -> None:
    event = DpSgdEvent(sampling_probability=rate, noise_multiplier=noise, steps=steps)
    entry = LedgerEntry.after(3, "a" * 64, dataset="d", run="r", round=1, unit=RECORD, event=event)
    back = decode_reply(encode_update(replace(UPDATE, charge=entry)))
    assert isinstance(back, ClientUpdate)
    assert back.charge == entry


def test_equal_values_give_equal_bytes() -> None:
    for one, other in (
        (encode_order(ORDER), encode_order(replace(ORDER))),
        (encode_update(UPDATE), encode_update(replace(UPDATE))),
    ):
        left, right = recorddict_to_proto(one), recorddict_to_proto(other)
        assert left.SerializeToString(deterministic=True) == right.SerializeToString(
            deterministic=True
        )


# ------------------------------------------------------------------------------------ damage ----


def edited(content: RecordDict, change: Callable[[dict[str, Any]], object]) -> RecordDict:
    """The same records with another body."""
    body = json.loads(str(content["hushtune"]["json"]))
    change(body)
    return RecordDict({**content, "hushtune": ConfigRecord({"json": json.dumps(body)})})


def body_of(content: RecordDict) -> dict[str, Any]:
    return json.loads(str(content["hushtune"]["json"]))


@pytest.mark.parametrize("key", sorted(body_of(encode_order(ORDER))))
def test_an_order_without_one_of_its_parts(key: str) -> None:
    with pytest.raises(HushtuneError):
        decode_order(edited(encode_order(ORDER), lambda body: body.pop(key)))


@pytest.mark.parametrize("key", sorted(body_of(encode_update(UPDATE))))
def test_an_update_without_one_of_its_parts(key: str) -> None:
    with pytest.raises(HushtuneError):
        decode_reply(edited(encode_update(UPDATE), lambda body: body.pop(key)))


@pytest.mark.parametrize("key", ["run", "round", "site", "code", "reason"])
def test_a_refusal_without_one_of_its_parts(key: str) -> None:
    with pytest.raises(MessageError):
        decode_reply(edited(encode_refusal(REFUSAL), lambda body: body.pop(key)))


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=6,
)


@settings(max_examples=300, deadline=None)
@given(st.data())
def test_any_value_anywhere_decodes_or_is_an_error_of_ours(data: st.DataObject) -> None:
    value = data.draw(json_values)
    samples = [
        (encode_order(ORDER), decode_order),
        (encode_update(UPDATE), decode_reply),
        (encode_refusal(REFUSAL), decode_reply),
    ]
    content, decode = data.draw(st.sampled_from(samples))
    key = data.draw(st.sampled_from(sorted(body_of(content))))

    def change(body: dict[str, Any]) -> None:
        inner = body[key]
        if isinstance(inner, dict) and data.draw(st.booleans()):
            inner[data.draw(st.sampled_from(sorted(inner)))] = value
        else:
            body[key] = value

    with contextlib.suppress(HushtuneError):
        decode(edited(content, change))


@pytest.mark.parametrize("decode", [decode_order, decode_reply, decode_hello, decode_site])
@pytest.mark.parametrize(
    "content",
    [
        RecordDict(),
        RecordDict({"hushtune": ConfigRecord()}),
        RecordDict({"hushtune": ConfigRecord({"json": "nonsense"})}),
        RecordDict({"hushtune": ConfigRecord({"json": "[]"})}),
        RecordDict({"hushtune": ConfigRecord({"json": "3"})}),
        RecordDict({"hushtune": ConfigRecord({"json": "{}"})}),
        RecordDict({"hushtune": ConfigRecord({"json": b"{}"})}),
        RecordDict({"hushtune": ConfigRecord({"json": "[" * 100_000})}),
        RecordDict({"hushtune": ArrayRecord()}),
    ],
)
def test_other_messages_are_a_message_error(
    content: RecordDict, decode: Callable[[RecordDict], object]
) -> None:
    with pytest.raises(MessageError):
        decode(content)


@pytest.mark.parametrize("name", ["run", "site"])
def test_names_must_be_texts(name: str) -> None:
    with pytest.raises(MessageError, match=name):
        decode_reply(edited(encode_update(UPDATE), lambda body: body.update({name: 3})))


@pytest.mark.parametrize("value", [-1, 1.0, True, "1", None])
@pytest.mark.parametrize("name", ["round", "num_examples"])
def test_counts_must_be_counts(name: str, value: object) -> None:
    with pytest.raises(MessageError, match=name):
        decode_reply(edited(encode_update(UPDATE), lambda body: body.update({name: value})))


def test_a_charge_that_was_changed_on_the_way_is_refused() -> None:
    def cheaper(body: dict[str, Any]) -> None:
        body["charge"]["event"]["steps"] = 1

    with pytest.raises(MessageError, match="hash"):
        decode_reply(edited(encode_update(UPDATE), cheaper))


def with_array(array: Array) -> RecordDict:
    return RecordDict({**encode_update(UPDATE), "adapter": ArrayRecord({"state": array})})


@pytest.mark.parametrize("stype", ["numpy.ndarray", "pickle", ""])
def test_an_array_of_another_kind_is_never_opened(stype: str) -> None:
    data = STATE.to_bytes()
    array = Array(dtype="uint8", shape=(len(data),), stype=stype, data=data)
    with pytest.raises(MessageError, match="unknown way"):
        decode_reply(with_array(array))


def test_damaged_adapters_are_a_message_error() -> None:
    data = STATE.to_bytes()[:-1]
    array = Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)
    with pytest.raises(MessageError, match="damaged"):
        decode_reply(with_array(array))
    content = encode_update(UPDATE)
    del content["adapter"]
    with pytest.raises(MessageError, match="no adapter"):
        decode_reply(content)


def test_an_order_must_carry_the_whole_adapter_and_something_to_train() -> None:
    for bad in (
        replace(ORDER, adapter=STATE.select(["head.weight", "q.lora_B"])),
        replace(ORDER, trainable=("q.lora_B", "other")),
        replace(ORDER, trainable=()),
    ):
        with pytest.raises(MessageError, match="adapter that it speaks of"):
            decode_order(encode_order(bad))


def test_a_run_is_not_called_as_the_figures_of_another_are() -> None:
    """Its ledger would take a kept adapter for figures, or figures for an adapter."""
    with pytest.raises(MessageError, match="must not end in"):
        decode_order(encode_order(replace(ORDER, run="x/metrics")))


@pytest.mark.parametrize("name", ["x" * 201, "a\x1b[2Jb", "a\nb"])
def test_a_run_s_name_is_short_and_can_be_printed(name: str) -> None:
    """It stays in a ledger for good, and is shown in a terminal."""
    with pytest.raises(MessageError, match="too long, or cannot be printed"):
        decode_order(encode_order(replace(ORDER, run=name)))


def test_noise_beyond_what_floats_hold_is_refused() -> None:
    content = encode_order(ORDER)
    record = content.config_records["hushtune"]
    body = json.loads(str(record["json"]))
    body["plan"]["noise_multiplier"] = 1e300
    record["json"] = json.dumps(body)
    decoded = decode_order(content)
    with pytest.raises(PlanError, match="noise_multiplier"):
        decoded.plan.event(1)
