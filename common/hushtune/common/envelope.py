"""Small messages in one piece: Flower moves each array, record and chunk by a request of its own.

A message of ours is a text and an array or two, which Flower 1.41 cuts into seven objects; each is
pushed once and pulled once, at some 15 ms of the server's one thread. In an envelope they are
three. What does not fit goes as it is, so that large adapters are still moved in chunks.
"""

from __future__ import annotations

import json
from typing import Any

from flwr.app import Array, ArrayRecord, ConfigRecord, RecordDict

from hushtune.common.errors import MessageError
from hushtune.common.records import arrays_of, texts_of

LARGEST = 4 * 2**20
"""Bytes; more go as Flower moves them."""
_ENVELOPE, _HEAD, _DATA = "hushtune.envelope", "head", "data"


def sealed(content: RecordDict) -> RecordDict:
    """The same records in an envelope, or themselves where they are large or not ours."""
    arrays = {name: dict(record) for name, record in arrays_of(content).items()}
    parts = [(name, key, arrays[name][key]) for name in sorted(arrays) for key in arrays[name]]
    texts = {name: dict(record) for name, record in texts_of(content).items()}
    plain = all(isinstance(value, str) for record in texts.values() for value in record.values())
    size = sum(len(array.data) for _, _, array in parts)
    if not plain or len(arrays) + len(texts) < len(content) or size > LARGEST:
        return content
    head = {
        "texts": texts,
        "arrays": [
            [name, key, array.dtype, list(array.shape), array.stype, len(array.data)]
            for name, key, array in parts
        ],
    }
    data = b"".join(array.data for _, _, array in parts)
    return RecordDict({_ENVELOPE: ConfigRecord({_HEAD: json.dumps(head), _DATA: data})})


def opened(content: RecordDict) -> RecordDict:
    """Inverse of ``sealed``; MessageError for an envelope that is not whole."""
    envelope = texts_of(content).get(_ENVELOPE)
    if envelope is None:
        return content
    try:
        return _unpacked(envelope)
    except Exception as error:  # of whatever kind: it is the sender's, and no fault of ours
        given = f"{type(error).__name__}: {error}"[:200]
        raise MessageError("a message's envelope is not whole", given=given) from error


def _unpacked(envelope: ConfigRecord) -> RecordDict:
    data = envelope[_DATA]
    if not isinstance(data, bytes):
        raise ValueError("the data is not bytes")
    head: Any = json.loads(_text(envelope[_HEAD]))
    found = RecordDict()
    for name, texts in head["texts"].items():
        found[name] = ConfigRecord({key: _text(text) for key, text in texts.items()})
    records: dict[str, dict[str, Array]] = {}
    start = 0
    for name, key, dtype, shape, stype, size in head["arrays"]:
        part = data[start : start + _count(size)]
        if len(part) != size:
            raise ValueError("a part is cut short")
        start += size
        records.setdefault(_text(name), {})[_text(key)] = Array(
            dtype=_text(dtype),
            shape=tuple(_count(n) for n in shape),
            stype=_text(stype),
            data=part,
        )
    if start != len(data):
        raise ValueError("more than its parts")
    for name, arrays in records.items():
        found[name] = ArrayRecord(arrays)
    return found


def _text(value: object) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{ascii(value)[:50]} is no text")
    return value


def _count(value: object) -> int:
    if type(value) is not int or value < 0:
        raise ValueError(f"{ascii(value)[:50]} is no size")
    return value
