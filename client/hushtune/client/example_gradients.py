"""Each example's gradient of linear layers, taken while the backward pass goes through them.

For ``y = x W^T + b`` an example's gradient of ``W`` is the sum over its places of ``g x^T``, with
``g`` the loss' gradient of ``y`` (Goodfellow 1510.01799). Autograd would add that up over the batch
as well, which nobody needs: here a layer's own backward pass hands on the gradient of ``x`` alone
and leaves ``grad_sample (b, ...)`` on each trained tensor, as Opacus' hooks do and to the same
bits, but for texts that lie side by side. LoRA's factors and linear heads are all that it knows:
see ``layers_of``.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from hushtune.common.lora_embedding import TokenFactor
from hushtune.common.packing import Packing, current, products

Layer = nn.Linear | TokenFactor


def token_samples(ids: Tensor, backprops: Tensor, weight: Tensor) -> Tensor:
    """Each example's gradient of an embedding's A, ``(b, r, vocab)``.

    A token's column is the sum of ``backprops (b, t, r)`` at the places where ``ids (b, t)`` name
    it. Written out with the zeros of all other tokens, since noise will reach those too.
    """
    places = ids.unsqueeze(1).expand(-1, weight.shape[0], -1)  # (b, r, t)
    sample = backprops.new_zeros(len(ids), *weight.shape)
    return sample.scatter_add_(2, places, backprops.transpose(1, 2))


def layers_of(model: nn.Module) -> list[Layer] | None:
    """The layers that hold a model's trained tensors; None where one is of another kind."""
    found: list[Layer] = []
    for module in model.modules():
        if any(own.requires_grad for own in module.parameters(recurse=False)):
            if not isinstance(module, nn.Linear | TokenFactor):
                return None
            found.append(module)
    return found


@contextmanager
def recorded(layers: Sequence[Layer]) -> Generator[None]:
    """A backward pass within the block leaves ``grad_sample (b, ...)`` on the trained tensors of
    some layers, and no ``grad``."""
    parameters = [own for layer in layers for own in layer.parameters(recurse=False)]
    _forget(parameters)  # what another pass may have left is of other examples
    for layer in layers:
        vars(layer)["forward"] = _forward(layer)
    try:
        yield
    finally:
        for layer in layers:
            vars(layer).pop("forward", None)
        _forget(parameters)


def _forget(parameters: list[nn.Parameter]) -> None:
    for parameter in parameters:
        vars(parameter).pop("grad_sample", None)


def _forward(layer: Layer) -> Callable[[Tensor], Tensor]:
    if isinstance(layer, TokenFactor):
        return lambda ids: _Tokens.apply(ids, layer.weight)
    return lambda inputs: _Linear.apply(inputs, layer.weight, layer.bias)


def add_sample(parameter: nn.Parameter, sample: Tensor) -> None:
    """A tensor may be used more than once in a pass: an example's gradients then add up."""
    before = getattr(parameter, "grad_sample", None)
    found = sample if before is None else before + sample
    parameter.grad_sample = found  # pyright: ignore[reportAttributeAccessIssue]


def weight_samples(grad: Tensor, inputs: Tensor, packing: Packing | None) -> Tensor:
    """Each example's gradient of a weight, ``(b, out_features, in_features)``, from the loss'
    gradient of the outputs and the inputs, ``(b, ..., features)`` or packed, of one type."""
    if packing is None:
        return torch.einsum("n...i,n...j->nij", grad, inputs)
    # In float32, in which small products of many shapes are quicker than in bfloat16.
    blocks = zip(packing.split(grad[0].float()), packing.split(inputs[0].float()), strict=True)
    if grad.shape[-1] > inputs.shape[-1]:  # the wide side is the quicker right one
        return torch.cat([products(places.mT, grads) for grads, places in blocks]).mT
    return torch.cat([products(grads.mT, places) for grads, places in blocks])


def bias_samples(grad: Tensor, packing: Packing | None) -> Tensor:
    """Each example's gradient of a bias, ``(b, out_features)``; see ``weight_samples``."""
    if packing is None:
        return torch.einsum("n...k->nk", grad)
    return torch.cat([grads.sum(1) for grads in packing.split(grad[0])])


class _Linear(torch.autograd.Function):
    """A linear layer, under autocast too: its products are then of the gradient's own type."""

    @staticmethod
    def forward(
        ctx: Any, inputs: Tensor, weight: nn.Parameter, bias: nn.Parameter | None
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.weight, ctx.bias, ctx.packing = weight, bias, current()
        return nn.functional.linear(inputs, weight, bias)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None]:
        (inputs,), (grad,) = ctx.saved_tensors, grads
        weight, bias = ctx.weight, ctx.bias
        if weight.requires_grad:
            add_sample(weight, weight_samples(grad, inputs.to(grad.dtype), ctx.packing))
        if bias is not None and bias.requires_grad:
            add_sample(bias, bias_samples(grad, ctx.packing))
        if not ctx.needs_input_grad[0]:
            return None, None, None
        return (grad @ weight.to(grad.dtype)).to(inputs.dtype), None, None


class _Tokens(torch.autograd.Function):
    """The factor A of an embedding."""

    @staticmethod
    def forward(ctx: Any, ids: Tensor, weight: nn.Parameter) -> Tensor:
        ctx.save_for_backward(ids)
        ctx.weight = weight
        return nn.functional.embedding(ids, weight.T)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[None, None]:
        add_sample(ctx.weight, token_samples(ctx.saved_tensors[0], grads[0], ctx.weight))
        return None, None
