"""What a language model answers: the most likely token, and after it the next, to the end token."""

from __future__ import annotations

from typing import Any, cast

import torch
from transformers import PreTrainedTokenizerBase

from hushtune.common.kinds import Inputs, Kind
from hushtune.common.model import AdaptedModel
from hushtune.common.tasks.kinds import causal_lm, seq2seq
from hushtune.common.tasks.kinds.texts import tokenize

MOST_NEW_TOKENS = 64


@torch.no_grad()
def write(
    model: AdaptedModel,
    tokenizer: PreTrainedTokenizerBase,
    text: str,
    *,
    kind: Kind,
    max_tokens: int,
    most: int = MOST_NEW_TOKENS,
) -> str:
    """The answer of the installed adapter to a canonical input, of at most ``most`` tokens.

    The input is cut as in training. The model must be in ``frozen_mode``.
    """
    base = cast(Any, model.base)
    if model.reads_and_writes:
        ids, shown = tokenize(tokenizer, [text], max_tokens=max_tokens).ids.tolist(), 0
    else:
        ids = prompt_ids(tokenizer, text, kind, max_tokens)
        positions = getattr(base.config, "max_position_embeddings", None)
        if isinstance(positions, int):
            ids = causal_lm.cut(ids, max(1, positions - most), tokenizer.bos_token_id)
            most = min(most, positions - len(ids))
        shown = len(ids)
    device = next(model.parameters()).device
    given = torch.tensor([ids], device=device)
    found = base.generate(
        input_ids=given,
        attention_mask=torch.ones_like(given),
        max_new_tokens=most,
        eos_token_id=ends(model, tokenizer) or None,
        pad_token_id=tokenizer.pad_token_id,
        # Whatever the model's own settings for writing are: the same answer each time.
        do_sample=False,
        num_beams=1,
        temperature=None,
        top_p=None,
        top_k=None,
    )
    return str(tokenizer.decode(found[0, shown:], skip_special_tokens=True)).strip()


def prompt_ids(
    tokenizer: PreTrainedTokenizerBase, text: str, kind: Kind, max_tokens: int
) -> list[int]:
    """A prompt as a causal model is given it; of no messages what a text begins with."""
    of_messages = kind.inputs is Inputs.MESSAGES
    messages = causal_lm.messages_of(text) if of_messages else seq2seq.messages_of(text)
    begins = [tokenizer.bos_token_id, tokenizer.eos_token_id, 0]
    ids = causal_lm.prompt(tokenizer, messages) or [next(i for i in begins if isinstance(i, int))]
    return causal_lm.cut(ids, max_tokens, tokenizer.bos_token_id)


def ends(model: AdaptedModel, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """The tokens that end an answer: the model's own, and the one that is learnt."""
    own = getattr(cast(Any, model.base).generation_config, "eos_token_id", None)
    named = [own] if isinstance(own, int) else list(own or ())
    found = {int(end) for end in (*named, tokenizer.eos_token_id) if isinstance(end, int)}
    return sorted(found)
