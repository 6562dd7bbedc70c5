"""LoRA on convolutional networks: on convolutions of 1 by 1, as the linear layers that they are.

Such a convolution is a matrix on the channels, the same at every place of the map. Those that are
adapted are replaced by a linear layer on channels that stand last, which computes the same; so
adapters, their algebra and per-example gradients are those of linear layers. Merged and saved they
are convolutions again.

Batch norm stays in evaluation mode, where it is a fixed scale and shift of each channel.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, cast

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from hushtune.common.tensor_keys import a_key, b_key

LINEAR = "pointwise"
"""What the linear layer is called in the module that stands for a convolution."""
_SIDE = 64


@dataclass(frozen=True, slots=True)
class Convolutional:
    """One family: how its blocks are called, as a pattern, and what is adapted in them."""

    block: str
    targets: tuple[str, ...]


_BOTTLENECK = ("layer.0.convolution", "layer.2.convolution")
_IN_STAGES = r"encoder\.stages\.\d+\.layers\.\d+"
CONVOLUTIONAL: Mapping[str, Convolutional] = MappingProxyType(
    {
        "resnet": Convolutional(_IN_STAGES, _BOTTLENECK),
        "convnext": Convolutional(_IN_STAGES, ("pwconv1", "pwconv2")),
        "convnextv2": Convolutional(_IN_STAGES, ("pwconv1", "pwconv2")),
        "efficientnet": Convolutional(
            r"encoder\.blocks\.\d+", ("expansion.expand_conv", "projection.project_conv")
        ),
        "efficientnet-lite": Convolutional(r"blocks\.\d+", ("expand.conv", "project.conv")),
        "mobilenet_v2": Convolutional(
            r"layer\.\d+", ("expand_1x1.convolution", "reduce_1x1.convolution")
        ),
    }
)


class Pointwise(nn.Module):
    """A 1 by 1 convolution as a linear layer; ``(b, d_in, h, w)`` to ``(b, d_out, h', w')``."""

    def __init__(self, convolution: nn.Conv2d) -> None:
        super().__init__()
        # Some families look at these, to pad as TensorFlow does.
        self.kernel_size, self.stride = convolution.kernel_size, convolution.stride
        self.padding, self.dilation = convolution.padding, convolution.dilation
        weight = convolution.weight
        linear = nn.Linear(
            convolution.in_channels,
            convolution.out_channels,
            bias=convolution.bias is not None,
            device=weight.device,
            dtype=weight.dtype,
        )
        with torch.no_grad():
            linear.weight.copy_(weight.flatten(1))
            if convolution.bias is not None:
                linear.bias.copy_(convolution.bias)
        self.add_module(LINEAR, linear)

    def forward(self, images: Tensor) -> Tensor:
        """See the class."""
        down, right = cast("tuple[int, int]", self.stride)
        found = images[:, :, ::down, ::right].permute(0, 2, 3, 1)
        return cast(nn.Linear, getattr(self, LINEAR))(found).permute(0, 3, 1, 2)

    def convolution(self) -> nn.Conv2d:
        """The convolution again, with the weights as they are now."""
        linear = cast(nn.Linear, getattr(self, LINEAR))
        found = nn.Conv2d(
            linear.in_features,
            linear.out_features,
            1,
            stride=cast("tuple[int, int]", self.stride),
            bias=linear.bias is not None,  # pyright: ignore[reportUnnecessaryComparison]
            device=linear.weight.device,
            dtype=linear.weight.dtype,
        )
        with torch.no_grad():
            found.weight.copy_(linear.weight[:, :, None, None])
            if found.bias is not None:
                found.bias.copy_(linear.bias)
        return found.requires_grad_(False)


def is_convolutional(base: PreTrainedModel) -> bool:
    """Whether a base is of a convolutional family that is known."""
    return base.config.model_type in CONVOLUTIONAL


def is_pointwise(module: nn.Module) -> bool:
    """Whether a module is a convolution that is a matrix on the channels."""
    return (
        isinstance(module, nn.Conv2d)
        and module.kernel_size == (1, 1)
        and module.groups == 1
        and module.padding in ((0, 0), "valid", "same")
    )


def pointwise_places(base: PreTrainedModel) -> tuple[list[tuple[str, int, str]], int]:
    """Names of the modules that can be adapted, each with its block and its name in there; and how
    many blocks there are.

    What lies behind all blocks counts as in the last one, but for the classifier.
    """
    block = re.compile(rf"(?:^|\.){CONVOLUTIONAL[str(base.config.model_type)].block}(?=\.|$)")
    backbone = base.base_model
    numbers: dict[str, int] = {}
    found: list[tuple[str, int, str]] = []
    for name, module in backbone.named_modules():
        if match := block.search(name):
            numbers.setdefault(name[: match.end()], len(numbers))
        fits = is_pointwise(module) or isinstance(module, nn.Linear)
        if fits and (match or numbers):
            place = numbers[name[: match.end()]] if match else len(numbers) - 1
            found.append((name, place, name[match.end() + 1 :] if match else name))
    prefix = "" if backbone is base else f"{base.base_model_prefix}."
    return [(prefix + name, place, short) for name, place, short in found], len(numbers)


def as_linear(base: PreTrainedModel, targets: Iterable[str]) -> tuple[str, ...]:
    """Put linear layers in the place of the convolutions among some modules; the names of what is
    to be adapted, sorted."""
    names: list[str] = []
    for target in targets:
        module = base.get_submodule(target)
        if isinstance(module, nn.Conv2d):
            _replace(base, target, Pointwise(module))
            names.append(f"{target}.{LINEAR}")
        else:
            names.append(target)
    return tuple(sorted(names))


def as_convolutions(base: nn.Module) -> None:
    """Undo ``as_linear``, with the weights as they are now."""
    for name, module in list(base.named_modules()):
        if isinstance(module, Pointwise):
            _replace(base, name, module.convolution())


def _replace(base: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, child = name.rpartition(".")
    module.train(False)
    setattr(base.get_submodule(parent), child, module)


def plain_name(target: str) -> str:
    """What an adapted module is called in the base as it was loaded.

    >>> plain_name("encoder.blocks.2.project_conv.pointwise")
    'encoder.blocks.2.project_conv'
    """
    return target.removesuffix(f".{LINEAR}")


def of_convolutions(targets: Iterable[str]) -> frozenset[str]:
    """Keys of the factors of adapted convolutions."""
    adapted = [target for target in targets if plain_name(target) != target]
    return frozenset(key(target) for target in adapted for key in (a_key, b_key))


@torch.no_grad()
def channels(base: PreTrainedModel) -> int:
    """Channels of the last map."""
    place = next(base.parameters())
    images = torch.zeros(1, 3, _SIDE, _SIDE, device=place.device, dtype=place.dtype)
    return int(cast(Any, base.base_model)(pixel_values=images).last_hidden_state.shape[1])
