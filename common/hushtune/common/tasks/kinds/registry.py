"""How the rows of each kind of supervision are made ready."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from types import MappingProxyType

from hushtune.common.config import ModelConfig, RunConfig, TaskConfig
from hushtune.common.config_columns import COLUMNS
from hushtune.common.errors import ConfigError
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.model import Head
from hushtune.common.tasks.column_rows import ColumnEncoder
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.encoder import Encoder
from hushtune.common.tasks.kinds import (
    causal_lm,
    classification,
    columns,
    image_classification,
    multi_label,
    regression,
    seq2seq,
    token_classification,
)
from hushtune.common.tasks.kinds.prepared import Prepare, Prepared

PREPARE: Mapping[str, Prepare] = MappingProxyType(
    {
        "text-classification": classification.prepare,
        "multi-label": multi_label.prepare,
        "text-regression": regression.prepare,
        "text-pair-classification": classification.prepare,
        "text-pair-regression": regression.prepare,
        "token-classification": token_classification.prepare,
        "causal-lm": causal_lm.prepare,
        "image-classification": image_classification.prepare,
        "seq2seq": seq2seq.prepare,
        "tabular-classification": classification.prepare,
        "tabular-regression": regression.prepare,
        "recommendation": regression.prepare,
    }
)


def prepare(config: RunConfig, data: LabelledRows, encoder: Encoder) -> Prepared:
    """Inputs, targets and objective of a run's rows."""
    if isinstance(encoder, ColumnEncoder):
        return columns.prepare(config, data, encoder)
    if config.task.kind not in PREPARE:
        raise ConfigError(
            "this kind of supervision is not available yet",
            given=config.task.kind,
            expected=", ".join(PREPARE),
            remedy="take another task.kind",
        )
    return PREPARE[config.task.kind](config, data, encoder)


def num_outputs(task: TaskConfig, labels: Sequence[str]) -> int:
    """Width of a head that is trained, for a kind of supervision and its labels."""
    return 1 if task.of.targets is Targets.NUMBER else len(labels)


def head_for(task: TaskConfig, model: ModelConfig) -> Head:
    """What turns the base's output into the model's, for a kind of supervision."""
    if model.name == COLUMNS:
        return Head.COLUMNS
    if task.of.targets is Targets.TAGS:
        return Head.TOKENS
    if task.of.inputs is Inputs.PAIR and model.head == "mean":
        return Head.PAIR
    return Head(model.head) if task.of.has_head else Head.WORDS
