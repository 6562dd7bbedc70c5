"""Ready configurations: what differs from the defaults, by name."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

DEFAULT_MODEL = "demo"
"""What ``model.name`` is where nothing names it."""
_FEW_STEPS = {
    "rounds": 10,
    "warmup_rounds": 10,
    "local_steps": 1,
    "sampling_probability": 0.5,
}
_LANGUAGE_MODEL: Mapping[str, Any] = {
    "model": {"name": "smollm2", "max_tokens": 64},
    "adapter": {"rank": 2, "layers": 2},
    "privacy": {"trust": "distributed", "delta": 1e-3},
    "train": {
        "rounds": 8,
        "local_steps": 2,
        "sampling_probability": 0.2,
        "learning_rate": 0.06,
    },
    "aggregation": {"rule": "ffa"},
    "simulation": {"train_sample": 0, "evaluate_every": 4},
}

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
    # One piece of work of known size, to measure speed by (benchmarks/w.py): the adapter from the
    # first round on, 512 rows a site, batches of 32, the other 100 rows a site judged each round.
    "bench-w": {
        "data": {
            "source": "demo",
            "max_rows_per_site": 612,
            "validation_fraction": 0.0,
            "test_fraction": 100 / 612,
        },
        "adapter": {"rank": 8, "alpha": 16.0, "targets": ["query", "value"], "layers": 0},
        "privacy": {"epsilon": 8.0, "delta": 1e-3},
        "train": {
            "rounds": 5,
            "warmup_rounds": 0,
            "local_steps": 4,
            "batch_size": 32,
            "learning_rate": 1e-3,
        },
        "speed": {"gradients": "fused", "together": 4},
        "aggregation": {"rule": "fedit"},
        "simulation": {"baselines": False, "train_sample": 0, "forgetting": False},
    },
    # One of each kind of supervision, on real data by name (docs/tasks.md has what they reach). The
    # head alone is trained where the adapter was seen to add nothing; numbers want a lower rate.
    "text-classification": {
        "data": {"source": "reuters-r8", "partition": "dirichlet", "sites": 4, "alpha": 1.0},
        "train": {"rounds": 20, "warmup_rounds": 20},
    },
    "text-regression": {
        "data": {"source": "rated-scores", "max_rows_per_site": 2000},
        "train": {"rounds": 20, "warmup_rounds": 20, "warmup_learning_rate": 0.005},
    },
    "text-pair": {
        "data": {"source": "rated-pairs"},
        "train": {"rounds": 20, "warmup_rounds": 20, "warmup_learning_rate": 0.01},
    },
    "token-classification": {
        "data": {"source": "brown-tags", "max_rows_per_site": 100},
        "privacy": {"trust": "distributed"},
        "train": {**_FEW_STEPS, "warmup_learning_rate": 0.03},
    },
    # Clinics with a hundred rows and 1 positive in 18: noise of each one's own would leave nothing,
    # so that sums carry one for all. Few steps with many rows, as each is a secure sum.
    "tabular-classification": {
        "task": {"metric": "average_precision", "positive": "positive"},
        "data": {
            "source": "covid-tests",
            "group": "person",
            "max_rows_per_site": 600,
            "class_weights": {"negative": 0.06},
        },
        "privacy": {"trust": "distributed", "unit": "group"},
        "train": {**_FEW_STEPS},
    },
    "tabular-regression": {
        "data": {
            "source": "loan-rates",
            "partition": "iid",
            "sites": 6,
            "max_rows_per_site": 500,
        },
        "privacy": {"trust": "distributed"},
        # One step a round, each with a new optimiser: of a constant length they go to and fro.
        "train": {
            **_FEW_STEPS,
            "rounds": 20,
            "warmup_rounds": 20,
            "warmup_learning_rate": 0.004,
            "schedule": "cosine",
        },
    },
    # A rating tells of the same user's others, so it is users that are protected. Titles that were
    # liked before would blur, in the mean over all tokens, what kind of rater it is.
    "recommendation": {
        "data": {
            "source": "film-ratings",
            "columns": ["rater", "title", "genres"],
            "group": "user",
            "partition": "iid",
            "sites": 6,
            "max_rows_per_site": 1000,
        },
        "privacy": {"trust": "distributed", "unit": "group", "records_per_group": 16},
        "train": {
            **_FEW_STEPS,
            "rounds": 20,
            "warmup_rounds": 20,
            "warmup_learning_rate": 0.003,
            "schedule": "cosine",
        },
    },
    # Handwritten digits, most of the classes at some sites alone, by a transformer; the adapter
    # comes last.
    "image-classification": {
        "task": {"kind": "image-classification"},
        "data": {
            "source": "mnist-5k",
            "partition": "dirichlet",
            "sites": 4,
            "alpha": 1.0,
            "max_rows_per_site": 1250,
        },
        "model": {"name": "dinov2-small", "image_size": 84},
        "privacy": {"trust": "distributed", "delta": 1e-4},
        "train": {
            "rounds": 20,
            "warmup_rounds": 16,
            "local_steps": 4,
            "sampling_probability": 0.3,
            "warmup_learning_rate": 0.08,
            "learning_rate": 0.02,
        },
    },
    # Questions and answers of eight topics, each a site with some fifty rows, answered by a small
    # language model. Sums carry one noise for all, and few values are trained: A stays as drawn.
    "causal-lm": {"data": {"source": "chatterbot", "max_rows_per_site": 50}, **_LANGUAGE_MODEL},
    # What is said, and the reply to it, with the same model and the same sites.
    "seq2seq": {
        "data": {"source": "chatterbot-replies", "max_rows_per_site": 50},
        **_LANGUAGE_MODEL,
    },
}


def model_for(kind: str, named: str = DEFAULT_MODEL) -> str:
    """The base model of a kind of supervision: the one that is named, unless that is the default,
    an encoder, where the kind's preset has another, such as a language model.

    >>> model_for("causal-lm"), model_for("multi-label"), model_for("causal-lm", "own/model")
    ('smollm2', 'demo', 'own/model')
    """
    if named != DEFAULT_MODEL:
        return named
    return str(PRESETS.get(kind, {}).get("model", {}).get("name", named))
