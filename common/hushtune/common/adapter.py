"""AdapterState: what crosses the wire, and its vector algebra.

An adapter is a flat mapping of named float32 tensors: for each adapted module the LoRA factors
``A (r, d_in)`` and ``B (d_out, r)`` (Hu et al. 2106.09685, the effective weight is
``W0 + scale * B A``), and the tensors of the task's head. A state may be *partial*: a client
sends the tensors that it trained and no others. States over the same tensors form a vector space.

Some rules put a small square factor ``R (r, r)`` between the two (``W0 + scale * B R A``). Some
change the frozen weight itself; such a change is kept as factors of its own, ``base_A (n, d_in)``
and ``base_B (d_out, n)`` for any n: the effective weight is ``W0 + base_B base_A + scale * B A``.
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
from hushtune.common.tensor_keys import (
    A_SUFFIX,
    B_SUFFIX,
    HEAD_PREFIX,
    R_SUFFIX,
    a_key,
    b_key,
    base_keys,
    head_key,
    r_key,
)

__all__ = [
    "A_SUFFIX",
    "B_SUFFIX",
    "HEAD_PREFIX",
    "R_SUFFIX",
    "AdapterSpec",
    "AdapterState",
    "a_key",
    "b_key",
    "base_keys",
    "head_key",
    "r_key",
]


@dataclass(frozen=True, slots=True)
class AdapterSpec:
    """What both ends must agree on before two states can meet.

    ``base`` is the sha256 of the frozen weights, ``targets`` the full names of the adapted modules,
    ``head`` the names of the fully trained tensors; ``inner`` where R stands between B and A.
    """

    base: str
    rank: int
    alpha: float
    rslora: bool
    targets: tuple[str, ...]
    head: tuple[str, ...]
    inner: bool = False

    @property
    def scale(self) -> float:
        """``alpha / r``, or ``alpha / sqrt(r)`` for rsLoRA (Kalajdzievski 2312.03732)."""
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)

    def all_keys(self) -> tuple[str, ...]:
        """All tensor keys of a complete state, sorted."""
        kinds = (a_key, b_key, r_key) if self.inner else (a_key, b_key)
        factors = [key(module) for module in self.targets for key in kinds]
        return tuple(sorted([*factors, *map(head_key, self.head)]))

    def all_base_keys(self) -> tuple[str, ...]:
        """Keys of all that may change the frozen weights, sorted."""
        return tuple(sorted(key for module in self.targets for key in base_keys(module)))

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
                inner=bool(raw.get("inner", False)),
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
        unknown = sorted(set(self.tensors) - known - set(self.spec.all_base_keys()))
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
        """``A (r, d_in)`` and ``B (d_out, r)`` of one module; ``B R`` where R is between them."""
        a, b = self.tensors[a_key(module)], self.tensors[b_key(module)]
        return (a, b @ self.tensors[r_key(module)]) if self.spec.inner else (a, b)

    def base_change(self, module: str) -> tuple[Tensor, Tensor] | None:
        """``base_A (n, d_in)`` and ``base_B (d_out, n)`` of one module; None where it has none."""
        a, b = base_keys(module)
        return (self.tensors[a], self.tensors[b]) if a in self.tensors else None

    def is_whole(self) -> bool:
        """Whether nothing is missing that a complete state has, and changes of weights fit."""
        complete = set(self.spec.all_keys()) <= set(self.keys)
        return complete and all(map(self._has_fit_change, self.spec.targets))

    def _has_fit_change(self, module: str) -> bool:
        """A change of a weight has two factors or none, of the weight's shape, and no wider."""
        factors = [self.tensors[key] for key in base_keys(module) if key in self.tensors]
        if not factors:
            return True
        if [factor.dim() for factor in factors] != [2, 2]:
            return False
        (n, d_in), (d_out, also_n) = (factor.shape for factor in factors)
        a, b = self.tensors[a_key(module)], self.tensors[b_key(module)]
        return n == also_n <= min(d_in, d_out) and (d_in, d_out) == (*a.shape[1:], *b.shape[:1])

    def adapter_part(self) -> AdapterState:
        """Without any change of the frozen weights."""
        return self.select(key for key in self.spec.all_keys() if key in self.tensors)

    def has_effect(self) -> bool:
        """Whether a model with this adapter differs, before its head, from the base alone."""
        return any(
            self.base_change(module) is not None
            or bool(self.tensors[(r_key if self.spec.inner else b_key)(module)].any())
            for module in self.spec.targets
        )

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
