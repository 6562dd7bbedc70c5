"""What turns the canonical inputs of a kind of supervision into what its base reads."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from hushtune.common.config import ModelConfig, TaskConfig
from hushtune.common.kinds import Inputs
from hushtune.common.tasks.image_processor import ImageProcessor, load_image_processor
from hushtune.common.tasks.tokenizer import load_tokenizer

Encoder = PreTrainedTokenizerBase | ImageProcessor


def load_encoder(name: str, task: TaskConfig, model: ModelConfig) -> Encoder:
    """The tokenizer of a model, or its image processor; raises what loading either does."""
    if task.of.inputs is Inputs.IMAGE:
        return load_image_processor(name, side=model.image_size)
    return load_tokenizer(name)
