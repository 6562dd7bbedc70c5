"""What a trained model answers, where that is no class: labels, numbers, tags and texts."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from hushtune.common.errors import BadValueError, MissingColumnError
from hushtune.common.kinds import Inputs, Kind, Targets
from hushtune.common.tasks.kinds.token_classification import tokens_of_words
from hushtune.common.tasks.objectives import Regression
from hushtune.common.tasks.rows import json_of, nearest_column
from hushtune.common.tasks.writing import write

if TYPE_CHECKING:
    from hushtune.simulations.saved import Predictor


def canonical_inputs(
    kind: Kind, asked: Sequence[str], *, columns: tuple[str, ...] = ()
) -> list[str]:
    """What a user asks, as the model's inputs: of a pair a JSON list of two texts; of a table's row
    a JSON object, or its cells as ``age: 41; home: rent``; of words a JSON list, or a text.

    ``columns``: those that a model of tables was trained on, in their order; none where that is
    not known. A row may lack some of them.

    Raises BadValueError, which names the input by its number, and MissingColumnError for a column
    that the model does not know.
    """
    found = [_canonical(kind.inputs, kind.targets, text, n) for n, text in enumerate(asked, 1)]
    if kind.inputs is not Inputs.COLUMNS or not columns:
        return found
    return [_of_columns(text, columns, n) for n, text in enumerate(found, 1)]


def _of_columns(row: str, columns: tuple[str, ...], number: int) -> str:
    """The cells in the order in which the model has read them."""
    cells = json.loads(row)
    for name in cells:
        if name not in columns:
            near = nearest_column(name, columns)
            raise MissingColumnError(
                f"input {number} has a column {name!r}, which the model was not trained on"
                + ("" if near is None else f"; did you mean {near!r}?"),
                column=name,
                given=", ".join(cells),
                expected=", ".join(columns),
                remedy="name the columns as the rows named them that the model was trained on",
            )
    return json_of({name: cells[name] for name in columns if name in cells})


def _canonical(inputs: Inputs, targets: Targets, text: str, number: int) -> str:
    try:
        found = json.loads(text)
    except ValueError:
        found = None
    if inputs is Inputs.PAIR:
        if not (isinstance(found, list) and len(found) == 2 and _texts(found)):
            raise _refused("is no pair of texts", text, number, '["first text", "second text"]')
    elif inputs is Inputs.COLUMNS:
        if found is None:
            cells = [cell.partition(":") for cell in text.split(";") if cell.strip()]
            if all(colon and name.strip() for name, colon, _ in cells):
                found = {name.strip(): value.strip() or None for name, _, value in cells}
        if not (isinstance(found, dict) and found):
            wanted = '"age: 41; home: rent", or the same as a JSON object'
            raise _refused("is no row of a table", text, number, wanted)
        return json_of(found)
    elif targets is Targets.TAGS and isinstance(found, list | dict):
        if not (isinstance(found, list) and found and _texts(found)):
            raise _refused("is no text of words", text, number, 'a text, or ["its", "words"]')
        return " ".join(found)
    return text


def _texts(found: Sequence[Any]) -> bool:
    return all(isinstance(one, str) and one.strip() for one in found)


def _refused(what: str, given: str, number: int, expected: str) -> BadValueError:
    return BadValueError(
        f"input {number} {what}",
        given=given[:100],
        expected=expected,
        remedy="ask in the form that is expected",
    )


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
