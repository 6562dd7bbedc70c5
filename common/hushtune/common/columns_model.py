"""A small network on the columns of a table, as an adapted model that has no base.

``x -> W2 tanh(W1 x + b1) + b2``, trained whole: its tensors are the head of an adapter without
factors, so that clipping, noise, aggregation, ledger and checkpoint are those of any other model.
tanh, whose outputs are bounded, as it keeps gradients small that are to be clipped (2007.14191).
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from typing import Any, cast

import torch
from peft import LoraConfig, PeftModel
from torch import nn

from hushtune.common import lora
from hushtune.common.columns import Column, digest
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.model import AdaptedModel, Head


class NoBase(nn.Module):
    """Stands where other models have their pretrained base: no weights, nothing to adapt."""

    def __init__(self, adapter: AdapterConfig) -> None:
        super().__init__()
        described = LoraConfig(r=adapter.rank, lora_alpha=cast(int, adapter.alpha))
        described.use_rslora = adapter.rslora
        self.peft_config = {lora.ADAPTER: described}

    def forward(self, **_inputs: Any) -> Any:
        raise TypeError("a network on columns has no base to run")


def network(inputs: int, width: int, outputs: int) -> nn.Sequential:
    """The network itself: ``(b, inputs) -> (b, outputs)``."""
    layers: list[tuple[str, nn.Module]] = [
        ("hidden", nn.Linear(inputs, width)),
        ("activation", nn.Tanh()),
        ("output", nn.Linear(width, outputs)),
    ]
    return nn.Sequential(OrderedDict(layers))


def columns_model(
    columns: Sequence[Column],
    *,
    model: ModelConfig,
    adapter: AdapterConfig,
    num_outputs: int,
    seed: int,
) -> AdaptedModel:
    """A network on columns with ``initial_state(seed)`` installed.

    Its fingerprint, by which two ends know that they mean the same base, is that of its columns'
    ranges and lists.
    """
    inputs = sum(column.width for column in columns)
    adapted = AdaptedModel(
        cast(PeftModel, NoBase(adapter)),
        blocks=None,
        first_adapted=0,
        num_outputs=num_outputs,
        hidden_size=inputs,
        feature_scale=1.0,
        head_kind=Head.COLUMNS,
        precision="float32",
        fingerprint=digest(columns, model.width),
        head=network(inputs, model.width, num_outputs),
    )
    adapted.requires_grad_(False)
    adapted.eval()
    lora.install(adapted, lora.initial_state(adapted, seed=seed))
    return adapted.to(torch.device("cuda" if torch.cuda.is_available() else "cpu"))
