"""Envelopes: what comes out is what went in, or is refused; large messages are left as they are."""

from __future__ import annotations

import json
from typing import Any

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from hypothesis import given
from hypothesis import strategies as st

from hushtune.common import envelope
from hushtune.common.envelope import opened, sealed
from hushtune.common.errors import MessageError


def array(data: bytes) -> Array:
    return Array(dtype="uint8", shape=(len(data),), stype="safetensors", data=data)


@given(
    texts=st.dictionaries(st.text(max_size=5), st.text(max_size=50), max_size=3),
    parts=st.dictionaries(st.text(max_size=5), st.binary(max_size=50), min_size=1, max_size=3),
)
def test_what_comes_out_is_what_went_in(texts: dict[str, str], parts: dict[str, bytes]) -> None:
    arrays = ArrayRecord({key: array(data) for key, data in parts.items()})
    content = RecordDict({"hushtune": ConfigRecord(dict(texts)), "adapter": arrays})
    closed = sealed(content)
    assert list(closed) == ["hushtune.envelope"]
    assert opened(closed) == content
    assert list(opened(closed)["adapter"]) == list(parts)  # in their order


def test_a_text_alone_and_what_is_in_no_envelope() -> None:
    content = RecordDict({"hushtune": ConfigRecord({"json": "{}"})})
    assert opened(sealed(content)) == content
    assert opened(content) is content


@pytest.mark.parametrize(
    "content",
    [
        RecordDict({"adapter": ArrayRecord({"state": array(bytes(envelope.LARGEST + 1))})}),
        RecordDict({"metrics": MetricRecord({"loss": 1.0})}),
        RecordDict({"hushtune": ConfigRecord({"json": 3})}),
    ],
    ids=["large", "metrics", "numbers"],
)
def test_what_is_large_or_not_ours_is_left_as_it_is(content: RecordDict) -> None:
    assert sealed(content) is content


def shaped(head: dict[str, Any], shape: object) -> dict[str, Any]:
    """A head whose one array has another shape."""
    ((name, key, dtype, _, stype, size),) = head["arrays"]
    return {**head, "arrays": [[name, key, dtype, shape, stype, size]]}


@pytest.mark.parametrize(
    "spoil",
    [
        lambda head, data: (head, data[:-1]),
        lambda head, data: (head, data + b"x"),
        lambda head, data: ({**head, "arrays": [["a", "b", "uint8", [1], "x", -1]]}, data),
        lambda head, data: (shaped(head, [float("inf")]), data),
        lambda head, data: (shaped(head, [3.0]), data),
        lambda head, data: (shaped(head, [True]), data),
        lambda head, data: (shaped(head, [-3]), data),
        lambda head, data: (shaped(head, "3"), data),
        lambda head, data: ({**head, "arrays": [["a", "b", "uint8", [3], "x", True]]}, b"a"),
        lambda head, data: ({**head, "arrays": [["a", "b", None, [3], "x", 3]]}, data),
        lambda head, data: ({**head, "texts": {"a": {"b": 3}}}, data),
        lambda head, data: (head, "abc"),
        lambda head, data: (head, [97, 98, 99]),
        lambda head, data: ({**head, "arrays": [["a"]]}, data),
        lambda head, data: ({**head, "texts": []}, data),
        lambda head, data: ([], data),
    ],
    ids=[
        *("short", "long", "negative", "infinite", "real", "truth", "below zero", "digits"),
        *("one byte", "no dtype", "number", "text", "numbers", "few", "list", "no-object"),
    ],
)
def test_an_envelope_that_is_not_whole_is_refused(spoil: object) -> None:
    closed = sealed(RecordDict({"adapter": ArrayRecord({"state": array(b"abc")})}))
    record = closed.config_records["hushtune.envelope"]
    head, data = spoil(json.loads(str(record["head"])), record["data"])  # type: ignore[operator]
    broken = RecordDict(
        {"hushtune.envelope": ConfigRecord({"head": json.dumps(head), "data": data})}
    )
    with pytest.raises(MessageError, match="not whole"):
        opened(broken)
