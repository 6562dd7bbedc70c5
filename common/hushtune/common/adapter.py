"""AdapterState: what crosses the wire, and its vector algebra.

An adapter is a flat mapping of named float32 tensors: for each adapted module the LoRA factors
``A (r, d_in)`` and ``B (d_out, r)`` (Hu et al. 2106.09685, the effective weight is
``W0 + scale * B A``), and the tensors of the task's head. A state may be *partial*: a client
sends the tensors that it trained and no others. States over the same tensors form a vector space.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor

from hushtune.common.errors import MessageError

A_SUFFIX = ".lora_A"
B_SUFFIX = ".lora_B"
HEAD_PREFIX = "head."


def a_key(module: str) -> str:
    """Key of the factor A of a module."""
    return module + A_SUFFIX


def b_key(module: str) -> str:
    """Key of the factor B of a module."""
    return module + B_SUFFIX


def head_key(name: str) -> str:
    """Key of a tensor of the head."""
    return HEAD_PREFIX + name


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What both ends must agree on before two states can meet.

    ``base`` is the sha256 of the frozen weights, ``targets`` the full names of the adapted modules,
    ``head`` the names of the fully trained tensors.
    """

    base: str
    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]
    head: tuple[str, ...]

    @property
    def scale(self) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA (Kalajdzievski 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def all_keys(self) -> tuple[str, ...]:
        """All tensor keys of a complete state, sorted."""
        factors = [key(module) for module in self.targets for key in (a_key, b_key)]
        return tuple(sorted([*factors, *map(head_key, self.head)]))

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @staticmethod
    def from_dict(raw: Mapping[str, Any]) -> AdapterSpec:
        """Inverse of ``to_dict``; raises MessageError for anything else."""
        try:
            return AdapterSpec(
                base=str(raw["base"]),
                rank=int(raw["rank"]),
                alpha=float(raw["alpha"]),
                rslora=bool(raw["rslora"]),
                targets=tuple(map(str, raw["targets"])),
                head=tuple(map(str, raw["head"])),
            )
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise MessageError("an adapter's description is damaged", given=str(error)) from error


@dataclass(frozen=True, slots=True)
class AdapterState:
    """Named float32 CPU tensors that belong to one AdapterSpec, in the order of their keys."""

    spec: AdapterSpec
    tensors: Mapping[str, Tensor]

    def __post_init__(self) -> None:
        known = set(self.spec.all_keys())
        unknown = sorted(set(self.tensors) - known)
        if unknown:
            raise MessageError(
                "an adapter holds tensors that its description does not name", given=unknown[0]
            )
        for key, tensor in self.tensors.items():
            if tensor.dtype != torch.float32 or tensor.device.type != "cpu":
                raise MessageError(
                    f"tensor {key} of an adapter has the wrong type",
                    given=f"{tensor.dtype} on {tensor.device}",
                    expected="torch.float32 on cpu",
                )
        object.__setattr__(
            self, "tensors", {key: self.tensors[key] for key in sorted(self.tensors)}
        )

    @property
    def keys(self) -> tuple[str, ...]:
        """The keys that this state holds, sorted."""
        return tuple(self.tensors)

    def _combine(self, other: AdapterState, op: Callable[[Tensor, Tensor], Tensor]) -> AdapterState:
        if self.spec != other.spec or self.keys != other.keys:
            raise MessageError(
                "two adapters over different tensors cannot be combined",
                given=", ".join(sorted(set(self.keys) ^ set(other.keys))) or "another description",
            )
        return self._with({key: op(self.tensors[key], other.tensors[key]) for key in self.keys})

    def _with(self, tensors: Mapping[str, Tensor]) -> AdapterState:
        return AdapterState(self.spec, tensors)

    def __add__(self, other: AdapterState) -> AdapterState:
        return self._combine(other, torch.add)

    def __sub__(self, other: AdapterState) -> AdapterState:
        return self._combine(other, torch.sub)

    def __mul__(self, scalar: float) -> AdapterState:
        return self._with({key: tensor * scalar for key, tensor in self.tensors.items()})

    __rmul__ = __mul__

    def map(self, function: Callable[[Tensor], Tensor]) -> AdapterState:
        """Apply an elementwise function to every tensor."""
        return self._with({key: function(tensor) for key, tensor in self.tensors.items()})

    def zip_with(
        self, other: AdapterState, function: Callable[[Tensor, Tensor], Tensor]
    ) -> AdapterState:
        """Apply an elementwise function to the pairs of tensors of two states."""
        return self._combine(other, function)

    def norm(self) -> float:
        """Joint Euclidean norm over all tensors, in float64."""
        return math.sqrt(sum(float(t.double().square().sum()) for t in self.tensors.values()))

    def is_finite(self) -> bool:
        """No NaN and no infinity anywhere."""
        return all(bool(torch.isfinite(t).all()) for t in self.tensors.values())

    def num_values(self) -> int:
        """How many numbers the state holds."""
        return sum(t.numel() for t in self.tensors.values())

    def select(self, keys: Iterable[str]) -> AdapterState:
        """The partial state over ``keys``."""
        return self._with({key: self.tensors[key] for key in keys})

    def merge(self, partial: AdapterState) -> AdapterState:
        """This state with the tensors of ``partial`` in place of its own."""
        if partial.spec != self.spec:
            raise MessageError("an adapter of another description cannot be merged in")
        return self._with({**self.tensors, **partial.tensors})

    def factors(self, module: str) -> tuple[Tensor, Tensor]:
        """``A (r, d_in)`` and ``B (d_out, r)`` of one module."""
        return self.tensors[a_key(module)], self.tensors[b_key(module)]

    def to_bytes(self) -> bytes:
        """Safetensors with the description as JSON metadata; equal states give equal bytes."""
        metadata = {"spec": json.dumps(self.spec.to_dict(), sort_keys=True)}
        tensors = {key: tensor.contiguous() for key, tensor in self.tensors.items()}
        return safetensors.torch.save(tensors, metadata)

    @staticmethod
    def from_bytes(data: bytes) -> AdapterState:
        """Inverse of ``to_bytes``; raises MessageError unless the bytes are a float32 state.

        Its values may be anything: whether they are finite is checked where that can be answered.
        """
        try:
            header_size = int.from_bytes(data[:8], "little")
            header = json.loads(data[8 : 8 + header_size])
            spec = AdapterSpec.from_dict(json.loads(header["__metadata__"]["spec"]))
            tensors = safetensors.torch.load(data)
        except (
            ValueError,
            KeyError,
            TypeError,
            RuntimeError,  # of a shape that torch does not take, or a nesting that json does not
            safetensors.SafetensorError,
        ) as error:
            raise MessageError("an adapter's bytes are damaged", given=str(error)[:200]) from error
        return AdapterState(spec, tensors)

    def digest(self) -> str:
        """sha256 of the state's bytes."""
        return hashlib.sha256(self.to_bytes()).hexdigest()
