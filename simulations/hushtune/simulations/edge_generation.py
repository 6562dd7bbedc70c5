"""Greedy text from any form of a causal language model, without a cache of keys and values."""

from __future__ import annotations

from collections.abc import Callable, Container, Sequence
from typing import Any

import torch

from hushtune.simulations.edge_onnx import Inputs


def greedy(
    logits_of: Callable[[Inputs], Any],
    prompt: Sequence[int],
    *,
    steps: int,
    ends: Container[int] = (),
) -> list[int]:
    """The most likely token after the prompt, and after that, for ``steps`` tokens at most.

    ``logits_of``: ``(1, t, vocabulary)`` of ``input_ids`` and ``attention_mask``, both ``(1, t)``;
    a model in PyTorch or an ``OnnxModel``. Stops before a token of ``ends``. Each
    step reads the whole text anew, so that any export of a plain forward pass will do.
    """
    tokens, start = list(prompt), len(prompt)
    with torch.no_grad():
        for _ in range(steps):
            ids = torch.tensor([tokens])
            logits = logits_of({"input_ids": ids, "attention_mask": torch.ones_like(ids)})
            chosen = int(logits[0, -1].argmax())
            if chosen in ends:
                break
            tokens.append(chosen)
    return tokens[start:]
