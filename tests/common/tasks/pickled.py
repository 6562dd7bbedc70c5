"""Pickles put together by hand, opcode by opcode: no class that they name need be there."""

from __future__ import annotations

import lzma
import struct
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np


@dataclass(frozen=True)
class Named:
    module: str
    name: str


@dataclass(frozen=True)
class Call:
    called: Named
    args: tuple[Any, ...]
    state: Any = None


def pickled(value: Any) -> bytes:
    return b"\x80\x02" + opcodes(value) + b"."


def opcodes(value: Any) -> bytes:
    return _OPCODES[type(value)](value)


def _call(value: Call) -> bytes:
    made = opcodes(value.called) + opcodes(value.args) + b"R"
    return made if value.state is None else made + opcodes(value.state) + b"b"


def _all(values: Iterable[Any]) -> bytes:
    return b"".join(map(opcodes, values))


_OPCODES: Mapping[type, Callable[[Any], bytes]] = {
    type(None): lambda _: b"N",
    bool: lambda value: b"\x88" if value else b"\x89",
    int: lambda value: b"J" + struct.pack("<i", value),
    float: lambda value: b"G" + struct.pack(">d", value),
    str: lambda value: b"X" + struct.pack("<I", len(value.encode())) + value.encode(),
    bytes: lambda value: b"B" + struct.pack("<I", len(value)) + value,
    list: lambda value: b"](" + _all(value) + b"e",
    tuple: lambda value: b"(" + _all(value) + b"t",
    dict: lambda value: b"}(" + _all(cell for pair in value.items() for cell in pair) + b"u",
    Named: lambda value: f"c{value.module}\n{value.name}\n".encode(),
    Call: _call,
}


def write_frame(path: Path, columns: Mapping[str, Sequence[Any]]) -> Path:
    """A table as pandas pickles it: blocks of numbers and of text, each with its places."""
    blocks: list[Call] = []
    for place, values in enumerate(columns.values()):
        kind = "O8" if any(isinstance(value, str) for value in values) else "f8"
        if all(isinstance(value, int) for value in values):
            kind = "i8"
        where = Call(Named("builtins", "slice"), (place, place + 1, 1))
        matrix = _texts([list(values)]) if kind == "O8" else _numbers([list(values)], kind)
        unpickle = Named("pandas._libs.internals", "_unpickle_block")
        blocks.append(Call(unpickle, (matrix, where, 2)))
    index = Call(
        Named("pandas.core.indexes.base", "_new_Index"),
        (Named("pandas.core.indexes.base", "Index"), {"data": _texts(list(columns)), "name": None}),
    )
    manager = Named("pandas.core.internals.managers", "BlockManager")
    frame = Call(
        Named("pandas.core.frame", "DataFrame"),
        (),
        {"_mgr": Call(manager, (tuple(blocks), [index, None]))},
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(lzma.compress(pickled(frame)))
    return path


def _dtype(kind: str) -> Call:
    state = (3, "|" if kind == "O8" else "<", None, None, None, -1, -1, 0)
    return Call(Named("numpy", "dtype"), (kind, False, True), state)


def _numbers(matrix: Sequence[Sequence[float]], kind: str) -> Call:
    array = np.array(matrix, dtype=kind)
    from_buffer = Named("numpy.core.numeric", "_frombuffer")
    return Call(from_buffer, (array.tobytes(), _dtype(kind), array.shape, "C"))


def _texts(values: list[Any]) -> Call:
    nested = isinstance(values[0], list)
    shape = (len(values), len(values[0])) if nested else (len(values),)
    flat = [cell for row in values for cell in row] if nested else values
    reconstruct = Named("numpy.core.multiarray", "_reconstruct")
    empty = (Named("numpy", "ndarray"), (0,), b"b")
    return Call(reconstruct, empty, (1, shape, _dtype("O8"), False, flat))
