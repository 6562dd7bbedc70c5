"""The clipped sums of many sites' steps, from one pass over the rows of all of them.

Each row is computed with its own site's adapter: see ``site_products``. Its gradients are its own,
units are clipped as ever, and added up by site. Rows of many sites fill pieces that the rows of one
would leave half empty.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cache
from typing import cast

import numpy as np
import torch
from peft.tuners.lora import Linear as LoraLinear
from torch import Tensor, nn

from hushtune.client import dp
from hushtune.client.example_gradients import layers_of
from hushtune.client.site_products import Factors, LinearOfSites, LoraOfSites, Where
from hushtune.client.together import Asked, Sums
from hushtune.common import lora
from hushtune.common.errors import PrivacyError
from hushtune.common.lora import ADAPTER
from hushtune.common.model import AdaptedModel
from hushtune.common.packing import current
from hushtune.common.rounded_weights import rounded_inputs
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
        self._where = Where(torch.zeros(0, dtype=torch.long), None)

    def owners(self, units: Units) -> Tensor:
        """The site of each unit, ``(num_units,)``."""
        return torch.from_numpy(self._owner[units.rows[units.starts[:-1]]])

    @contextmanager
    def at(self, rows: Rows) -> Generator[None]:
        """A pass over some rows within the block, whose backward pass leaves
        ``grad_sample (b, ...)`` on each trained tensor."""
        self._where = Where(torch.from_numpy(self._owner[rows]), None)
        yield

    @contextmanager
    def in_place(self, model: AdaptedModel) -> Generator[None]:
        """The model's trained layers take each row's own site's weights within the block."""
        layers = layers_of(model) or []
        adapted = [
            module
            for module in model.modules()
            if isinstance(module, LoraLinear) and self._has_few_values(module)
        ]
        self._forget()  # what another pass may have left is of other rows
        for layer in layers:
            vars(layer)["forward"] = self._forward(layer)
        for layer in adapted:
            vars(layer)["forward"] = self._lora_forward(layer)
        try:
            yield
        finally:
            for layer in (*layers, *adapted):
                vars(layer).pop("forward", None)
            self._forget()

    def _has_few_values(self, layer: LoraLinear) -> bool:
        """Whether a layer has two factors, of which those of all sites fit in one product."""
        a, b = _factors_of(layer)
        rank, in_features = a.shape
        few = self.count * rank <= min(in_features, len(b))
        return few and (a in self._own or b in self._own)

    def _forget(self) -> None:
        for parameter in self._own:
            vars(parameter).pop("grad_sample", None)

    def _forward(self, layer: nn.Module) -> Callable[[Tensor], Tensor]:
        def forward(inputs: Tensor) -> Tensor:
            where = self._of(inputs)
            places = _as_places(inputs)
            found = LinearOfSites.apply(places, layer.weight, layer.bias, self._own, where)
            return cast(Tensor, found).reshape(*inputs.shape[:-1], -1)

        return forward

    def _lora_forward(self, layer: LoraLinear) -> Callable[[Tensor], Tensor]:
        both = _factors_of(layer)
        # A factor that is not trained is the same for all.
        own = [self._own.get(one, one.detach().expand(self.count, *one.shape)) for one in both]
        scaling = layer.scaling[ADAPTER]

        @cache  # once a step
        def factors(dtype: torch.dtype) -> Factors:
            return Factors.of(*own, scaling=scaling, dtype=dtype)

        def forward(inputs: Tensor) -> Tensor:
            output, shared = layer.base_layer(inputs), rounded_inputs(inputs)
            how = (*both, factors(shared.dtype), self._of(inputs))
            found = LoraOfSites.apply(_as_places(output), _as_places(shared), *how)
            return cast(Tensor, found).view_as(output)

        return forward

    def _of(self, inputs: Tensor) -> Where:
        packing = current()
        if self._where.packing != packing or self._where.owners.device != inputs.device:
            self._where = Where(self._where.owners.to(inputs.device), packing)
        where = self._where
        if (where.packing.most_rows if where.packing else len(inputs)) != len(where.owners):
            raise PrivacyError(
                "gradients could not be taken example by example",
                given=str(tuple(inputs.shape)),
                expected=f"{len(where.owners)} rows first",
                remedy="set speed.together = 1",
            )
        return where


def _factors_of(layer: LoraLinear) -> tuple[nn.Parameter, nn.Parameter]:
    a, b = layer.lora_A[ADAPTER].weight, layer.lora_B[ADAPTER].weight
    return cast(nn.Parameter, a), cast(nn.Parameter, b)


def _as_places(states: Tensor) -> Tensor:
    """``(b, ..., features)`` as ``(b, t, features)``."""
    return states.reshape(len(states), -1, states.shape[-1])
