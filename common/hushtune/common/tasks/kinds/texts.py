"""Canonical inputs as tokens: a text, a pair of texts, or the columns of a table as a text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.errors import ModelError
from hushtune.common.kinds import Inputs
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.augment import TextViews, keys_of, word_numbers


def tokenize(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    *,
    max_tokens: int,
    inputs: Inputs = Inputs.TEXT,
) -> TokenRows:
    """Token ids of every canonical input, cut to ``max_tokens``.

    Of a pair the longer text is cut first. An empty result is padded to one token.
    """
    encoded = _encoded(tokenizer, texts, max_tokens=max_tokens, inputs=inputs)["input_ids"]
    return token_rows(tokenizer, encoded, max_tokens=max_tokens)


def text_views(
    config: RunConfig, tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], tokens: TokenRows
) -> TextViews | None:
    """The texts as training changes them; None where it does not.

    Raises ModelError for a tokenizer that does not tell which word a token belongs to.
    """
    if not config.augment.is_on:
        return None
    if not tokenizer.is_fast:
        raise ModelError(
            "the model's tokenizer does not tell which word a token belongs to",
            given=type(tokenizer).__name__,
            expected="a tokenizer with a tokenizer.json, or no [augment]",
        )
    size, inputs = config.model.max_tokens, config.task.of.inputs
    encoded = _encoded(tokenizer, texts, max_tokens=size, inputs=inputs)
    numbers = [
        word_numbers(encoded.word_ids(row), encoded.sequence_ids(row)) for row in range(len(texts))
    ]
    words = ragged([row or [-1] for row in numbers], pad_id=-1, max_tokens=size)
    return TextViews(tokens, words, keys_of(texts), config.augment)


def _encoded(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_tokens: int, inputs: Inputs
) -> Any:
    firsts, seconds = list(texts), None
    if inputs is Inputs.PAIR:
        pairs = [json.loads(text) for text in texts]
        firsts, seconds = [first for first, _ in pairs], [second for _, second in pairs]
    elif inputs is Inputs.COLUMNS:
        firsts = [columns_text(text) for text in texts]
    return tokenizer(firsts, seconds, truncation=True, max_length=max_tokens)


def token_rows(
    tokenizer: PreTrainedTokenizerBase, rows: Sequence[Sequence[int]], *, max_tokens: int
) -> TokenRows:
    """Rows of token ids one after the other; an empty one is padded to one token."""
    pad_id = padding_id(tokenizer)
    return ragged([ids or [pad_id] for ids in rows], pad_id=pad_id, max_tokens=max_tokens)


def padding_id(tokenizer: PreTrainedTokenizerBase) -> int:
    """The token that rows are padded with."""
    found = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    return next((i for i in found if isinstance(i, int)), 0)


def separator_id(tokenizer: PreTrainedTokenizerBase) -> int | None:
    """The token that stands between two texts, of tokenizers that put one there."""
    found = [tokenizer.sep_token_id, tokenizer.eos_token_id]
    return next((i for i in found if isinstance(i, int)), None)


def pair_notes(
    tokenizer: PreTrainedTokenizerBase, inputs: Inputs, tokens: TokenRows
) -> tuple[str, ...]:
    """What is odd of pairs that the tokenizer puts nothing between."""
    separator = separator_id(tokenizer)
    parted = separator is not None and bool((tokens.ids == separator).any())
    if inputs is not Inputs.PAIR or parted:
        return ()
    return (
        "the model's tokenizer puts no token between the two texts of a pair, so that they are "
        "read as one text: take a model that was trained on pairs, such as BERT or RoBERTa",
    )


def ragged(rows: Sequence[Sequence[int]], *, pad_id: int, max_tokens: int) -> TokenRows:
    """Rows of whole numbers, none of them empty, one after the other."""
    arrays = [np.asarray(row, dtype=np.int32) for row in rows]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in arrays])]).astype(np.int64)
    return TokenRows(torch.from_numpy(np.concatenate(arrays)), offsets, pad_id, max_tokens)


def columns_text(canonical: str) -> str:
    """A row of a table as a sentence that a language model reads; what is missing is left out.

    >>> columns_text('{"age": "41", "job": null, "home": "rent"}')
    'age: 41; home: rent'
    """
    cells = json.loads(canonical)
    return "; ".join(f"{name}: {cell}" for name, cell in cells.items() if cell is not None)
