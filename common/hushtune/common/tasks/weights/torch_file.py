"""Weights of a file that ``torch.save`` wrote before its zip format, without unpickling it.

Such a file is five pickles in a row (a magic number, a protocol, facts of the machine, the tensors
with the key of each one's storage, the keys in their order), then each storage: its length as eight
bytes, then its numbers.
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import IO, Any, Final

import numpy as np
from numpy.typing import NDArray

from hushtune.common.errors import AssetError
from hushtune.common.tasks.packaged.inert import Made, read_inert

Array = NDArray[Any]

_MAGIC: Final = 0x1950A86A20F9469CFC6C
_PROTOCOL: Final = 1001
_TYPES: Final = {"torch.FloatStorage": "<f4", "torch.LongStorage": "<i8"}


def read_torch_file(path: Path) -> dict[str, Array]:
    """The tensors by name. AssetError for a file of another format, or with more than tensors."""
    try:
        with path.open("rb") as stream:
            return _read(stream)
    except (ValueError, TypeError, LookupError, AttributeError, struct.error) as error:
        raise AssetError(f"{path.name} is not a file of tensors: {error}") from error


def _read(stream: IO[bytes]) -> dict[str, Array]:
    if (read_inert(stream), read_inert(stream)) != (_MAGIC, _PROTOCOL):
        raise ValueError("no magic number")
    read_inert(stream)
    tensors: Made = read_inert(stream)
    types = {
        made.args[0].args[0][2]: _TYPES[made.args[0].args[0][1].name]
        for made in tensors.entries.values()
    }
    storages: dict[str, Array] = {}
    for key in read_inert(stream):
        kind = np.dtype(types[key])
        (length,) = struct.unpack("<q", stream.read(8))
        storages[key] = np.frombuffer(stream.read(length * kind.itemsize), dtype=kind)
    return {name: _tensor(made, storages) for name, made in tensors.entries.items()}


def _tensor(made: Made, storages: dict[str, Array]) -> Array:
    """A view of a storage: a key, where it begins, its shape and its steps (in numbers)."""
    if made.name != "torch._utils._rebuild_tensor_v2":
        raise ValueError(f"{made.name} is no tensor")
    storage, offset, shape, steps = made.args[:4]
    flat = storages[storage.args[0][2]][offset:]
    if sum((size - 1) * step for size, step in zip(shape, steps, strict=True)) >= len(flat):
        raise ValueError("a tensor reaches beyond its storage")
    strides = [step * flat.itemsize for step in steps]
    return np.lib.stride_tricks.as_strided(flat, shape, strides).copy(order="C")
