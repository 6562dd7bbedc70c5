"""One class an example: of a text, of a pair of texts, or of a table's row read as a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError
from hushtune.common.model import AdaptedModel
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.texts import pair_notes, text_views, tokenize
from hushtune.common.tasks.objectives import Classification, class_weights
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.targets import DenseTargets
from hushtune.common.tasks.units import Rows

DETECTION = ("average_precision", "roc_auc", "recall_at_precision")
"""Figures of two classes, of which one is to be detected."""


def prepare(config: RunConfig, data: LabelledRows, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Tokens, classes and cross-entropy."""
    inputs = tokenize(
        tokenizer,
        data.texts,
        max_tokens=config.model.max_tokens,
        inputs=config.task.of.inputs,
    )
    return Prepared(
        inputs,
        classes(data),
        objective(config, data.label_names),
        augmented=text_views(config, tokenizer, data.texts, inputs),
        notes=pair_notes(tokenizer, config.task.of.inputs, inputs),
    )


def classes(data: LabelledRows) -> DenseTargets:
    """The classes of all rows."""
    return DenseTargets(torch.from_numpy(data.labels))


def objective(config: RunConfig, names: Sequence[str]) -> Classification:
    """Cross-entropy with the run's public weights; ConfigError for a name that is no class."""
    task = config.task
    if len(names) != 2 and (task.main_metric in DETECTION or task.positive is not None):
        raise ConfigError(
            "what is to be detected is one of two classes",
            given=f"{len(names)} classes: {', '.join(names[:8])}",
            expected="two, or task.metric = accuracy or macro_f1 and no task.positive",
            remedy="leave task.positive out, and take another task.metric",
        )
    if task.positive is not None and task.positive not in names:
        raise ConfigError(
            "task.positive is no class of the data",
            given=task.positive,
            expected=" or ".join(names),
            remedy="set task.positive to one of the classes",
        )
    return Classification(
        class_weights(weights_of(names, config.data.class_weights), len(names)),
        positive=1 if task.positive is None else names.index(task.positive),
        precision_floor=task.precision_floor,
        smoothing=config.train.label_smoothing,
    )


def weights_of(names: Sequence[str], given: Mapping[str, float]) -> list[float] | None:
    """Class weights in the order of the labels; 1 where none is given."""
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigError(
            "data.class_weights names a label that the data do not have",
            given=", ".join(unknown),
            expected=", ".join(names),
            remedy="give a weight to labels of the data alone",
        )
    return [given.get(name, 1.0) for name in names] if given else None


def text_classification(
    model: AdaptedModel,
    tokens: TokenRows,
    labels: Rows,
    *,
    weights: Sequence[float] | None = None,
    smoothing: float = 0.0,
    **others: Any,
) -> Supervised:
    """A task over tokens and classes that are there already; ``others`` go to ``Supervised``."""
    over = Classification(class_weights(weights, model.num_outputs), smoothing=smoothing)
    return Supervised(model, tokens, DenseTargets(torch.from_numpy(labels)), over, **others)
