"""What each compared model is called in tables and plots, in their order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

METHODS: Mapping[str, str] = {
    "majority": "most frequent label",
    "untrained": "untrained model",
    "alone_private": "each site alone, private",
    "head_private": "head on frozen features, private",
    "federated": "federated, private",
    "personal": "federated, each site's own, private",
    "pooled_private": "pooled, private",
    "pooled": "pooled, no privacy",
}

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
    told = f"told by {', '.join(names)} without noise, see released; else {SEEN_BY}"
    return {
        key: told if names and key in ("accuracy", "loss", "sites") else SEEN_BY for key in figures
    }


def told_as_they_are(released: Mapping[str, Any] | None) -> list[str]:
    """The sites that told figures without noise in a round, of which `released` is the record."""
    return sorted(released["sites"]) if released is not None and not released["noised"] else []


def methods(*, private: bool) -> Mapping[str, str]:
    """METHODS as they are called in a run, in order.

    Of one without privacy none is called private, and the two kinds of pooled training are one.
    """
    if private:
        return METHODS
    return {
        name: label.replace(", private", "") for name, label in METHODS.items() if name != "pooled"
    }
