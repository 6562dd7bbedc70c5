"""What each compared model is called in tables and plots, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from hushtune.common.kinds import KINDS, Inputs, Targets

METHODS: Mapping[str, str] = {
    "majority": "most frequent label",
    "untrained": "untrained model",
    "alone_private": "each site alone, private",
    "head_private": "head on frozen features, private",
    "head_best": "head on the best frozen layer, private",
    "federated": "federated, private",
    "personal": "federated, each site's own, private",
    "pooled_private": "pooled, private",
    "pooled": "pooled, no privacy",
}

OF_TABLES: Mapping[str, str] = {
    "columns_private": "small network on columns, federated, private",
    "columns": "small network on columns, pooled, no privacy",
}
"""What is compared beside them where a language model reads the columns of a table as a text."""

OURS = ("federated", "personal")
"""The methods that are the run itself, and no comparison."""

SEEN_BY = "seen by the researcher only: no site sends these figures"
"""Of accuracies, losses and true numbers of rows, which only who holds all sites' rows knows."""


def seen_by(figures: Iterable[str], released: Mapping[str, Any] | None) -> dict[str, str]:
    """Who sees each of a round's figures on validation rows.

    `figures`: their keys. `released`: what sites told in the round, as in metrics.jsonl: where it
    is without noise, accuracies and losses are not the researcher's alone.
    """
    names = told_as_they_are(released)
    of_rows = {"loss", "sites", *(kind.score for kind in KINDS.values())}
    told = f"told by {', '.join(names)} without noise, see released; else {SEEN_BY}"
    return {key: told if names and key in of_rows else SEEN_BY for key in figures}


def told_as_they_are(released: Mapping[str, Any] | None) -> list[str]:
    """The sites that told figures without noise in a round, of which `released` is the record."""
    return sorted(released["sites"]) if released is not None and not released["noised"] else []


_LOOKS_AT_NOTHING = {
    Targets.CLASSES: "labels by how often they occur",
    Targets.NUMBER: "mean of the targets",
    Targets.TAGS: "most frequent tag",
    Targets.ANSWER: "tokens by how often they occur",
}
"""What the best answer is that looks at no input; of classes see METHODS."""


def methods(*, private: bool, kind: str = "text-classification") -> Mapping[str, str]:
    """METHODS as they are called in a run of some kind of supervision, in order.

    Of one without privacy none is called private, and the two kinds of pooled training are one.
    """
    constant = _LOOKS_AT_NOTHING.get(KINDS[kind].targets, METHODS["majority"])
    named = {**METHODS, "majority": constant}
    if KINDS[kind].inputs is Inputs.COLUMNS:
        named |= OF_TABLES
    if private:
        return named
    plain = {name: label.replace(", private", "") for name, label in named.items()}
    return {
        name: label.replace(", no privacy", "") for name, label in plain.items() if name != "pooled"
    }


def metric_words(metric: str) -> str:
    """A metric as it is written for people.

    >>> metric_words("macro_f1"), metric_words("rmse"), metric_words("token_accuracy")
    ('macro-F1', 'RMSE', 'token accuracy')
    """
    known = {"macro_f1": "macro-F1", "micro_f1": "micro-F1", "rmse": "RMSE", "mae": "MAE"}
    known |= {"roc_auc": "area under the ROC curve", "r2": "R2"}
    return known.get(metric, metric.replace("_", " "))
