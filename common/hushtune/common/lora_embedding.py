"""LoRA on the embedding of tokens, of modules that per-example gradients can be taken of.

An embedding is ``W0 (vocab, d)``; with ``A (r, vocab)`` and ``B (d, r)`` the effective one is
``W0 + s (B A)^T``: a token's own vector, and ``s B`` times its column of A. peft keeps both factors
as bare parameters, which no hook sees. Here they are modules, in the places that a linear layer's
have, and go back where peft looks for them before it merges.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from peft.tuners.lora.layer import Embedding
from torch import Tensor, nn


class TokenFactor(nn.Module):
    """The factor A of an embedding: ``ids (b, t)`` to their columns of ``weight (r, vocab)``,
    ``(b, t, r)``."""

    def __init__(self, rank: int, vocabulary: int) -> None:
        super().__init__()
        self.in_features, self.out_features = vocabulary, rank
        self.weight = nn.Parameter(torch.zeros(rank, vocabulary))

    def forward(self, ids: Tensor) -> Tensor:
        """``(b, t, r)``."""
        return columns(ids, self.weight)


def columns(ids: Tensor, a: Tensor) -> Tensor:
    """The columns of ``a (n, vocab)`` that ``ids (...)`` name, ``(..., n)``."""
    return nn.functional.embedding(ids, a.T)


def is_embedding(layer: LoraLayer | nn.Module) -> bool:
    """Whether peft adapts an embedding in a layer."""
    return isinstance(layer, Embedding)


def hold_in_modules(layer: Embedding, adapter: str) -> None:
    """Let modules stand in for the bare factors of an adapter of an embedding."""
    a, b = layer.lora_embedding_A.pop(adapter), layer.lora_embedding_B.pop(adapter)
    (rank, vocabulary), width = a.shape, b.shape[0]
    layer.lora_A[adapter] = TokenFactor(rank, vocabulary).to(a.device)
    layer.lora_B[adapter] = nn.Linear(rank, width, bias=False, device=b.device)

    def adapted(_module: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if adapter not in layer.lora_A:  # given back, so peft adds them itself
            return output
        return output + layer.scaling[adapter] * layer.lora_B[adapter](
            layer.lora_A[adapter](inputs[0])
        )

    layer.register_forward_hook(adapted)


def give_back(model: PeftModel, adapter: str) -> None:
    """Put the factors of adapted embeddings where peft looks for them, as to merge them."""
    for module in model.modules():
        if isinstance(module, Embedding) and adapter in module.lora_A:
            untyped = cast(Any, module)
            for kind in ("A", "B"):
                weight = getattr(untyped, f"lora_{kind}").pop(adapter).weight
                getattr(untyped, f"lora_embedding_{kind}")[adapter] = weight
