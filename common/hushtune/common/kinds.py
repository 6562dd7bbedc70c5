"""Every kind of supervision by what is public of it: its inputs, targets and figures of merit.

An example crosses the data code as two strings, so that cleaning, duplicates, splits and
fingerprints are the same for all kinds: ``RawRow.text``, the canonical form of its input, and
``RawRow.label``, that of its target.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from types import MappingProxyType


class Inputs(StrEnum):
    """What the canonical string of an input is."""

    TEXT = "text"
    PAIR = "pair"  # JSON list of two texts
    COLUMNS = "columns"  # JSON object: column -> cell
    MESSAGES = "messages"  # JSON list of {"role", "content"}, up to the answer; "[]" for none
    IMAGE = "image"  # "sha256:path"


class Targets(StrEnum):
    """What the canonical string of a target is."""

    CLASS = "class"
    CLASSES = "classes"  # names joined by "|"; "|" alone for none
    NUMBER = "number"
    TAGS = "tags"  # one for each word, joined by spaces
    ANSWER = "answer"  # a text


LOWER_IS_BETTER = frozenset({"loss", "rmse", "mae", "perplexity"})
"""All other figures are better the higher they are, and at most 1."""


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of supervision.

    ``metrics``: the figures that are computed, of which the first is the run's unless
    ``task.metric`` names another. ``score``: what a site may tell of a model beside its loss, a
    number in [0, 1] a row. ``repeats``: whether equal inputs are different examples all the same,
    as two persons of one age are; otherwise an input that occurs twice is kept once.
    """

    name: str
    inputs: Inputs
    targets: Targets
    metrics: tuple[str, ...]
    score: str
    repeats: bool = False

    @property
    def has_head(self) -> bool:
        """Whether a head is trained beside the adapter; a language model has the base's own."""
        return self.targets is not Targets.ANSWER

    def identity(self, text: str, label: str) -> str:
        """What examples are equal by, that are to be kept once."""
        if self.inputs is Inputs.IMAGE:
            return self.content(text)
        words = " ".join(text.split())
        return f"{words}\n{label}" if self.targets is Targets.ANSWER else words

    def content(self, text: str) -> str:
        """What an input is, wherever it lies: of an image the sha256 alone, for a data set that is
        moved is the same one, and its budget goes on."""
        return text.partition(":")[0] if self.inputs is Inputs.IMAGE else text

    @property
    def has_classes(self) -> bool:
        """Whether each example has one class."""
        return self.targets is Targets.CLASS


_OF_CLASSES = ("accuracy", "macro_f1", "average_precision", "roc_auc", "recall_at_precision")
_OF_NUMBERS = ("rmse", "mae", "r2", "pearson", "spearman")
_OF_WORDS = ("perplexity", "token_accuracy")

KINDS: Mapping[str, Kind] = MappingProxyType(
    {
        kind.name: kind
        for kind in (
            Kind("text-classification", Inputs.TEXT, Targets.CLASS, _OF_CLASSES, "accuracy"),
            Kind(
                "multi-label",
                Inputs.TEXT,
                Targets.CLASSES,
                ("micro_f1", "macro_f1", "label_accuracy"),
                "label_accuracy",
            ),
            Kind("text-regression", Inputs.TEXT, Targets.NUMBER, _OF_NUMBERS, "closeness"),
            Kind("text-pair-classification", Inputs.PAIR, Targets.CLASS, _OF_CLASSES, "accuracy"),
            Kind("text-pair-regression", Inputs.PAIR, Targets.NUMBER, _OF_NUMBERS, "closeness"),
            Kind(
                "token-classification",
                Inputs.TEXT,
                Targets.TAGS,
                ("token_accuracy", "macro_f1", "span_f1"),
                "token_accuracy",
            ),
            Kind("causal-lm", Inputs.MESSAGES, Targets.ANSWER, _OF_WORDS, "token_accuracy"),
            Kind("seq2seq", Inputs.TEXT, Targets.ANSWER, _OF_WORDS, "token_accuracy"),
            Kind("image-classification", Inputs.IMAGE, Targets.CLASS, _OF_CLASSES, "accuracy"),
            Kind(
                "tabular-classification",
                Inputs.COLUMNS,
                Targets.CLASS,
                _OF_CLASSES,
                "accuracy",
                True,
            ),
            Kind(
                "tabular-regression", Inputs.COLUMNS, Targets.NUMBER, _OF_NUMBERS, "closeness", True
            ),
            Kind("recommendation", Inputs.COLUMNS, Targets.NUMBER, _OF_NUMBERS, "closeness", True),
        )
    }
)


def kinds_by_metrics() -> Mapping[tuple[str, ...], tuple[str, ...]]:
    """The kinds that have the same figures, by these; the first figure is the one that a run takes
    unless it names another."""
    found: dict[tuple[str, ...], tuple[str, ...]] = {}
    for kind in KINDS.values():
        found[kind.metrics] = (*found.get(kind.metrics, ()), kind.name)
    return found


def metrics_in_words() -> str:
    """Which figures each kind has, and which way is better."""
    lists = "; ".join(
        f"{', '.join(kinds)}: {', '.join(metrics)}" for metrics, kinds in kinds_by_metrics().items()
    )
    known = [metric for metrics in kinds_by_metrics() for metric in metrics]
    lower = sorted(LOWER_IS_BETTER.intersection(known))
    return f"{lists}. Lower is better of {', '.join(lower)}, higher of all others"


def higher_is_better(metric: str) -> bool:
    """Whether a larger figure of this name is the better one."""
    return metric not in LOWER_IS_BETTER
