"""The clipped sums of many sites' steps, from one pass over the rows of all of them.

Each row is computed with its own site's adapter: see ``_products``. Its gradients are its own,
units are clipped as ever, and added up by site. Rows of many sites fill pieces that the rows of one
would leave half empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, cast

import numpy as np
import torch
from torch import Tensor, nn

from hushtune.client import dp
from hushtune.client.example_gradients import (
    add_sample,
    bias_samples,
    layers_of,
    weight_samples,
)
from hushtune.client.together import Asked, Sums
from hushtune.common import lora
from hushtune.common.errors import PrivacyError
from hushtune.common.model import AdaptedModel
from hushtune.common.packing import Packing, current
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Rows, Units


def knows(task: Task, trainable: Sequence[str]) -> bool:
    """Whether rows of several sites can be computed at once: nothing is drawn at random, and all
    that is trained are the weights of linear layers, with or without their biases."""
    model = task.model
    if task.augments or model.has_dropout:
        return False
    lora.set_trainable(model, trainable)
    layers = layers_of(model)
    known = layers is not None and all(
        isinstance(layer, nn.Linear) and layer.weight.requires_grad for layer in layers
    )
    model.requires_grad_(False)
    return known


def clipped_sums(asked: Sequence[Asked], *, most_rows: int = 32) -> list[Sums]:
    """The sum that each asks for; equal to ``dp.clipped_sum`` of each alone but for rounding.

    ``most_rows``: so many rows are computed at once at most.
    """
    found: dict[int, Sums] = {}
    for places in _alike(asked):
        sums = _summed([asked[place] for place in places], most_rows)
        found |= dict(zip(places, sums, strict=True))
    return [found[place] for place in range(len(asked))]


def _alike(asked: Sequence[Asked]) -> list[list[int]]:
    """Places of what can be computed at once: one model, level and clip norm, the same tensors
    trained, all of them finite, and the same values of all others; no row twice."""
    groups: list[tuple[list[int], set[int]]] = []
    finite = cache(lambda place: _is_finite(asked[place]))
    for place, one in enumerate(asked):
        rows = set(one.units.rows.tolist())
        for places, seen in groups:
            fits = _same(one, asked[places[0]]) and seen.isdisjoint(rows)
            if fits and finite(place) and finite(places[0]):
                places.append(place)
                seen.update(rows)
                break
        else:
            groups.append(([place], rows))
    return [places for places, _ in groups]


def _same(one: Asked, other: Asked) -> bool:
    return (
        one.task is other.task
        and (one.level, one.clip_norm) == (other.level, other.clip_norm)
        and one.trained.keys() == other.trained.keys()
        and (one.begin.spec, one.begin.keys) == (other.begin.spec, other.begin.keys)
        and all(
            torch.equal(tensor, other.begin.tensors[key])
            for key, tensor in one.begin.tensors.items()
            if key not in one.trained
        )
    )


def _is_finite(one: Asked) -> bool:
    """In bfloat16 too, as products may be. Of others, a product with zero would be no zero."""
    most = torch.finfo(torch.bfloat16).max
    return all(bool(tensor.abs().max() <= most) for tensor in one.trained.values())


def _summed(asked: Sequence[Asked], most_rows: int) -> list[Sums]:
    first = asked[0]
    model = first.task.model
    lora.install(model, first.begin)
    trained = lora.set_trainable(model, tuple(first.trained))
    model.training_mode()
    sites = Sites(asked, trained, num_rows=1 + max(_last_row(one.units) for one in asked))
    # As many rows as one step of all their rows together would take; see ``_at_site`` of orders.
    rows = math.ceil(math.sqrt(sum(one.microbatch**2 for one in asked)))
    with sites.in_place(model):
        totals = dp.clipped_sum(
            first.task,
            Units.joined([one.units for one in asked]),
            trained=trained,
            clip_norm=first.clip_norm,
            microbatch=max(first.microbatch, min(rows, most_rows)),
            level=first.level,
            sites=sites,
        )
    model.requires_grad_(False)
    return [{key: tensor[place] for key, tensor in totals.items()} for place in range(len(asked))]


def _last_row(units: Units) -> int:
    return int(units.rows.max()) if len(units.rows) else 0


class Sites:
    """Whose each row is, and what each site's tensors are; see ``dp.clipped_sum``."""

    def __init__(
        self, asked: Sequence[Asked], trained: Mapping[str, nn.Parameter], *, num_rows: int
    ) -> None:
        self.count = len(asked)
        self._owner = np.zeros(num_rows, dtype=np.int64)
        for place, one in enumerate(asked):
            self._owner[one.units.rows] = place
        self._own = {
            parameter: torch.stack([one.trained[key].detach() for one in asked]).to(
                parameter.device
            )
            for key, parameter in trained.items()
        }
        self._where = _Where(torch.zeros(0, dtype=torch.long), None)

    def owners(self, units: Units) -> Tensor:
        """The site of each unit, ``(num_units,)``."""
        return torch.from_numpy(self._owner[units.rows[units.starts[:-1]]])

    @contextmanager
    def at(self, rows: Rows) -> Generator[None]:
        """A pass over some rows within the block, whose backward pass leaves
        ``grad_sample (b, ...)`` on each trained tensor."""
        self._where = _Where(torch.from_numpy(self._owner[rows]), None)
        yield

    @contextmanager
    def in_place(self, model: AdaptedModel) -> Generator[None]:
        """The model's trained layers take each row's own site's weights within the block."""
        layers = layers_of(model) or []
        self._forget()  # what another pass may have left is of other rows
        for layer in layers:
            vars(layer)["forward"] = self._forward(layer)
        try:
            yield
        finally:
            for layer in layers:
                vars(layer).pop("forward", None)
            self._forget()

    def _forget(self) -> None:
        for parameter in self._own:
            vars(parameter).pop("grad_sample", None)

    def _forward(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            where = self._where.of(inputs.device, current())
            if (where.packing.most_rows if where.packing else len(inputs)) != len(where.owners):
                raise PrivacyError(
                    "gradients could not be taken example by example",
                    given=str(tuple(inputs.shape)),
                    expected=f"{len(where.owners)} rows first",
                    remedy="set speed.together = 1",
                )
            places = inputs.reshape(len(inputs), -1, inputs.shape[-1])
            found = _OfSites.apply(places, layer.weight, layer.bias, self._own, where)
            return cast(Tensor, found).reshape(*inputs.shape[:-1], -1)

        return forward


@dataclass(frozen=True)
class _Where:
    """Whose each row is, ``owners (b,)``, of ``(b, t, features)`` or of what is packed."""

    owners: Tensor
    packing: Packing | None

    @cached_property
    def _packed(self) -> dict[Packing, _Where]:
        return {}

    def of(self, device: torch.device, packing: Packing | None) -> _Where:
        """The same rows as some inputs lie."""
        if packing is None:
            return _Where(self.owners.to(device), None)
        if packing not in self._packed:
            self._packed[packing] = _Where(self.owners.to(device), packing)
        return self._packed[packing]

    @cached_property
    def _spread(self) -> Tensor:
        assert self.packing is not None
        return self.packing.spread(self.owners).unsqueeze(0)

    def of_places(self, inputs: Tensor) -> Tensor:
        """The site of each place, as ``inputs`` lie, ``(b, t)``."""
        if self.packing is not None:
            return self._spread
        return self.owners.unsqueeze(1).expand(inputs.shape[:2])

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


class _OfSites(torch.autograd.Function):
    """A linear layer with each row's own site's weights, under autocast too."""

    @staticmethod
    def forward(
        ctx: Any,
        inputs: Tensor,
        weight: nn.Parameter,
        bias: nn.Parameter | None,
        own: Mapping[nn.Parameter, Tensor],
        where: _Where,
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


def _products(places: Tensor, weights: Tensor, where: _Where) -> Tensor:
    """``x W^T`` with the weights of each place's owner: ``(b, t, in_features)`` and
    ``(sites, out_features, in_features)`` to ``(b, t, out_features)``.

    Of few sites and a narrow side, as a factor of LoRA has, those of all sites are one matrix, and
    one product is much quicker than one for each row.
    """
    sites, out_features, in_features = weights.shape
    if sites * out_features <= in_features:  # what all sites' weights give: a place takes its own
        found = nn.functional.linear(places, weights.reshape(-1, in_features))
        owners = where.of_places(places)[..., None, None].expand(-1, -1, 1, out_features)
        return found.unflatten(-1, (sites, out_features)).gather(2, owners).squeeze(2)
    if sites * in_features <= out_features:  # zero where another site's weights stand
        spread = places.new_zeros(*places.shape[:2], sites, in_features)
        owners = where.of_places(places)[..., None, None].expand(-1, -1, 1, in_features)
        spread.scatter_(2, owners, places.unsqueeze(2))
        return spread.flatten(2) @ weights.mT.reshape(-1, out_features)
    of_rows = where.by_row(places, weights.mT)
    return where.joined([torch.bmm(rows, own) for rows, own in of_rows])
