"""Several labels an example, or none."""

from __future__ import annotations

import torch
from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.texts import text_views, tokenize
from hushtune.common.tasks.labels import names_of
from hushtune.common.tasks.objectives import MultiLabel
from hushtune.common.tasks.targets import DenseTargets


def prepare(config: RunConfig, data: LabelledRows, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Tokens, and for each label whether a row has it."""
    place = {name: index for index, name in enumerate(data.label_names)}
    held = torch.zeros(len(data.answers), len(place))
    for row, answer in enumerate(data.answers):
        for name in names_of(answer):
            held[row, place[name]] = 1.0
    inputs = tokenize(tokenizer, data.texts, max_tokens=config.model.max_tokens)
    augmented = text_views(config, tokenizer, data.texts, inputs)
    return Prepared(inputs, DenseTargets(held), MultiLabel(len(place)), augmented=augmented)
