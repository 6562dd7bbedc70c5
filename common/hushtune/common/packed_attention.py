"""Attention of texts that lie side by side in one row of places; see ``hushtune.common.packing``.

That needs a base whose other work looks at one place at a time: see ``FAMILIES``.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from hushtune.common.packing import Packing, current, is_current, products

FAMILIES = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
"""Encoders in which a text's places meet in plain attention alone, and that are told positions."""
COUNT_FROM_PADDING = frozenset({"camembert", "mpnet", "roberta", "xlm-roberta"})
"""Families whose first position is the one after the padding token's number."""
_NAME = "hushtune_packed"

_biases: ContextVar[Sequence[Tensor]] = ContextVar("what is added to scores")
"""Of each block, ``(rows, 1, 1, width)``."""


def knows(base: PreTrainedModel) -> bool:
    """Whether texts can lie side by side in a base."""
    config = cast(Any, base.config)
    plain = config._attn_implementation == "eager" and not getattr(config, "is_decoder", False)
    return plain and config.model_type in FAMILIES


def first_position(base: PreTrainedModel) -> int:
    """The position of a text's first place."""
    config = cast(Any, base.config)
    return int(config.pad_token_id) + 1 if config.model_type in COUNT_FROM_PADDING else 0


@contextmanager
def packed(base: PreTrainedModel, packing: Packing, mask: Tensor) -> Generator[Tensor]:
    """Passes within the block are of one row of places; ``mask (1, places)``: 1 where a token is.

    Yields what the base is to be given as its mask, of which nothing is taken.
    """
    bias = torch.zeros(mask.shape[1], device=mask.device)
    bias.masked_fill_(mask[0] == 0, torch.finfo(bias.dtype).min)
    config = cast(Any, base.config)
    before = config._attn_implementation
    token = _biases.set([block[:, None, None] for block in packing.split(bias)])
    config._attn_implementation = _NAME
    try:
        with is_current(packing):
            yield bias.new_zeros(1, 1, 1, 1)
    finally:
        config._attn_implementation = before
        _biases.reset(token)


def _attention(
    _module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    _mask: Tensor | None,
    *,
    scaling: float,
    **_others: Any,
) -> tuple[Tensor, None]:
    """Each text's places attend to its own: ``(1, heads, places, d)`` each to
    ``(1, places, heads, d)``."""
    packing = current()
    assert packing is not None, "only ever within ``packed``"
    how = (packing, _biases.get(), scaling)
    states = [each.squeeze(0).transpose(0, 1) for each in (query, key, value)]
    return cast(Tensor, _Blocks.apply(*states, *how)).unsqueeze(0), None


class _Blocks(torch.autograd.Function):
    """Attention block by block, as transformers' eager attention takes it but for rounding, under
    autocast too. What the backward pass needs is kept as products take it."""

    @staticmethod
    def forward(
        ctx: Any,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        packing: Packing,
        biases: Sequence[Tensor],
        scaling: float,
    ) -> Tensor:
        found = packing.unfilled(value)
        kept: list[Tensor] = []
        states = [_by_block(packing, each) for each in (query, key, value)]
        blocks = zip(packing.split(found), biases, *states, strict=True)
        for into, bias, queries, keys, values in blocks:
            weights = _weights(queries, keys, bias, scaling)
            _put(products(weights, values), into)
            if any(ctx.needs_input_grad):
                kept += [queries, keys, values, weights]
        ctx.save_for_backward(*kept)
        ctx.packing, ctx.scaling = packing, scaling
        return found

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        packing: Packing = ctx.packing
        found = [packing.unfilled(grads[0]) for _ in range(3)]
        into = zip(*(packing.split(each) for each in found), strict=True)
        saved = ctx.saved_tensors
        kept = zip(*(saved[place::4] for place in range(4)), strict=True)
        blocks = zip(into, kept, _by_block(packing, grads[0]), strict=True)
        for (of_queries, of_keys, of_values), (queries, keys, values, weights), grad in blocks:
            _put(products(weights.mT, grad), of_values)
            of_weights = products(grad, values.mT)
            wide = torch.promote_types(weights.dtype, torch.float32)
            of_scores = _softmax_backward(of_weights.to(wide), weights.to(wide), -1, wide)
            of_scores = of_scores.mul_(ctx.scaling).to(queries.dtype)
            _put(products(of_scores, keys), of_queries)
            _put(products(of_scores.mT, queries), of_keys)
        return (*found, None, None, None)


def _weights(queries: Tensor, keys: Tensor, bias: Tensor, scaling: float) -> Tensor:
    """What each place takes of each other of its text, ``(rows heads, width, width)``."""
    scores = products(queries, keys.mT).unflatten(0, (len(bias), -1))
    found = nn.functional.softmax(torch.add(bias, scores, alpha=scaling), dim=-1)
    return found.flatten(0, 1).to(queries.dtype)


def _by_block(packing: Packing, states: Tensor) -> list[Tensor]:
    """States ``(places, heads, d)`` by block, ``(rows heads, width, d)`` each."""
    return [block.transpose(1, 2).flatten(0, 1) for block in packing.split(states)]


def _put(found: Tensor, into: Tensor) -> None:
    """``(rows heads, width, d)`` where it belongs, ``(rows, width, heads, d)``."""
    into.copy_(found.unflatten(0, (len(into), -1)).transpose(1, 2))


_softmax_backward = torch.ops.aten._softmax_backward_data
ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
