"""Weights of an ONNX file, read as what it is: a protobuf message, of which four parts are needed.

The field numbers are those of the ONNX specification's ``onnx.proto``.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from hushtune.common.errors import AssetError

Array = NDArray[np.float32]

_FLOAT: Final = 1  # TensorProto.DataType
_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5


@dataclass(frozen=True, slots=True)
class Graph:
    """The float32 tensors of a graph by name, and what each of its nodes takes in."""

    tensors: Mapping[str, Array]
    inputs: Mapping[str, tuple[str, ...]]


def read_graph(path: Path) -> Graph:
    """The graph of an ONNX model with its weights inside. AssetError for a file that is no such."""
    content = path.read_bytes()
    tensors: dict[str, Array] = {}
    inputs: dict[str, tuple[str, ...]] = {}
    try:
        graph = next(value for number, value in _fields(memoryview(content)) if number == 7)
        for number, value in _fields(graph):
            if number == 1:
                name, taken = _node(value)
                inputs[name] = taken
            elif number == 5:
                name, tensor = _tensor(value)
                if tensor is not None:
                    tensors[name] = tensor
    except (IndexError, StopIteration, ValueError, TypeError) as error:
        raise AssetError(f"{path.name} is not an ONNX model with weights: {error}") from error
    return Graph(tensors, inputs)


def _fields(message: memoryview) -> Iterator[tuple[int, Any]]:
    """Number and value of each field: an int, or bytes (of a text, a message, packed numbers)."""
    place = 0
    while place < len(message):
        key, place = _varint(message, place)
        number, wire = key >> 3, key & 7
        if wire == _VARINT:
            value, place = _varint(message, place)
        else:
            size = {_EIGHT_BYTES: 8, _FOUR_BYTES: 4}.get(wire)
            if size is None and wire == _LENGTH:
                size, place = _varint(message, place)
            if size is None or place + size > len(message):
                raise ValueError("a field has no end")
            value = message[place : place + size]
            place += size
        yield number, value


def _varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number in groups of seven bits, the lowest first; and the place after it."""
    value = shift = 0
    while True:
        byte = message[place]
        place += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, place


def _node(message: memoryview) -> tuple[str, tuple[str, ...]]:
    name, taken = "", list[str]()
    for number, value in _fields(message):
        if number == 1:
            taken.append(str(value, "utf-8"))
        elif number == 3:
            name = str(value, "utf-8")
    return name, tuple(taken)


def _tensor(message: memoryview) -> tuple[str, Array | None]:
    """Name and values of a tensor; no values where they are not float32 as raw bytes."""
    name, kind, dims = "", 0, list[int]()
    raw: memoryview | None = None
    for number, value in _fields(message):
        if number == 1:
            dims.extend([value] if isinstance(value, int) else _packed(value))
        elif number == 2:
            kind = value
        elif number == 8:
            name = str(value, "utf-8")
        elif number == 9:
            raw = value
    if kind != _FLOAT or raw is None:
        return name, None
    return name, np.frombuffer(raw, dtype="<f4").reshape(dims)


def _packed(message: memoryview) -> Iterator[int]:
    place = 0
    while place < len(message):
        value, place = _varint(message, place)
        yield value
