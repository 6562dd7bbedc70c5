"""What turns the canonical inputs of a run into what its model reads."""

from __future__ import annotations

from transformers import PreTrainedTokenizerBase

from hushtune.common.config import DataConfig, ModelConfig
from hushtune.common.config_columns import COLUMNS, public_columns
from hushtune.common.tasks.column_rows import ColumnEncoder
from hushtune.common.tasks.tokenizer import load_tokenizer

Encoder = PreTrainedTokenizerBase | ColumnEncoder


def load_encoder(name: str, model: ModelConfig, data: DataConfig) -> Encoder:
    """The tokenizer of a model, or the public columns of a network on columns."""
    if model.name == COLUMNS:
        return ColumnEncoder(public_columns(data))
    return load_tokenizer(name)
