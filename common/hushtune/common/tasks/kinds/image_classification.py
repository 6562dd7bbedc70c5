"""One class an image."""

from __future__ import annotations

from hushtune.common.config import RunConfig
from hushtune.common.tasks.augment import ImageViews, keys_of
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.image_processor import ImageProcessor
from hushtune.common.tasks.image_rows import ImageRows
from hushtune.common.tasks.kinds.classification import classes, objective
from hushtune.common.tasks.kinds.prepared import Prepared


def prepare(config: RunConfig, data: LabelledRows, processor: ImageProcessor) -> Prepared:
    """Pixels, classes and cross-entropy."""
    images = ImageRows.of(data.texts, processor, megabytes=config.train.pixel_megabytes)
    keys = keys_of(map(data.kind.content, data.texts))
    augmented = ImageViews(images, keys, config.augment) if config.augment.is_on else None
    return Prepared(images, classes(data), objective(config, data.label_names), augmented=augmented)
