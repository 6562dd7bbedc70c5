"""What a trained model is tried with before and after it is written for a device.

``examples`` are of random tokens, pixels or numbers, in batches and lengths that differ. A new kind
of model gets a line in it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import Tensor

from hushtune.common.errors import UnsupportedModelError
from hushtune.common.model import Head

if TYPE_CHECKING:
    from hushtune.simulations.edge_onnx import Inputs
    from hushtune.simulations.saved import Predictor

BATCHES = (4, 1, 2)


def examples(trained: Predictor) -> list[Inputs]:
    """Inputs of a model of any kind; raises UnsupportedModelError of one that is not known."""
    if trained.model.head_kind is Head.COLUMNS:
        raise UnsupportedModelError(
            "a small network on columns is not written as ONNX",
            given="--format onnx or int8",
            expected="--format adapter",
            remedy="its two files run with numpy alone, as the README.md beside them shows",
        )
    base = cast(Any, trained.model.base).get_base_model()
    kind, config = str(base.main_input_name), base.config
    if trained.model.reads_and_writes:
        raise UnsupportedModelError(
            "a model with an encoder and a decoder is not written for devices: one file gives what "
            "one pass gives, and such a model answers in many",
            given=f"--format onnx or int8 of {config.model_type}",
            expected="a model of one part",
            remedy="--format merged writes it for PyTorch",
        )
    if kind == "input_ids":
        return text_examples(int(config.vocab_size), longest=trained.settings.max_tokens)
    if kind == "pixel_values":
        size = trained.settings.image_size or int(config.image_size)
        return image_examples(int(config.num_channels), size)
    raise UnsupportedModelError(
        "models of this kind are not written for devices",
        given=f"a model that takes {kind}",
        expected="one that takes input_ids or pixel_values",
        remedy="--format merged writes it for PyTorch",
    )


def text_examples(vocabulary: int, *, longest: int) -> list[Inputs]:
    """``input_ids`` and ``attention_mask``, both ``(b, t)``, up to ``longest`` tokens.

    Each row but a batch's first is padded on the right.
    """
    random = torch.Generator().manual_seed(0)
    found: list[Inputs] = []
    for batch, length in zip((*BATCHES, 3), (longest, 1, 7, 16), strict=True):
        length = min(length, longest)  # noqa: PLW2901
        ids = torch.randint(0, vocabulary, (batch, length), generator=random)
        mask = torch.ones_like(ids)
        for row in range(1, batch):
            mask[row, max(1, length - 2 * row) :] = 0
        found.append({"input_ids": ids, "attention_mask": mask})
    return found


def image_examples(channels: int, size: int) -> list[Inputs]:
    """``pixel_values (b, channels, size, size)``."""
    return [{"pixel_values": one} for one in _normal((channels, size, size))]


def number_examples(columns: int, *, name: str) -> list[Inputs]:
    """One tensor ``(b, columns)``."""
    return [{name: one} for one in _normal((columns,))]


def _normal(shape: tuple[int, ...]) -> list[Tensor]:
    random = torch.Generator().manual_seed(0)
    return [torch.randn((batch, *shape), generator=random) for batch in BATCHES]
