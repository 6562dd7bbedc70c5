"""Instruction tuning of a causal language model: the loss is on the answer's tokens alone.

An example is a prompt, which the tokenizer's chat template writes out, and the answer that follows
it. Of ``prompt + answer`` each token of the answer is told from all before it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.errors import BadValueError, UnsupportedModelError
from hushtune.common.tasks.answer_rows import AnswerRows
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.base_model import reads_and_writes
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.texts import ragged, token_rows
from hushtune.common.tasks.objectives_tokens import IGNORED, NextToken
from hushtune.common.tasks.targets import TokenTargets

Message = Mapping[str, str]
EVALUATION_BATCH = 4
_PLAIN = "{role}: {content}\n"


@dataclass(frozen=True)
class Example:
    """One example as tokens: ``answer[-k:]`` follows on the last ``k`` places of ``ids``."""

    ids: list[int]
    answer: list[int]


def prepare(config: RunConfig, data: LabelledRows, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Prompt and answer as tokens; UnsupportedModelError for a model of two parts."""
    if reads_and_writes(str(resolve_model(config.model.name))):
        raise UnsupportedModelError(
            "a model with an encoder and a decoder does not go on with a text",
            given=config.model.name,
            expected="a causal language model, such as Llama, Qwen or GPT-2",
            remedy='set task.kind = "seq2seq", or name another model',
        )
    return prepared([messages_of(text) for text in data.texts], data.answers, config, tokenizer)


def prepared(
    prompts: Sequence[Sequence[Message]],
    answers: Sequence[str],
    config: RunConfig,
    tokenizer: PreTrainedTokenizerBase,
) -> Prepared:
    """Prompts with their answers as tokens of one row each."""
    size = config.model.max_tokens
    examples = [
        encode(tokenizer, messages, answer, max_tokens=size)
        for messages, answer in zip(prompts, answers, strict=True)
    ]
    learnt = ragged([e.answer or [IGNORED] for e in examples], pad_id=IGNORED, max_tokens=size)
    tokens = token_rows(tokenizer, [example.ids for example in examples], max_tokens=size)
    return Prepared(
        AnswerRows(tokens, learnt),
        TokenTargets(learnt),
        NextToken(len(tokenizer)),
        EVALUATION_BATCH,
    )


def messages_of(text: str) -> list[Message]:
    """The messages of a canonical input; a text that is none is what a user says.

    >>> messages_of("How far is the moon?")
    [{'role': 'user', 'content': 'How far is the moon?'}]
    >>> messages_of("[]")
    []
    """
    try:
        found: Any = json.loads(text)
    except ValueError:
        found = None
    whole = isinstance(found, list) and all(
        isinstance(turn, dict) and set(cast("dict[str, Any]", turn)) == {"role", "content"}
        for turn in cast("list[object]", found)
    )
    return cast("list[Message]", found) if whole else [{"role": "user", "content": text}]


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    answer: str,
    *,
    max_tokens: int,
) -> Example:
    """An example of at most ``max_tokens``, the answer's end token included, which is learnt.

    Of what is too long the prompt loses its beginning first, down to a quarter of the room, and
    then the answer its end. Without messages the answer is a text whose every token is learnt, the
    first one too where the tokenizer has a token that begins a text.
    """
    after = _ids(tokenizer, answer)
    start, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if isinstance(end, int):
        after = [*after, end]
    before = prompt(tokenizer, messages)
    if not before:
        given = 0 if isinstance(start, int) else 1
        before, after = ([start] if isinstance(start, int) else after[:1]), after[given:]
    before = cut(before, max(1, max_tokens // 4, max_tokens - len(after)), start)
    after = after[: max_tokens - len(before)]
    return Example([*before, *after[:-1]], after)


def cut(prompt: Sequence[int], room: int, start: object) -> list[int]:
    """The last tokens of a prompt, after the one that begins a text where it has it.

    >>> cut([1, 5, 6, 7], 3, 1), cut([5, 6, 7], 2, 1), cut([5], 2, None)
    ([1, 6, 7], [6, 7], [5])
    """
    if len(prompt) <= room:
        return list(prompt)
    keeps = prompt[0] == start and room > 1
    return [prompt[0], *prompt[1 - room :]] if keeps else list(prompt[-room:])


def prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The tokens after which an answer begins, by the tokenizer's chat template if it has one.

    Without one each message is a line ``role: content``, after what the tokenizer begins a text
    with. Raises BadValueError for messages that the template refuses.
    """
    if not messages:
        return []
    begins, text = prompt_text(tokenizer, messages)
    return [*begins, *_ids(tokenizer, text)]


def prompt_text(
    tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]
) -> tuple[list[int], str]:
    """A prompt as a text, which is read without special tokens, and the tokens before it: none, or
    the one that begins a text. See ``prompt``."""
    if tokenizer.chat_template is None:
        text = "".join(_PLAIN.format(**message) for message in messages) + "assistant: "
        whole = cast("list[int]", tokenizer(text)["input_ids"])
        begins = whole[:1] == [tokenizer.bos_token_id] != _ids(tokenizer, text)[:1]
        return whole[:1] if begins else [], text
    turns = [dict(message) for message in messages]
    try:
        text = tokenizer.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    except TemplateError as error:
        raise BadValueError(
            f"the model's chat template refuses a conversation: {error}",
            given=f"roles {', '.join(message['role'] for message in messages)}",
            expected="a user's and the assistant's messages in turn, the user's first and last",
            remedy="mend the order of its turns, or take a model whose template takes them",
        ) from error
    return [], cast(str, text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])
