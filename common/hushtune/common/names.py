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


def methods(*, private: bool) -> Mapping[str, str]:
    """METHODS as they are called in a run; of one without privacy none is called private."""
    if private:
        return METHODS
    return {name: label.replace(", private", "") for name, label in METHODS.items()}
