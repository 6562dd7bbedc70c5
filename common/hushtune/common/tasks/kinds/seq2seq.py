"""From a source text to a target text, by a model of two parts or by a causal language model.

A model with an encoder and a decoder reads the source with the one and writes with the other. A
causal one is given the source as what a user says, and the target as the answer.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.tasks.answer_rows import SourceRows
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.base_model import reads_and_writes
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds import causal_lm
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.texts import ragged, tokenize
from hushtune.common.tasks.objectives_tokens import IGNORED, NextToken
from hushtune.common.tasks.targets import TokenTargets


def prepare(config: RunConfig, data: LabelledRows, tokenizer: PreTrainedTokenizerBase) -> Prepared:
    """Sources and targets as tokens, as the model's own configuration tells which it is."""
    if not reads_and_writes(str(resolve_model(config.model.name))):
        prompts = [messages_of(text) for text in data.texts]
        return causal_lm.prepared(prompts, data.answers, config, tokenizer)
    size = config.model.max_tokens
    learnt = ragged(
        answer_ids(tokenizer, data.answers, max_tokens=size), pad_id=IGNORED, max_tokens=size
    )
    return Prepared(
        SourceRows(tokenize(tokenizer, data.texts, max_tokens=size), learnt),
        TokenTargets(learnt),
        NextToken(len(tokenizer)),
        causal_lm.EVALUATION_BATCH,
    )


def messages_of(source: str) -> list[causal_lm.Message]:
    """A source as a causal model is given it."""
    return [{"role": "user", "content": source}]


def answer_ids(
    tokenizer: PreTrainedTokenizerBase, answers: Sequence[str], *, max_tokens: int
) -> list[list[int]]:
    """The tokens that a decoder learns to write, its end token included; each at most so many."""
    found = cast("list[list[int]]", tokenizer(text_target=list(answers))["input_ids"])
    end = tokenizer.eos_token_id
    ends = [end] if isinstance(end, int) else []
    whole = [ids if ids[-1:] == ends else [*ids, *ends] for ids in found]
    return [ids[:max_tokens] or [IGNORED] for ids in whole]
