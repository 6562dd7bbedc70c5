"""EfficientNet-Lite0: a convolutional network with batch norm, for transformers' own loading.

EfficientNet (Tan and Le, 1905.11946) without squeeze-and-excitation and with ReLU6, as TensorFlow's
"lite" models have it; the stem and the head are not scaled. After `register`,
``AutoModel.from_pretrained`` knows a folder whose ``model_type`` is "efficientnet-lite".
"""

from __future__ import annotations

from typing import Any, Final

from torch import Tensor, nn
from torch.nn.functional import pad
from transformers import AutoConfig, AutoModel, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutputWithPooling

# Of each stage: width of the kernel, stride, expansion, channels, blocks (table 1 of the paper).
STAGES: Final = (
    (3, 1, 1, 16, 1),
    (3, 2, 6, 24, 2),
    (5, 2, 6, 40, 2),
    (3, 2, 6, 80, 3),
    (5, 1, 6, 112, 3),
    (5, 2, 6, 192, 4),
    (3, 1, 6, 320, 1),
)
_STEM: Final = 32


class EfficientNetLiteConfig(PretrainedConfig):
    """``hidden_size``: channels of the features; ``image_size``: side of the images it was trained
    on; ``stages``: as `STAGES`."""

    model_type = "efficientnet-lite"

    def __init__(
        self,
        hidden_size: int = 1280,
        image_size: int = 224,
        num_channels: int = 3,
        stages: Any = STAGES,
        **kwargs: Any,
    ) -> None:
        super().__init__(**kwargs)
        self.hidden_size = hidden_size
        self.image_size = image_size
        self.num_channels = num_channels
        self.stages = [list(stage) for stage in stages]


class _Unit(nn.Module):
    """A convolution without bias, its batch norm and, where it is to be, ReLU6."""

    def __init__(
        self,
        channels: tuple[int, int],
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        clip: bool = True,
    ) -> None:
        super().__init__()
        self.conv = nn.Conv2d(*channels, kernel, stride, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(channels[1], eps=1e-3, momentum=0.01)
        self.clip = clip

    def forward(self, images: Tensor) -> Tensor:
        """``(b, channels, h, w)``; zeros around it as TensorFlow's "same" puts them, of which an
        odd one is to the right and below."""
        kernel, stride = self.conv.kernel_size[0], self.conv.stride[0]
        edges: list[int] = []
        for side in reversed(images.shape[-2:]):
            total = max((-(-side // stride) - 1) * stride + kernel - side, 0)
            edges += [total // 2, total - total // 2]
        found = self.norm(self.conv(pad(images, edges)))
        return found.clamp(0, 6) if self.clip else found


class _Block(nn.Module):
    """An inverted bottleneck: expand, convolve each channel by itself, project; with a short cut
    where the shape is kept."""

    def __init__(self, before: int, after: int, *, kernel: int, stride: int, factor: int) -> None:
        super().__init__()
        wide = before * factor
        self.expand = _Unit((before, wide)) if factor > 1 else None
        self.depthwise = _Unit((wide, wide), kernel=kernel, stride=stride, groups=wide)
        self.project = _Unit((wide, after), clip=False)
        self.shortcut = stride == 1 and before == after

    def forward(self, images: Tensor) -> Tensor:
        found = images if self.expand is None else self.expand(images)
        found = self.project(self.depthwise(found))
        return found + images if self.shortcut else found


class EfficientNetLiteModel(PreTrainedModel):
    """Features of images; batch norm's running numbers are part of the weights."""

    config_class = EfficientNetLiteConfig
    main_input_name = "pixel_values"
    base_model_prefix = "efficientnet_lite"

    def __init__(self, config: EfficientNetLiteConfig) -> None:
        super().__init__(config)
        blocks: list[nn.Module] = []
        before = _STEM
        for kernel, stride, factor, after, count in config.stages:
            for place in range(count):
                step = stride if place == 0 else 1
                blocks.append(_Block(before, after, kernel=kernel, stride=step, factor=factor))
                before = after
        self.stem = _Unit((config.num_channels, _STEM), kernel=3, stride=2)
        self.blocks = nn.ModuleList(blocks)
        self.head = _Unit((before, config.hidden_size))
        self.post_init()

    def forward(self, pixel_values: Tensor, **_: Any) -> BaseModelOutputWithPooling:
        """``(b, 3, h, w)`` in -1..1 to ``last_hidden_state (b, hidden_size, h / 32, w / 32)`` and
        its mean over places, ``pooler_output (b, hidden_size)``."""
        found = self.stem(pixel_values)
        for block in self.blocks:
            found = block(found)
        found = self.head(found)
        return BaseModelOutputWithPooling(last_hidden_state=found, pooler_output=found.mean((2, 3)))


def register() -> None:
    """Make ``AutoConfig`` and ``AutoModel`` know the kind of model."""
    AutoConfig.register(EfficientNetLiteConfig.model_type, EfficientNetLiteConfig, exist_ok=True)
    AutoModel.register(EfficientNetLiteConfig, EfficientNetLiteModel, exist_ok=True)
