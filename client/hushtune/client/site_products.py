"""Products with each row's own site's weights, and their gradients; see ``cohort``."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any

import torch
from torch import Tensor, nn

from hushtune.client.example_gradients import add_sample, bias_samples, weight_samples
from hushtune.common.packing import Packing, products


@dataclass(frozen=True)
class Where:
    """Whose each row is, ``owners (b,)``, of ``(b, t, features)`` or of what is packed."""

    owners: Tensor
    packing: Packing | None
    _kept: dict[tuple[torch.Size, int], Tensor] = field(
        default_factory=dict, init=False, compare=False, repr=False
    )

    @cached_property
    def _of_packed(self) -> Tensor:
        assert self.packing is not None
        return self.packing.spread(self.owners).unsqueeze(0)

    def of_places(self, inputs: Tensor) -> Tensor:
        """The site of each place, as ``inputs`` lie, ``(b, t)``."""
        if self.packing is not None:
            return self._of_packed
        return self.owners.unsqueeze(1).expand(inputs.shape[:2])

    def own_places(self, inputs: Tensor, sites: int) -> Tensor:
        """Which of ``(b t sites, ...)`` is each place's own, as ``inputs`` lie, ``(b t,)``."""
        asked = (inputs.shape[:2], sites)
        if asked not in self._kept:
            owners = self.of_places(inputs).flatten()
            self._kept[asked] = owners + sites * torch.arange(len(owners), device=owners.device)
        return self._kept[asked]

    def by_row(self, inputs: Tensor, values: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Rows of one width, ``(rows, width, features)``, and what each of them has of
        ``values (sites, ...)``."""
        if self.packing is None:
            return [(inputs, values[self.owners])]
        counts = [rows for rows, _ in self.packing.blocks]
        owners = self.owners[: self.packing.rows].split(counts)
        blocks = zip(self.packing.split(inputs[0]), owners, strict=True)
        return [(block, values[of_block]) for block, of_block in blocks]

    def joined(self, blocks: Sequence[Tensor]) -> Tensor:
        """What ``by_row`` takes apart."""
        if self.packing is None:
            return blocks[0]
        return self.packing.joined(blocks).unsqueeze(0)


class LinearOfSites(torch.autograd.Function):
    """A linear layer with each row's own site's weights, under autocast too."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        own: Mapping[nn.Parameter, Tensor],
        where: Where,
    ) -> Tensor:
        ctx.save_for_backward(inputs)
        ctx.weight, ctx.bias, ctx.weights, ctx.where = weight, bias, own[weight], where
        found = _products(inputs, ctx.weights.to(inputs.dtype), where)
        if bias is not None:  # the same for all, where it is not trained
            of_places = own[bias][where.of_places(inputs)] if bias in own else bias
            found = found + of_places.to(found.dtype)
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, None, None, None, None]:
        (inputs,), (grad,), where = ctx.saved_tensors, grads, ctx.where
        add_sample(ctx.weight, weight_samples(grad, inputs.to(grad.dtype), where.packing))
        if ctx.bias is not None and ctx.bias.requires_grad:
            add_sample(ctx.bias, bias_samples(grad, where.packing))
        back = None
        if ctx.needs_input_grad[0]:
            back = _products(grad, ctx.weights.mT.to(grad.dtype), where).to(inputs.dtype)
        return back, None, None, None, None


def _products(places: Tensor, weights: Tensor, where: Where) -> Tensor:
    """``x W^T`` with the weights of each place's owner: ``(b, t, in_features)`` and
    ``(sites, out_features, in_features)`` to ``(b, t, out_features)``.

    Of few sites and a narrow side, as a factor of LoRA has, those of all sites are one matrix, and
    one product is much quicker than one for each row.
    """
    sites, out_features, in_features = weights.shape
    if sites * out_features <= in_features:  # what all sites' weights give: a place takes its own
        found = nn.functional.linear(places, weights.reshape(-1, in_features))
        return _own(found, where, sites)
    if sites * in_features <= out_features:  # zero where another site's weights stand
        return _spread(places, where, sites) @ weights.mT.reshape(-1, out_features)
    of_rows = where.by_row(places, weights.mT)
    return where.joined([products(rows, own) for rows, own in of_rows])


@dataclass(frozen=True)
class Factors:
    """What adds ``scaling B A x`` to a frozen layer's output: the factors of all sites one below
    the other, in the type of the products."""

    a: Tensor  # (sites r, in_features)
    b: Tensor  # (sites r, out_features)
    scaling: float
    sites: int

    @classmethod
    def of(cls, a: Tensor, b: Tensor, *, scaling: float, dtype: torch.dtype) -> Factors:
        """Of ``a (sites, r, in_features)`` and ``b (sites, out_features, r)``."""
        below = (a.flatten(0, 1), b.mT.flatten(0, 1))
        return cls(*(one.to(dtype) for one in below), scaling=scaling, sites=len(a))


class LoraOfSites(torch.autograd.Function):
    """``y + scaling B A x`` with each place's own site's factors, under autocast too: of all sites
    by one product for each factor, between which a place's own site's values are picked and spread
    among zeros."""

    @staticmethod
    def forward(
        ctx: Any,
        output: Tensor,
        inputs: Tensor,
        a: nn.Parameter,
        b: nn.Parameter,
        factors: Factors,
        where: Where,
    ) -> Tensor:
        """``output (b, t, out_features)`` of the frozen layer; ``inputs (b, t, in_features)``; the
        model's own factors ``a`` and ``b``, on which each row's gradients are left."""
        inner = _own(inputs @ factors.a.mT, where, factors.sites)
        inner *= factors.scaling
        ctx.save_for_backward(inputs, inner)
        ctx.of, ctx.factors, ctx.where = (a, b), factors, where
        spread = _spread(inner, where, factors.sites).flatten(0, 1)
        found = torch.addmm(output.flatten(0, 1).to(inner.dtype), spread, factors.b)
        return found.view_as(output)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (inputs, inner), (grad,), (a, b) = ctx.saved_tensors, grads, ctx.of
        factors, where = ctx.factors, ctx.where
        back = _own(grad @ factors.b.mT, where, factors.sites)
        back *= factors.scaling
        if a.requires_grad:
            add_sample(a, weight_samples(back, inputs, where.packing))
        if b.requires_grad:
            add_sample(b, weight_samples(grad, inner, where.packing))
        of_inputs = None
        if ctx.needs_input_grad[1]:
            of_inputs = _spread(back, where, factors.sites) @ factors.a
        return grad, of_inputs, None, None, None, None


def _own(values: Tensor, where: Where, sites: int) -> Tensor:
    """Of what all sites have of a place, ``(b, t, sites n)``, its own site's, ``(b, t, n)``."""
    of_all = values.reshape(-1, values.shape[-1] // sites)
    own = of_all.index_select(0, where.own_places(values, sites))
    return own.unflatten(0, values.shape[:2])


def _spread(own: Tensor, where: Where, sites: int) -> Tensor:
    """``(b, t, n)`` where ``_own`` takes it from, and zero elsewhere."""
    of_all = own.new_zeros(own.shape[0] * own.shape[1] * sites, own.shape[2])
    of_all.index_copy_(0, where.own_places(own, sites), own.flatten(0, 1))
    return of_all.view(*own.shape[:2], -1)
