"""Frozen weights in bfloat16 beside their own float32, for products in that precision.

Autocast rounds a weight anew in each pass, and a layer's inputs once for each layer that reads
them: a fifth of the time where rows are few and short. Of a frozen weight the outcome is always the
same, so it is kept, on CPUs packed as oneDNN's products read it: 2 bytes a value, and 2 more where
gradients pass through the layer. Rounded inputs are shared by all that read them, whose gradients
then add up in bfloat16.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from functools import cache, cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hushtune.common.tuning import page_out


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
            module.register_forward_pre_hook(_share_inputs)


def most_bytes(model: nn.Module) -> int:
    """The most that a model's layers keep beside their own weights."""
    kinds = tuple(_KINDS.values())
    weights = [layer.weight for layer in model.modules() if isinstance(layer, kinds)]
    return sum(
        weight.numel() * (4 if _can_pack(weight.device.type) else 2)
        for weight in cast(list[Tensor], weights)
    )


def _share_inputs(_module: nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...] | None:
    """Inputs that are given by name are left to autocast."""
    return (rounded_inputs(args[0]), *args[1:]) if args else None


def rounded_inputs(inputs: Tensor) -> Tensor:
    """A layer's inputs as autocast would round them, once for all the layers that read them."""
    if inputs.dtype is not torch.float32 or not _is_asked_for(inputs.device.type):
        return inputs
    inference = torch.is_inference_mode_enabled() or inputs.is_inference()
    # What a leaf kept would hold the leaf in turn, by its graph: neither would ever be freed.
    if inference or (inputs.is_leaf and inputs.requires_grad):
        return inputs.bfloat16()
    now = (inputs._version, torch.is_grad_enabled() and inputs.requires_grad)
    kept = vars(inputs).get("_in_bfloat16")
    if kept is None or kept[0] != now:
        kept = vars(inputs)["_in_bfloat16"] = (now, inputs.bfloat16())
    return kept[1]


def _is_asked_for(device: str) -> bool:
    return torch.is_autocast_enabled(device) and torch.get_autocast_dtype(device) == torch.bfloat16


class _RoundedWeight:
    """A weight ``(out_features, in_features)`` and its bias in bfloat16."""

    def __init__(self, weight: Tensor, bias: Tensor | None, source: tuple[Any, ...]) -> None:
        self.source = source
        self._weight = weight.detach()
        self._bias = None if bias is None else bias.detach().bfloat16()

    def __reduce__(self) -> tuple[type[None], tuple[()]]:
        """Copied or pickled it is None: of other values than the copy's, which makes its own."""
        return type(None), ()

    def product(self, inputs: Tensor) -> Tensor:
        """``x W^T + b``."""
        if not _can_pack(inputs.device.type):
            return nn.functional.linear(inputs, self._unpacked, self._bias)
        return cast(Tensor, _PackedLinear.apply(inputs, self))

    def forward(self, inputs: Tensor) -> Tensor:
        """``x W^T + b`` with packed weights."""
        return _of_onednn("_linear_pointwise")(inputs, self._packed, self._bias, "none", [], "")

    def backward(self, grad: Tensor) -> Tensor:
        """``g W`` with packed weights."""
        return _of_onednn("_linear_pointwise")(grad, self._packed_transposed, None, "none", [], "")

    @cached_property
    def _unpacked(self) -> Tensor:
        return self._weight.bfloat16()

    @cached_property
    def _packed(self) -> Tensor:
        return _pack(self._weight)

    @cached_property
    def _packed_transposed(self) -> Tensor:
        return _pack(self._weight.T)


def _pack(weight: Tensor) -> Tensor:
    rounded = weight.bfloat16().contiguous()
    page_out(weight)  # all products are taken with what is packed
    return _of_onednn("_reorder_linear_weight")(rounded, _BATCH_SIZE_HINT)


_BATCH_SIZE_HINT = 512
"""Rows of a product, about, for which oneDNN chooses how to pack."""


@cache
def _can_pack(device: str) -> bool:
    names = ("_reorder_linear_weight", "_linear_pointwise", "_is_mkldnn_bf16_supported")
    known = torch.backends.mkldnn.is_available() and all(
        hasattr(torch.ops.mkldnn, name) for name in names
    )
    return device == "cpu" and known and bool(_of_onednn("_is_mkldnn_bf16_supported")())


def _of_onednn(name: str) -> Callable[..., Any]:
    return getattr(torch.ops.mkldnn, name)


class _PackedLinear(torch.autograd.Function):
    """A frozen layer's product with its packed weight, which torch cannot derive."""

    @staticmethod
    def forward(ctx: Any, inputs: Tensor, rounded: _RoundedWeight) -> Tensor:
        ctx.rounded = rounded
        return rounded.forward(inputs.contiguous())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None]:
        needed = ctx.needs_input_grad[0]
        return (ctx.rounded.backward(grads[0].contiguous()) if needed else None), None


def _rounded_weight_of(
    layer: nn.Module, inputs: Tensor, *, transposed: bool = False
) -> _RoundedWeight | None:
    """What is kept of a layer; None where autocast would round nothing. ``transposed``: its weight
    is ``(in_features, out_features)``."""
    if not _is_asked_for(inputs.device.type):
        return None
    weight, bias = cast("tuple[Tensor, Tensor | None]", (layer.weight, layer.bias))
    # What is kept is of these very values: another device, a copy or a change makes it anew.
    source = tuple((t.data_ptr(), t._version, t.device) for t in (weight, bias) if t is not None)
    kept = cast("_RoundedWeight | None", vars(layer).get("_rounded_weight"))
    if kept is None or kept.source != source:
        kept = _RoundedWeight(weight.T if transposed else weight, bias, source)
        vars(layer)["_rounded_weight"] = kept
    return kept


class _Linear(nn.Linear):
    def forward(self, input: Tensor) -> Tensor:
        rounded = _rounded_weight_of(self, input)
        return super().forward(input) if rounded is None else rounded.product(rounded_inputs(input))


class _Conv1D(Conv1D):
    def forward(self, x: Tensor) -> Tensor:
        rounded = _rounded_weight_of(self, x, transposed=True)
        return super().forward(x) if rounded is None else rounded.product(rounded_inputs(x))


_KINDS: dict[type[nn.Module], type[nn.Module]] = {nn.Linear: _Linear, Conv1D: _Conv1D}
