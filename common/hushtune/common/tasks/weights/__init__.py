"""Base models that packages ship in another format, converted once to what transformers loads.

Each conversion writes a folder of the cache, complete or not at all: ``config.json``, weights as
safetensors, and the tokenizer or the image settings.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.tasks.weights.dinov2 import dinov2_folder
from hushtune.common.tasks.weights.efficientnet import efficientnet_folder
from hushtune.common.tasks.weights.smollm2 import smollm2_folder

CONVERTED: Final[Mapping[str, Callable[[], Path]]] = MappingProxyType(
    {
        "smollm2": smollm2_folder,
        "dinov2-small": dinov2_folder,
        "efficientnet-lite0": efficientnet_folder,
    }
)
"""By name of the asset: gives the folder, made if it is not there."""
