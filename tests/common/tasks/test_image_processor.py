"""Pixels as the model's own processor makes them: compared with transformers', number by number."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from PIL import Image

from hushtune.common.errors import ModelError, UnsupportedModelError
from hushtune.common.tasks.image_files import canonical, opened
from hushtune.common.tasks.image_processor import load_image_processor
from hushtune.common.tasks.image_rows import ImageRows

from ...pictures import picture

RANDOM = np.random.default_rng(1)
IMAGES = [
    Image.fromarray(RANDOM.integers(0, 256, (height, width, 3), dtype=np.uint8))
    for height, width in ((40, 30), (30, 47), (9, 9), (64, 64))
]
MEAN, STD = [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]


def folder(path: Path, config: Any = None, **settings: Any) -> str:
    (config or tf.ViTConfig(image_size=32, patch_size=8)).save_pretrained(path)
    text = json.dumps({"image_mean": MEAN, "image_std": STD, **settings})
    (path / "preprocessor_config.json").write_text(text, encoding="utf-8")
    return str(path)


@pytest.mark.parametrize(
    "settings",
    [
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 24}},
        {"image_processor_type": "ViTImageProcessor", "size": {"height": 32, "width": 32}}
        | {"resample": 3, "do_normalize": False},
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 36},
            "crop_size": {"height": 32, "width": 32},
        },
        {
            "image_processor_type": "BitImageProcessor",
            "size": {"shortest_edge": 16},
            "crop_size": {"height": 32, "width": 32},  # more than there is
        },
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 32}},
        {"image_processor_type": "ConvNextImageProcessor", "size": {"shortest_edge": 384}},
        {"image_processor_type": "EfficientNetImageProcessor", "size": {"height": 32, "width": 32}}
        | {"rescale_offset": True},
        {
            "image_processor_type": "MobileNetV2ImageProcessor",
            "size": {"shortest_edge": 36},
            "crop_size": {"height": 32, "width": 32},
        },
    ],
)
def test_pixels_are_those_of_transformers(settings: dict[str, Any], tmp_path: Path) -> None:
    size = 384 if settings["size"].get("shortest_edge") == 384 else 32
    name = folder(tmp_path, tf.ResNetConfig(image_size=size), **settings)
    ours = load_image_processor(name)
    theirs = tf.AutoImageProcessor.from_pretrained(name, backend="pil")
    for image in IMAGES:
        expected = theirs(image, return_tensors="pt")["pixel_values"]
        found = ours.scaled(ours.pixels(image)[None])
        torch.testing.assert_close(found, expected.float(), rtol=1e-5, atol=1e-5)


def test_another_size_scales_resize_and_cut_alike(tmp_path: Path) -> None:
    bit = {"image_processor_type": "BitImageProcessor", "size": {"shortest_edge": 256}}
    name = folder(
        tmp_path, tf.Dinov2Config(patch_size=14), **bit, crop_size={"height": 224, "width": 224}
    )
    assert load_image_processor(name).positions == 1 + 16 * 16
    found = load_image_processor(name, side=112)
    assert (found.resize, found.height, found.width, found.positions) == (128, 112, 112, 1 + 64)
    with pytest.raises(UnsupportedModelError, match=r"multiple of 14(?s:.*)model.image_size"):
        load_image_processor(name, side=100)


def test_what_cannot_be_done_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"preprocessor_config\.json"):
        load_image_processor(str(tmp_path))
    name = folder(tmp_path / "a", image_processor_type="ViTImageProcessor", do_resize=False)
    with pytest.raises(UnsupportedModelError, match="do_resize False"):
        load_image_processor(name)
    grey = {"image_mean": [0.5], "image_std": [0.5]}
    name = folder(tmp_path / "b", image_processor_type="ViTImageProcessor", **grey)
    with pytest.raises(UnsupportedModelError, match="three colours"):
        load_image_processor(name)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "preprocessor_config.json").write_text("{", encoding="utf-8")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_image_processor(str(tmp_path / "c"))


def test_what_there_is_no_room_for_is_decoded_anew_to_the_same_pixels(tmp_path: Path) -> None:
    settings = {"image_processor_type": "ViTImageProcessor", "size": {"height": 512, "width": 512}}
    name = folder(tmp_path, tf.ViTConfig(image_size=512, patch_size=16), **settings)
    texts = [
        canonical(picture(tmp_path / f"{seed}.png", seed, light=seed > 1), file="a")
        for seed in range(4)
    ]
    processor = load_image_processor(name)
    all_kept, two, none = (ImageRows.of(texts, processor, megabytes=m) for m in (9, 2, 0))
    assert [len(rows.kept) for rows in (all_kept, two, none)] == [4, 2, 0]  # 768 KB each
    assert all_kept.kept.dtype == torch.uint8
    rows = np.array([3, 0, 2], dtype=np.int64)
    for other in (two, none):
        assert torch.equal(
            other.inputs(rows)["pixel_values"], all_kept.inputs(rows)["pixel_values"]
        )
    assert all_kept.lengths.tolist() == all_kept.widths.tolist() == [1 + 32 * 32] * 4
    one = processor.scaled(processor.pixels(opened(texts[2]))[None])
    assert torch.equal(all_kept.inputs(rows)["pixel_values"][2:], one)
