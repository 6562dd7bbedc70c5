"""What a trained model answers, where that is no class: labels, numbers, tags and texts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hushtune.common.kinds import Targets
from hushtune.common.tasks.kinds.token_classification import tokens_of_words
from hushtune.common.tasks.objectives import Regression
from hushtune.common.tasks.writing import write

if TYPE_CHECKING:
    from hushtune.simulations.saved import Predictor


def answers_of(trained: Predictor, texts: Sequence[str]) -> list[Any]:
    """For each canonical input: a list of labels, a number, a list of (word, tag), or a text."""
    match trained.task.of.targets:
        case Targets.NUMBER:
            numbers = Regression(*trained.task.bounds).answers(trained.logits(texts))
            return [round(value, 6) for value in numbers.tolist()]
        case Targets.CLASSES:
            told = trained.logits(texts) > 0
            return [[n for n, has in zip(trained.labels, row, strict=True) if has] for row in told]
        case Targets.TAGS:
            return [_tags(trained, text) for text in texts]
        case _:
            return [_written(trained, text) for text in texts]


def _written(trained: Predictor, text: str) -> str:
    size = trained.settings.max_tokens
    return write(trained.model, trained.tokenizer, text, kind=trained.task.of, max_tokens=size)


@torch.no_grad()
def _tags(trained: Predictor, text: str) -> list[tuple[str, str]]:
    words = text.split()
    size = trained.settings.max_tokens
    rows, places = tokens_of_words(trained.tokenizer, [" ".join(words)], max_tokens=size)
    tags = trained.model(rows.inputs(torch.zeros(1, dtype=torch.long).numpy()))[0].argmax(-1)
    return [
        (words[word], trained.labels[int(tags[place])])
        for place, word in enumerate(places[0])
        if word is not None
    ]
