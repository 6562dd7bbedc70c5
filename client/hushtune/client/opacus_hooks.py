"""Each example's gradient by Opacus' hooks, for layers of every kind that Opacus knows.

The only file that imports Opacus.
"""

from __future__ import annotations

import warnings
from collections.abc import Generator, Sequence
from contextlib import contextmanager

from opacus.grad_sample import GradSampleHooks, register_grad_sampler
from torch import Tensor, nn

from hushtune.client.example_gradients import token_samples
from hushtune.common.errors import UnsupportedModelError
from hushtune.common.lora_embedding import TokenFactor
from hushtune.common.model import AdaptedModel


@register_grad_sampler(TokenFactor)
def _of_token_factor(
    layer: TokenFactor, activations: Sequence[Tensor], backprops: Tensor
) -> dict[nn.Parameter, Tensor]:
    """See ``token_samples``."""
    return {layer.weight: token_samples(activations[0], backprops, layer.weight)}


@contextmanager
def hooked(model: AdaptedModel) -> Generator[None]:
    """A backward pass in the block leaves ``grad_sample (b, ...)`` on what is trained."""
    try:
        hooks = GradSampleHooks(model, loss_reduction="sum")
    except NotImplementedError as error:
        raise UnsupportedModelError(
            "per-example gradients of this model cannot be taken", given=str(error)[:200]
        ) from error
    try:
        with warnings.catch_warnings():
            # The first trained layer's inputs need no gradient, which torch mentions each time.
            warnings.filterwarnings("ignore", message="Full backward hook is firing")
            yield
    finally:
        hooks.cleanup()
        for module in model.modules():
            for left_over in ("activations", "max_batch_len"):
                vars(module).pop(left_over, None)
