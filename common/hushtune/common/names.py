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
