"""Small images and models of images for tests: written to a folder, the same each time."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from .client.families import IMAGES, tiny_base

CLASSES = ("dark", "light")
SIDE = 16


def picture(path: Path, seed: int, *, light: bool, size: tuple[int, int] = (20, 18)) -> Path:
    """A noisy image, darker or lighter than grey."""
    random = np.random.default_rng(seed)
    height, width = size[1], size[0]
    pixels = random.normal(180 if light else 70, 30, (height, width, 3)).clip(0, 255)
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels.astype(np.uint8)).save(path)
    return path


def picture_folder(folder: Path, *, sites: tuple[str, ...] = ("north", "south"), each: int) -> Path:
    """``SITE/CLASS/FILE``, ``each`` images a class at each site."""
    seed = 0
    for site in sites:
        for name in CLASSES:
            for index in range(each):
                seed += 1
                picture(folder / site / name / f"{index:03}.png", seed, light=name == "light")
    return folder


def vision_model(folder: Path, family: str, *, head: str = "mean") -> Path:
    """A tiny random model of a family with its image processor, as a transformers folder."""
    base: Any = tiny_base(family, head)
    base.save_pretrained(folder)
    side = SIDE if family in IMAGES else 2 * SIDE
    settings = {
        "image_processor_type": "ViTImageProcessor",
        "do_resize": True,
        "size": {"height": side, "width": side},
        "resample": 2,
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(settings), encoding="utf-8")
    return folder
