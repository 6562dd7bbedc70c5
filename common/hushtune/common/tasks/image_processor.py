"""What a base expects of its images: size and scale, from the model's preprocessor_config.json.

The numbers are the model's, and public; transformers fills in those that a file leaves out. The
work is done here, with Pillow alone, so that every site computes the same pixels whether or not
torchvision is installed.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import torch
from torch import Tensor
from transformers import AutoConfig, AutoImageProcessor

from hushtune.common.errors import ModelError, UnsupportedModelError

if TYPE_CHECKING:
    from PIL.Image import Image

PREPROCESSOR = "preprocessor_config.json"
_WARPED_FROM = 384
"""At this size and above ConvNeXt's images are stretched and not cut."""


@dataclass(frozen=True)
class ImageProcessor:
    """Images to the pixels of one base.

    ``resize``: (height, width) that an image is stretched to, or the length of its shorter side,
    whose ratio to the other is kept. ``height``, ``width``: of what is cut from its middle.
    ``scale``, ``mean``, ``std``: a pixel p in 0..255 of channel c becomes
    ``(p * scale + offset - mean[c]) / std[c]``. ``positions``: of the base's states.
    """

    resize: tuple[int, int] | int
    height: int
    width: int
    resample: int
    scale: float
    offset: float
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    positions: int
    processor: Any

    def pixels(self, image: Image) -> Tensor:
        """``(3, height, width)`` uint8 of an RGB image."""
        if isinstance(self.resize, tuple):
            height, width = self.resize
        else:
            short, long = min(image.size), max(image.size)
            longer = int(self.resize * long / short)
            upright = image.width <= image.height
            height, width = (longer, self.resize) if upright else (self.resize, longer)
        found = image.resize((width, height), resample=cast(Any, self.resample))
        left, top = (width - self.width) // 2, (height - self.height) // 2
        # Beyond the edge of an image that is smaller than the cut it is black.
        found = found.crop((left, top, left + self.width, top + self.height))
        return torch.from_numpy(np.array(found)).permute(2, 0, 1).contiguous()

    def scaled(self, pixels: Tensor) -> Tensor:
        """What the base takes, float32, of pixels ``(b, 3, h, w)`` in 0..255."""
        mean, std = (torch.tensor(given).view(3, 1, 1) for given in (self.mean, self.std))
        return (pixels.float() * self.scale + self.offset - mean) / std

    def save_pretrained(self, folder: str) -> None:
        """Write the model's own file, as transformers does."""
        self.processor.save_pretrained(folder)


def load_image_processor(name: str, *, side: int | None = None) -> ImageProcessor:
    """The processor that lies beside a model; ``side``: of square images in place of its own size.

    Raises ModelError where there is none, UnsupportedModelError for one that does something else.
    """
    folder = Path(name)
    if folder.is_dir() and not (folder / PREPROCESSOR).is_file():
        raise ModelError(
            "the model's folder does not say how images are prepared",
            given=name,
            expected=PREPROCESSOR,
            remedy="copy the file there: image_processor.save_pretrained(folder)",
        )
    try:
        processor = AutoImageProcessor.from_pretrained(name, trust_remote_code=False, backend="pil")
        # Beside an adapter there is none: what predicts keeps no states.
        alone = folder.is_dir() and not (folder / "config.json").is_file()
        config = None if alone else AutoConfig.from_pretrained(name, trust_remote_code=False)
        found = processor.to_dict()
    except Exception as error:  # of a damaged file the libraries raise whatever they stumble over
        raise ModelError(
            "the model's image processor cannot be loaded",
            given=name,
            expected=f"{PREPROCESSOR} and config.json in the model's folder",
            remedy=f"get the files again: {type(error).__name__} {error}"[:200],
        ) from error
    resize, (height, width) = _sizes(found, side, name)
    whole = bool(found.get("do_normalize", True))
    scale = float(found.get("rescale_factor", 1 / 255)) if found.get("do_rescale", True) else 1.0
    mean = _three(found.get("image_mean") or 0.0) if whole else (0.0, 0.0, 0.0)
    std = _three(found.get("image_std") or 1.0) if whole else (1.0, 1.0, 1.0)
    if found.get("include_top") and whole:  # EfficientNet's divides twice
        std = cast("tuple[float, float, float]", tuple(value * value for value in std))
    return ImageProcessor(
        resize=resize,
        height=height,
        width=width,
        resample=int(found.get("resample", 2)),
        scale=scale,
        offset=-1.0 if found.get("rescale_offset") else 0.0,
        mean=mean,
        std=std,
        positions=_positions(config, height, width),
        processor=processor,
    )


def _sizes(
    found: Mapping[str, Any], side: int | None, name: str
) -> tuple[tuple[int, int] | int, tuple[int, int]]:
    """What images are resized to, and what is cut from their middle, (height, width)."""
    size = cast("Mapping[str, int]", found.get("size") or {})
    crop = cast("Mapping[str, int]", found.get("crop_size") or {})
    stretched, shortest = _pair(size), size.get("shortest_edge")
    cut = _pair(crop) if found.get("do_center_crop") else None
    if shortest is not None and found.get("crop_pct") is not None:  # ConvNeXt's
        cut = (shortest, shortest)
        if shortest >= _WARPED_FROM:
            stretched = cut
        else:
            shortest = int(shortest / float(found["crop_pct"]))
    resize = stretched or shortest
    if not found.get("do_resize", True) or resize is None or found.get("do_pad"):
        raise UnsupportedModelError(
            "the model prepares images in a way that is not available",
            given=f"{name}: size {dict(size)}, do_resize {found.get('do_resize')}, do_pad "
            f"{found.get('do_pad')}",
            expected="images that are resized to height and width or to shortest_edge, and cut",
            remedy=f"take another model, or mend its {PREPROCESSOR}",
        )
    cut = cut or (stretched if stretched is not None else (int(resize), int(resize)))  # pyright: ignore[reportArgumentType]
    if side is None:
        return resize, cut
    if isinstance(resize, tuple):
        return (side * resize[0] // cut[0], side * resize[1] // cut[1]), (side, side)
    return max(side, resize * side // min(cut)), (side, side)


def _pair(size: Mapping[str, int]) -> tuple[int, int] | None:
    height, width = size.get("height"), size.get("width")
    return None if height is None or width is None else (int(height), int(width))


def _three(value: Any) -> tuple[float, float, float]:
    values = [float(value)] * 3 if isinstance(value, int | float) else [float(v) for v in value]
    if len(values) != 3:
        raise UnsupportedModelError(
            "the model reads images of other than three colours", given=len(values), expected=3
        )
    return values[0], values[1], values[2]


def _positions(config: Any, height: int, width: int) -> int:
    """Positions of the base's states: a patch each, one for all and registers; 1 of a map."""
    patch = getattr(config, "patch_size", None)
    if not isinstance(patch, int) or getattr(config, "num_attention_heads", None) is None:
        return 1
    if height % patch or width % patch:
        raise UnsupportedModelError(
            "images are cut into whole patches",
            given=f"{height} x {width} pixels, patches of {patch}",
            expected=f"a multiple of {patch}",
            remedy="set model.image_size to one",
        )
    more = 1 + int(getattr(config, "num_register_tokens", 0))
    return (height // patch) * (width // patch) + more
