"""Ready configurations: what differs from the defaults, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

PRESETS: Mapping[str, Mapping[str, Any]] = {
    # Four real sites (movie reviews, news, tweets, product reviews), sentence polarity. How it
    # trains is all default: the recipe that benchmarks/recipe.py measures.
    "demo": {"data": {"source": "demo", "validation_fraction": 0.05, "test_fraction": 0.2}},
    # The same rows dealt to 240 clients, each of them protected as a whole, with noise at a server
    # that they trust. The head alone: noise on few values leaves more of the clients' mean.
    "clients": {
        "data": {
            "source": "demo",
            "validation_fraction": 0.05,
            "test_fraction": 0.2,
            "partition": "iid",
            "sites": 240,
        },
        "privacy": {"trust": "server", "unit": "client", "delta": 1e-4},
        "train": {"rounds": 5, "warmup_rounds": 5, "sampling_probability": 0.5},
    },
    # The same in seconds, for a first look and for tests.
    "tiny": {
        "data": {"source": "demo", "max_rows_per_site": 240},
        "adapter": {"rank": 2},
        "privacy": {"delta": 1e-3},
        "train": {"rounds": 3, "warmup_rounds": 2, "local_steps": 2, "sampling_probability": 0.3},
    },
}
