"""A tag for each word of a text. A word's tag is told from its first token; what of a text is cut
off has no tags."""

from __future__ import annotations

from collections.abc import Sequence

from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig, TaskConfig
from hushtune.common.errors import ConfigError, ModelError
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds.classification import weights_of
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.texts import ragged, token_rows
from hushtune.common.tasks.objectives import class_weights
from hushtune.common.tasks.objectives_tokens import IGNORED, TokenTags
from hushtune.common.tasks.spans import mark_spans
from hushtune.common.tasks.targets import TokenTargets


def prepare(config: RunConfig, data: LabelledRows, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Tokens, and the tag of each word at its first one."""
    names = data.label_names
    place = {name: index for index, name in enumerate(names)}
    inputs, words = tokens_of_words(tokenizer, data.texts, max_tokens=config.model.max_tokens)
    targets: list[list[int]] = []
    for answer, of_row in zip(data.answers, words, strict=True):
        tags = answer.split(" ")
        row = [IGNORED if word is None else place[tags[word]] for word in of_row]
        targets.append(row or [IGNORED])
    weights = class_weights(weights_of(names, config.data.class_weights), len(names))
    return Prepared(
        inputs,
        TokenTargets(ragged(targets, pad_id=IGNORED, max_tokens=config.model.max_tokens)),
        TokenTags(weights, _spanning(names, config.task)),
    )


def _spanning(names: tuple[str, ...], task: TaskConfig) -> tuple[str, ...]:
    """The tags where they mark spans; ConfigError where they do not and the run is about spans."""
    if mark_spans(names):
        return names
    if task.main_metric == "span_f1":
        raise ConfigError(
            "the tags mark no spans",
            given=", ".join(names[:8]),
            expected="O and tags such as B-PER and I-PER",
            remedy="leave task.metric out for token_accuracy",
        )
    return ()


def tokens_of_words(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_tokens: int
) -> tuple[TokenRows, list[list[int | None]]]:
    """Tokens of texts whose words are parted by spaces, and of each token which word it begins.

    Raises ModelError for a tokenizer that does not tell which word a token belongs to.
    """
    if not tokenizer.is_fast:
        raise ModelError(
            "the model's tokenizer does not tell which word a token belongs to",
            given=type(tokenizer).__name__,
            expected="a tokenizer with a tokenizer.json",
        )
    encoded = tokenizer(
        [text.split(" ") for text in texts],
        is_split_into_words=True,
        truncation=True,
        max_length=max_tokens,
    )
    ids: list[list[int]] = encoded["input_ids"]  # pyright: ignore[reportAssignmentType]
    words: list[list[int | None]] = []
    for row in range(len(texts)):
        found: list[int | None] = []
        last: int | None = None
        for word in encoded.word_ids(row):
            found.append(word if word != last else None)
            last = word
        words.append(found)
    return token_rows(tokenizer, ids, max_tokens=max_tokens), words
