"""What lies beside converted weights of a model of images."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any


def write_settings(folder: Path, config: Mapping[str, Any], images: Mapping[str, Any]) -> None:
    """Write ``config.json`` and ``preprocessor_config.json`` for transformers."""
    for name, settings in (("config", config), ("preprocessor_config", images)):
        text = json.dumps(settings, indent=2) + "\n"
        (folder / f"{name}.json").write_text(text, encoding="utf-8")


def image_settings(*, mean: Sequence[float], std: Sequence[float]) -> dict[str, Any]:
    """Images as ImageNet's models read them: 256 pixels at the shorter edge, of which the middle
    224 by 224, scaled to 0..1 and normalised by these numbers of each colour."""
    return {
        "image_processor_type": "BitImageProcessor",
        "do_convert_rgb": True,
        "do_resize": True,
        "size": {"shortest_edge": 256},
        "resample": 3,
        "do_center_crop": True,
        "crop_size": {"height": 224, "width": 224},
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": list(mean),
        "image_std": list(std),
    }
