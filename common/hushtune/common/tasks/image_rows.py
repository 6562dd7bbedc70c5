"""The images of all rows of a task, at the size that the base reads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from hushtune.common.tasks.image_files import opened
from hushtune.common.tasks.image_processor import ImageProcessor
from hushtune.common.tasks.units import Rows


@dataclass(frozen=True)
class ImageRows:
    """Images by row: the first of them as pixels in memory, the others decoded when asked for.

    An image of h by w takes ``3 h w`` bytes, 150 KB at 224 by 224. Which are kept decides how long
    it takes, and nothing else.
    """

    texts: Sequence[str]  # canonical: "sha256:path"
    processor: ImageProcessor
    kept: Tensor  # (k, 3, h, w), uint8

    @classmethod
    def of(cls, texts: Sequence[str], processor: ImageProcessor, *, megabytes: int) -> ImageRows:
        """Decode as many images as ``megabytes`` hold. Raises what ``image_files.opened`` does."""
        shape = (3, processor.height, processor.width)
        count = min(len(texts), megabytes * 2**20 // int(np.prod(shape)))
        kept = torch.empty((count, *shape), dtype=torch.uint8)
        for row in range(count):
            kept[row] = processor.pixels(opened(texts[row]))
        return cls(texts, processor, kept)

    @cached_property
    def lengths(self) -> Rows:
        """See ``InputRows``: all alike."""
        return np.full(len(self.texts), self.processor.positions, dtype=np.int64)

    @cached_property
    def widths(self) -> Rows:
        """See ``InputRows``: an image is never padded."""
        return self.lengths

    def pixels(self, rows: Rows) -> Tensor:
        """``(b, 3, h, w)`` uint8."""
        return torch.stack([self._one(int(row)) for row in rows])

    def inputs(self, rows: Rows) -> dict[str, Tensor]:
        """``pixel_values (b, 3, h, w)``, scaled as the base wants them."""
        return {"pixel_values": self.processor.scaled(self.pixels(rows))}

    def _one(self, row: int) -> Tensor:
        if row < len(self.kept):
            return self.kept[row]
        return self.processor.pixels(opened(self.texts[row]))
