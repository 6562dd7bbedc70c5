"""Instruction tuning of a causal language model: the loss is on the answer's tokens alone."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import cast

from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.texts import ragged, token_rows
from hushtune.common.tasks.objectives_tokens import IGNORED, NextToken
from hushtune.common.tasks.targets import TokenTargets

Message = Mapping[str, str]
_PLAIN = "{role}: {content}\n"
_EVALUATION_BATCH = 8


@dataclass(frozen=True)
class Example:
    """One example as tokens; ``targets[i]`` is the token after ``ids[i]``, or IGNORED."""

    ids: list[int]
    targets: list[int]


def prepare(config: RunConfig, data: LabelledRows, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Prompt and answer as tokens, and the next token at each place of the answer."""
    size = config.model.max_tokens
    examples = [
        encode(tokenizer, json.loads(text), answer, max_tokens=size)
        for text, answer in zip(data.texts, data.answers, strict=True)
    ]
    return Prepared(
        token_rows(tokenizer, [example.ids for example in examples], max_tokens=size),
        TokenTargets(ragged([e.targets for e in examples], pad_id=IGNORED, max_tokens=size)),
        NextToken(len(tokenizer)),
        _EVALUATION_BATCH,
    )


def encode(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[Message],
    answer: str,
    *,
    max_tokens: int,
) -> Example:
    """An example of at most ``max_tokens``.

    Of what is too long the prompt loses its beginning first, down to a quarter of the room, and
    then the answer its end. Without messages the answer is a text whose every token is learnt.
    """
    after = _ids(tokenizer, answer)
    end = tokenizer.eos_token_id
    if isinstance(end, int):
        after = [*after, end]
    before = prompt(tokenizer, messages)
    if not before:
        start = tokenizer.bos_token_id
        before = [start] if isinstance(start, int) else after[:1]
        after = after if isinstance(start, int) else after[1:]
    least = max(1, max_tokens // 4)
    before = before[-max(least, max_tokens - len(after)) :]
    after = after[: max_tokens - len(before)]
    ids = before + after
    following = [IGNORED] * (len(before) - 1) + after + [IGNORED]
    return Example(ids, following)


def prompt(tokenizer: PreTrainedTokenizerBase, messages: Sequence[Message]) -> list[int]:
    """The tokens after which an answer begins, by the tokenizer's chat template if it has one."""
    if not messages:
        return []
    if tokenizer.chat_template is None:
        text = "".join(_PLAIN.format(**message) for message in messages) + "assistant: "
        return _ids(tokenizer, text)
    text = cast(
        str,
        tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True
        ),
    )
    return _ids(tokenizer, text)


def _ids(tokenizer: PreTrainedTokenizerBase, text: str) -> list[int]:
    return cast("list[int]", tokenizer(text, add_special_tokens=False)["input_ids"])
