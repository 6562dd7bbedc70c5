"""A number an example: of a text, of a pair of texts, or of a table's row read as a text."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.texts import pair_notes, text_views, tokenize
from hushtune.common.tasks.objectives import Regression
from hushtune.common.tasks.targets import DenseTargets


def prepare(config: RunConfig, data: LabelledRows, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Tokens, and numbers that are scaled by their public range."""
    inputs = tokenize(
        tokenizer,
        data.texts,
        max_tokens=config.model.max_tokens,
        inputs=config.task.of.inputs,
    )
    return Prepared(
        inputs,
        numbers(data),
        Regression(*config.task.bounds),
        augmented=text_views(config, tokenizer, data.texts, inputs),
        notes=pair_notes(tokenizer, config.task.of.inputs, inputs),
    )


def numbers(data: LabelledRows) -> DenseTargets:
    """The numbers of all rows, in their own unit."""
    return DenseTargets(torch.tensor([float(answer) for answer in data.answers]))
