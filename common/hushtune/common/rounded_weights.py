"""Frozen weights in bfloat16 beside their own float32, for products in that precision.

Autocast rounds a weight anew in each pass, and a layer's inputs once for each layer that reads
them: a fifth of the time where rows are few and short. Of a frozen weight the outcome is always the
same, so it is kept, in the order in which the CPU's products read it; of inputs it is shared by all
that read them, whose gradients then add up in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D


def keep_rounded(model: nn.Module, *, but: Iterable[nn.Parameter]) -> None:
    """Let a model's linear layers keep their rounded weights, but for those that hold one of
    ``but``, which are trained and share their inputs alone."""
    trained = {id(parameter) for parameter in but}
    for module in model.modules():
        kind = _KINDS.get(type(module))
        if kind is None:
            continue
        if trained.isdisjoint(id(own) for own in module.parameters(recurse=False)):
            module.__class__ = kind
        else:
            module.register_forward_pre_hook(lambda _module, args: (_rounded(args[0]), *args[1:]))


def _rounded(inputs: Tensor) -> Tensor:
    """A layer's inputs as autocast would round them, once for all the layers that read them."""
    if inputs.dtype is not torch.float32 or not _is_asked_for(inputs.device.type):
        return inputs
    kept = vars(inputs).get("_rounded")
    if kept is None or kept[0] != inputs._version:
        kept = vars(inputs)["_rounded"] = (inputs._version, inputs.bfloat16())
    return kept[1]


def _is_asked_for(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


class _Kept:
    """A weight ``(out, in)`` and its bias, rounded; on CPUs in the order of oneDNN's products."""

    def __init__(self, weight: Tensor, bias: Tensor | None, of: tuple[Any, ...]) -> None:
        self.of = of
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach().bfloat16()

    def __deepcopy__(self, memo: object) -> _Kept:
        return self  # of other values than a copied layer's, which so makes its own

    def product(self, inputs: Tensor) -> Tensor:
        """``x W^T + b``."""
        if not _orders(inputs.device.type):
            return nn.functional.linear(inputs, self._rounded, self._bias)
        return cast(Tensor, _Ordered.apply(inputs, self))

    def forward(self, inputs: Tensor) -> Tensor:
        """``x W^T + b`` by oneDNN's own order."""
        return _of_onednn("_linear_pointwise")(inputs, self._onward, self._bias, "none", [], "")

    def backward(self, grad: Tensor) -> Tensor:
        """``g W`` by oneDNN's own order."""
        return _of_onednn("_linear_pointwise")(grad, self._back, None, "none", [], "")

    @cached_property
    def _rounded(self) -> Tensor:
        return self._weight.bfloat16()

    @cached_property
    def _onward(self) -> Tensor:
        return _ordered(self._weight)

    @cached_property
    def _back(self) -> Tensor:
        return _ordered(self._weight.T)


def _ordered(weight: Tensor) -> Tensor:
    return _of_onednn("_reorder_linear_weight")(weight.bfloat16().contiguous(), _MANY)


_MANY = 512
"""Rows of a product, about, for which oneDNN chooses an order."""


@cache
def _orders(device: str) -> bool:
    """Whether weights can be kept in an order that products read quickly."""
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    known = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )
    return device == "cpu" and known and bool(_of_onednn("_is_mkldnn_bf16_supported")())


def _of_onednn(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.mkldnn, name)


class _Ordered(torch.autograd.Function):
    """A frozen layer's product with its weight in oneDNN's order, which torch cannot derive."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, kept: _Kept) -> Tensor:
        ctx.kept = kept
        return kept.forward(inputs.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        needed = ctx.needs_input_grad[0]
        return (ctx.kept.backward(grads[0].contiguous()) if needed else None), None


def _kept(layer: nn.Module, inputs: Tensor, *, turned: bool = False) -> _Kept | None:
    """What is kept of a layer; None where autocast would round nothing. ``turned``: its weight is
    ``(in, out)``."""
    if not _is_asked_for(inputs.device.type):
        return None
    weight, bias = cast("tuple[Tensor, Tensor | None]", (layer.weight, layer.bias))
    # What is kept is of these very values: another device, a copy or a change makes it anew.
    now = tuple((t.data_ptr(), t._version, t.device) for t in (weight, bias) if t is not None)
    kept = cast("_Kept | None", vars(layer).get("_kept"))
    if kept is None or kept.of != now:
        kept = vars(layer)["_kept"] = _Kept(weight.T if turned else weight, bias, now)
    return kept


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        kept = _kept(self, input)
        return super().forward(input) if kept is None else kept.product(_rounded(input))


class _Conv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        kept = _kept(self, x, turned=True)
        return super().forward(x) if kept is None else kept.product(_rounded(x))


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, Conv1D: _Conv1D}
