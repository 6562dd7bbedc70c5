"""How an update's numbers are written on the wire: float32, bfloat16, or int8 with scales.

An encoding is a function of what is released, applied after noise and charge, so it costs no
privacy. The rounding of ``int8`` is stochastic (QSGD, Alistarh et al. 1610.02132): without bias,
so that the mean over sites and rounds is that of the exact updates. Its randomness is drawn from
the update itself, so that equal updates give equal bytes, and no seed enters.

Safetensors in all three, with the description, and the encoding unless it is float32, as one text
of metadata:

- ``float32``: the bytes of ``AdapterState.to_bytes``.
- ``bfloat16``: the same tensors, rounded to nearest, ties to even.
- ``int8``: for each tensor ``values/KEY``, int8, and ``scales/KEY``, float32. Numbers that differ
  in their place along the tensor's longest dimension alone are a *line* and share a scale: the
  classes of a head, the rank-many rows of A and columns of B. A vector is one line.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np
import safetensors
import safetensors.torch
import torch
from numpy.typing import NDArray
from torch import Tensor

from hushtune.common.adapter import AdapterSpec, AdapterState
from hushtune.common.errors import MessageError

ENCODINGS = ("float32", "bfloat16", "int8")
"""The names of all encodings."""

_ENCODED = "encoded"
_VALUES, _SCALES = "values/", "scales/"
_LARGEST_INT8 = 127
_SCALE_BITS = 17
"""Significant bits of a scale: times seven bits of a value, products are exact in float32."""
_LEAST_EXPONENT = -149
"""Of float32: all its numbers are multiples of 2^-149."""
_LARGEST_FLOAT32 = float(torch.finfo(torch.float32).max)

_Tensors = Mapping[str, Tensor]


def known(encoding: str) -> str:
    """The name of an encoding itself; MessageError if there is none of this name."""
    if encoding not in ENCODINGS:
        raise MessageError(
            "there is no such encoding of updates",
            given=ascii(encoding)[:100],
            expected=", ".join(ENCODINGS),
        )
    return encoding


def encode(state: AdapterState, encoding: str) -> bytes:
    """The bytes of a state; equal states give equal bytes.

    ``bfloat16`` is off by at most 2^-8 of each number (next to zero: by 2^-134). ``int8`` is off by
    less than a line's scale, max|x| / 127 (next to zero, and in its last bits, a little more), and
    by nothing in the mean. Neither makes a finite number infinite. Raises MessageError for an
    unknown encoding, and for a state that is not finite where integers cannot say so.
    """
    if known(encoding) == "float32":
        return state.to_bytes()
    # One text: safetensors writes several in an order that differs from call to call.
    text = json.dumps({"encoding": encoding, "spec": state.spec.to_dict()}, sort_keys=True)
    return safetensors.torch.save(_WRITERS[encoding](state), {_ENCODED: text})


def decode(data: bytes) -> AdapterState:
    """Inverse of ``encode`` but for what it rounded away: float32, of the shapes that were sent.

    Raises MessageError unless the bytes hold one whole state in an encoding known here, with
    finite scales that are not negative; whether the numbers are finite is left to the caller.
    """
    encoding = encoding_of(data)
    if encoding == "float32":
        return AdapterState.from_bytes(data)
    try:
        spec = AdapterSpec.from_dict(_encoded(data)["spec"])
        tensors = _READERS[encoding](safetensors.torch.load(data))
    except (*_DAMAGES, safetensors.SafetensorError) as error:
        raise _damaged(error) from error
    return AdapterState(spec, tensors)


def encoding_of(data: bytes) -> str:
    """In which encoding bytes say that they are; MessageError where they say nothing usable."""
    try:
        return known(str(_encoded(data)["encoding"]))
    except _DAMAGES as error:
        raise _damaged(error) from error


_DAMAGES = (ValueError, KeyError, TypeError, AttributeError, RuntimeError)
"""What torch and json raise for shapes, types and nestings that they do not take."""


def _damaged(error: Exception) -> MessageError:
    return MessageError("an update's bytes are damaged", given=str(error)[:200])


def _encoded(data: bytes) -> Mapping[str, Any]:
    """What the metadata say; where they say no encoding, it is float32."""
    size = int.from_bytes(data[:8], "little")
    text = json.loads(data[8 : 8 + size])["__metadata__"].get(_ENCODED)
    return {"encoding": "float32"} if text is None else json.loads(text)


# ------------------------------------------------------------------------------ bfloat16 ----


def _to_bfloat16(state: AdapterState) -> dict[str, Tensor]:
    return {key: _bfloat16(tensor).contiguous() for key, tensor in state.tensors.items()}


def _bfloat16(tensor: Tensor) -> Tensor:
    """To nearest, ties to even; what would round to infinity is the largest finite number."""
    most = torch.finfo(torch.bfloat16).max
    return torch.where(tensor.isinf(), tensor, tensor.clamp(-most, most)).to(torch.bfloat16)


def _from_bfloat16(tensors: _Tensors) -> dict[str, Tensor]:
    _require_type(tensors, torch.bfloat16)
    return {key: tensor.float() for key, tensor in tensors.items()}


# ---------------------------------------------------------------------------------- int8 ----


def _to_int8(state: AdapterState) -> dict[str, Tensor]:
    if not state.is_finite():
        raise MessageError(
            "an update that is not finite cannot be sent as int8",
            given="NaN or infinity",
            remedy="lower the learning rates, or set aggregation.encoding = 'float32'",
        )
    digest, written = state.digest(), dict[str, Tensor]()
    for key, tensor in state.tensors.items():
        exact = tensor.detach().double().numpy()
        scales = _scales(exact)
        units = exact / np.where(scales > 0, scales, 1.0)  # of a line of zeros the scale is zero
        values = np.floor(units + _uniform(f"{digest} {key}", exact.shape))
        written[_VALUES + key] = torch.tensor(values, dtype=torch.int8)
        written[_SCALES + key] = torch.tensor(scales, dtype=torch.float32)
    return written


def _scales(exact: NDArray[np.float64]) -> NDArray[np.float64]:
    """max|x| / 127 of each line, rounded up to few bits; its shape has 1 for the line's dimension.

    Rounded up, so that no value lies beyond 127.
    """
    axis = _line_axis(exact.shape)
    target = np.max(np.abs(exact), axis=axis, keepdims=True, initial=0.0) / _LARGEST_INT8
    _, exponent = np.frexp(target)
    unit = np.maximum(exponent - _SCALE_BITS, _LEAST_EXPONENT)
    return np.asarray(np.ldexp(np.ceil(np.ldexp(target, -unit)), unit))


def _line_axis(shape: Iterable[int]) -> int | None:
    """The dimension along which numbers share a scale: the longest, the last of equal ones."""
    sizes = [(size, axis) for axis, size in enumerate(shape)]
    return max(sizes)[1] if sizes else None


def _uniform(seed: str, shape: tuple[int, ...]) -> NDArray[np.float64]:
    """Numbers in [0, 1), multiples of 2^-32, from a seed: the same on any machine."""
    count = int(np.prod(shape, dtype=np.int64))
    words = np.frombuffer(hashlib.shake_128(seed.encode()).digest(4 * count), "<u4")
    return words.reshape(shape) / 2.0**32


def _from_int8(tensors: _Tensors) -> dict[str, Tensor]:
    values = {k.removeprefix(_VALUES): t for k, t in tensors.items() if k.startswith(_VALUES)}
    scales = {k.removeprefix(_SCALES): t for k, t in tensors.items() if k.startswith(_SCALES)}
    if set(values) != set(scales) or len(values) + len(scales) != len(tensors):
        raise MessageError("not each tensor of an update has its scales, or there are others")
    _require_type(values, torch.int8)
    _require_type(scales, torch.float32)
    return {key: _scaled(key, values[key], scales[key]) for key in values}


def _scaled(key: str, values: Tensor, scales: Tensor) -> Tensor:
    expected, axis = list(values.shape), _line_axis(values.shape)
    if axis is not None:
        expected[axis] = 1
    if list(scales.shape) != expected:
        given = f"{tuple(scales.shape)} of {tuple(values.shape)}"
        raise MessageError(f"the scales of {key[:100]} have a wrong shape", given=given)
    if not bool((torch.isfinite(scales) & (scales >= 0)).all()):
        raise MessageError(f"the scales of {key[:100]} are not finite, or negative")
    product = values.double() * scales.double()
    return product.clamp(-_LARGEST_FLOAT32, _LARGEST_FLOAT32).float()


def _require_type(tensors: _Tensors, dtype: torch.dtype) -> None:
    for key, tensor in tensors.items():
        if tensor.dtype != dtype:
            raise MessageError(
                f"tensor {key[:100]} of an update has the wrong type for its encoding",
                given=str(tensor.dtype),
                expected=str(dtype),
            )


_WRITERS: Mapping[str, Callable[[AdapterState], dict[str, Tensor]]] = {
    "bfloat16": _to_bfloat16,
    "int8": _to_int8,
}
_READERS: Mapping[str, Callable[[_Tensors], dict[str, Tensor]]] = {
    "bfloat16": _from_bfloat16,
    "int8": _from_int8,
}
