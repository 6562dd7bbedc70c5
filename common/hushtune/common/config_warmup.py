"""The warm-up that belongs to a number of rounds, and the one that somebody asked for."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.config_train import TrainConfig

_KEY = "warmup_rounds"


def with_other_rounds(train: Mapping[str, Any], rounds: Any) -> dict[str, Any]:
    """A preset's warm-up belongs to its number of rounds: with another number it follows anew,
    unless it is none at all, or all there is."""
    warmup, before = train.get(_KEY), train.get("rounds")
    if rounds == before:
        return dict(train)
    found = {key: value for key, value in train.items() if key != _KEY}
    if warmup == 0:
        found[_KEY] = 0
    elif warmup is not None and warmup == before and type(rounds) is int:
        found[_KEY] = max(0, rounds)
    return found


def is_set(train: TrainConfig) -> bool:
    """Whether the warm-up is one that somebody asked for, and so stays with other rounds."""
    return _KEY in train.model_fields_set


def following(config: RunConfig) -> RunConfig:
    """The configuration, whose warm-up counts as nobody's wish: it follows the rounds."""
    config.train.model_fields_set.discard(_KEY)
    return config
