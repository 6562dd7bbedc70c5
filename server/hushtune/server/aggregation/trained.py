"""The sites' adapters after their training, a module at a time.

``A_k (r_k, d_in)`` and ``B_k (d_out, r_k)`` are a site's factors, ``s_k`` its scale, ``p_k`` its
share.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Tensor

from hushtune.common.adapter import AdapterState, a_key, b_key, r_key
from hushtune.common.low_rank import Product, gathered, product


@dataclass(frozen=True)
class Trained:
    """The sites' adapters after their training, with their shares; sorted by site.

    What the sites were given, ``starts``, and the changes that they sent, which are added up for a
    module when it is asked for: all of them at once would take the updates' memory again.
    """

    starts: tuple[AdapterState, ...]
    deltas: tuple[AdapterState, ...]
    shares: tuple[float, ...]

    def modules(self) -> tuple[str, ...]:
        """The modules of which the sites trained a factor: all, or those that are not frozen yet.
        The rules' work on the others would write down, at a cost, that nothing changed."""
        return modules_of(self.deltas[0]) if self.deltas else ()

    def factors(self, module: str) -> list[tuple[Tensor, Tensor]]:
        """Each site's A and B, or A and ``B R``, as ``AdapterState.factors`` has them."""
        return [_moved(s, d, module) for s, d in zip(self.starts, self.deltas, strict=True)]

    def products(self, module: str) -> Iterator[Product]:
        """Each site's ``s_k B_k A_k``, times its share where there are shares, one at a time."""
        for start, delta, share in zip(self.starts, self.deltas, self.shares, strict=True):
            a, b = _moved(start, delta, module)
            yield product(b, a, scale=share * start.spec.scale)

    def rank(self) -> int:
        """What the sites' ranks add up to."""
        return sum(start.spec.rank for start in self.starts)

    def mean_product(self, module: str) -> Product:
        """``sum_k p_k s_k B_k A_k``."""
        shape = weight_shape(self.starts[0], module)
        return gathered(self.products(module), rank=self.rank(), shape=shape)


def _moved(start: AdapterState, delta: AdapterState, module: str) -> tuple[Tensor, Tensor]:
    def moved(key: str) -> Tensor:
        tensor = start.tensors[key]
        return tensor + delta.tensors[key] if key in delta.tensors else tensor

    a, b = moved(a_key(module)), moved(b_key(module))
    return (a, b @ moved(r_key(module))) if start.spec.inner else (a, b)


def modules_of(delta: AdapterState) -> tuple[str, ...]:
    """The modules of which a change holds a factor, in the order of the targets."""
    kinds = (a_key, b_key, r_key)
    return tuple(
        name for name in delta.spec.targets if any(key(name) in delta.tensors for key in kinds)
    )


def weight_shape(state: AdapterState, module: str) -> tuple[int, int]:
    """``(d_out, d_in)`` of a module's weight."""
    return state.tensors[b_key(module)].shape[0], state.tensors[a_key(module)].shape[1]


def scaled_product(state: AdapterState, module: str, *, share: float = 1.0) -> Product:
    """``share * s B A`` of one module, or ``share * s B R A``."""
    a, b = state.factors(module)
    return product(b, a, scale=share * state.spec.scale)
