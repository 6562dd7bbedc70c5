"""What turns the canonical inputs of a kind of supervision into what its base reads."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from hushtune.common.config import DataConfig, ModelConfig, TaskConfig
from hushtune.common.config_columns import COLUMNS, public_columns
from hushtune.common.kinds import Inputs
from hushtune.common.tasks.column_rows import ColumnEncoder
from hushtune.common.tasks.image_processor import ImageProcessor, load_image_processor
from hushtune.common.tasks.tokenizer import load_tokenizer

Encoder = PreTrainedTokenizerBase | ImageProcessor | ColumnEncoder


def load_encoder(
    name: str, task: TaskConfig, model: ModelConfig, data: DataConfig | None = None
) -> Encoder:
    """The tokenizer of a model, or its image processor, or, where ``data`` are given, the public
    columns of a network on columns; raises what loading any of them does."""
    if model.name == COLUMNS and data is not None:
        return ColumnEncoder(public_columns(data))
    if task.of.inputs is Inputs.IMAGE:
        return load_image_processor(name, side=model.image_size)
    return load_tokenizer(name)
