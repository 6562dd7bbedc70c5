"""What was read from a message, and nothing else of it, is kept."""

from __future__ import annotations

import contextlib
import gc
import weakref
from collections.abc import Callable, Generator

import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict

from hushtune.common.envelope import opened, sealed
from hushtune.common.errors import MessageError
from hushtune.common.messages import decode_order, name_of_order, unpack_adapter, unpack_body
from hushtune.common.records import arrays_of, texts_of
from hushtune.server.replies import content_bytes


@pytest.fixture
def no_garbage_is_looked_for() -> Generator[None]:
    gc.disable()
    yield
    gc.enable()


def message() -> RecordDict:
    array = Array(dtype="uint8", shape=(4,), stype="safetensors", data=b"data")
    return RecordDict(
        {
            "hushtune": ConfigRecord({"json": "{}"}),
            "adapter": ArrayRecord({"state": array}),
            "figures": MetricRecord({"loss": 1.0}),
        }
    )


def test_records_of_one_kind_by_name() -> None:
    content = message()
    assert arrays_of(content) == {"adapter": content["adapter"]}
    assert texts_of(content) == {"hushtune": content["hushtune"]}


@pytest.mark.usefixtures("no_garbage_is_looked_for")
@pytest.mark.parametrize(
    "read",
    [
        arrays_of,
        texts_of,
        unpack_body,
        unpack_adapter,
        decode_order,
        name_of_order,
        content_bytes,
        opened,
        sealed,
    ],
)
def test_a_message_goes_once_it_was_read(read: Callable[[RecordDict], object]) -> None:
    content = message()
    arrays = weakref.ref(content["adapter"])
    with contextlib.suppress(MessageError):  # no adapter's bytes, and no order
        read(content)
    assert arrays() is not None
    del content
    assert arrays() is None
