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

from hushtune.common.packing import Packing, current, is_current

FAMILIES = frozenset({"bert", "camembert", "distilbert", "electra", "roberta", "xlm-roberta"})
"""Encoders in which a text's places meet in plain attention alone, and that are told positions."""
_AFTER_PADDING = frozenset({"camembert", "roberta", "xlm-roberta"})
"""Of which the first position is the one after the padding token's number."""
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
    return int(config.pad_token_id) + 1 if config.model_type in _AFTER_PADDING else 0


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
    """Each text's places attend to its own, in the operations of transformers' eager attention.

    ``(1, heads, places, d)`` each to ``(1, places, heads, d)``.
    """
    packing = current()
    assert packing is not None, "only ever within ``packed``"
    blocks = [packing.split(states[0].transpose(0, 1)) for states in (query, key, value)]
    found: list[Tensor] = []
    for bias, *own in zip(_biases.get(), *blocks, strict=True):
        queries, keys, values = (states.transpose(1, 2) for states in own)
        scores = torch.matmul(queries, keys.transpose(2, 3)) * scaling + bias
        weights = nn.functional.softmax(scores, dim=-1)
        found.append(torch.matmul(weights, values).transpose(1, 2))
    return packing.joined(found).unsqueeze(0), None


ALL_ATTENTION_FUNCTIONS.register(_NAME, _attention)
