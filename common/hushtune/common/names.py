"""What each compared model is called in tables and plots, in their order."""

from __future__ import annotations

from collections.abc import Mapping

METHODS: Mapping[str, str] = {
    "majority": "most frequent label",
    "untrained": "untrained model",
    "alone_private": "each site alone, private",
    "head_private": "head on frozen features, private",
    "federated": "federated, private",
    "pooled_private": "pooled, private",
    "pooled": "pooled, no privacy",
}

SEEN_BY = "seen by the researcher only: no site sends these figures"
"""Of accuracies, losses and true numbers of rows, which only who holds all sites' rows knows."""


def methods(*, private: bool) -> Mapping[str, str]:
    """METHODS as they are called in a run, in order.

    Of one without privacy none is called private, and the two kinds of pooled training are one.
    """
    if private:
        return METHODS
    return {
        name: label.replace(", private", "") for name, label in METHODS.items() if name != "pooled"
    }
