"""Tiny random language models with a tokenizer of whole words, and tasks over them."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers as tf
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from tokenizers import processors as processing

from hushtune.common import lora
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.model import AdaptedModel, Head
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.answer_rows import AnswerRows, SourceRows
from hushtune.common.tasks.kinds.texts import ragged
from hushtune.common.tasks.objectives_tokens import IGNORED, NextToken
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.targets import TokenTargets

from .families import tiny_config

CAUSAL = ("llama", "gpt2", "qwen2")
APART = ("t5", "bart")
NUM_WORDS, NUM_ROWS = 50, 9

TEMPLATE = (
    "{% for message in messages %}{{ '<|start|>' + message['role'] + '\n' + message['content'] "
    "+ '<|end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|start|>assistant\n' }}{% endif %}"
)
SPECIAL = ("<pad>", "<unk>", "<|start|>", "<|end|>")
THINGS = ("moon", "sun", "sea", "tree", "stone", "river", "bird", "cloud", "house", "road")
COLOURS = ("white", "yellow", "blue", "green", "grey", "brown", "black", "pale", "red", "dark")
OTHERS = ("which", "colour", "has", "the", "it", "is", "my", "old", "tell", "me", "of", "a")
ROLES = ("user", "assistant", "system", ":", "\n", "?")


def make_tokenizer(*, template: bool = True, begins: bool = False, ends: bool = False) -> Any:
    """A tokenizer of whole words; ``begins``, ``ends``: every text does with a token for it."""
    letters = [chr(code) for code in range(ord("a"), ord("z") + 1)]
    words = [*SPECIAL, *ROLES, *THINGS, *COLOURS, *OTHERS, *letters]
    vocabulary = {word: index for index, word in enumerate(dict.fromkeys(words))}
    made = Tokenizer(models.WordLevel(vocabulary, unk_token="<unk>"))
    made.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(" ", "removed"), pre_tokenizers.Split("\n", "isolated")]
    )
    made.decoder = decoders.WordPiece(prefix="##")
    if begins:
        made.post_processor = processing.TemplateProcessing(
            single="<|start|> $A <|end|>" if ends else "<|start|> $A",
            special_tokens=[("<|start|>", 2), ("<|end|>", 3)],
        )
    tokenizer = tf.PreTrainedTokenizerFast(
        tokenizer_object=made,
        pad_token="<pad>",
        unk_token="<unk>",
        bos_token="<|start|>",
        eos_token="<|end|>",
    )
    tokenizer.chat_template = TEMPLATE if template else None
    return tokenizer


def words_config(family: str, *, vocabulary: int = NUM_WORDS) -> Any:
    """A configuration of 3 blocks and width 32, its weights large so that words differ."""
    if family in CAUSAL:
        made = tiny_config(family)
        made.vocab_size, made.bos_token_id, made.eos_token_id = vocabulary, 2, 3
        made.tie_word_embeddings = family != "qwen2"
        made.initializer_range = 0.2
        return made
    if family == "t5":
        made = tf.T5Config(
            vocab_size=vocabulary,
            d_model=32,
            d_kv=8,
            d_ff=48,
            num_layers=3,
            num_decoder_layers=2,
            num_heads=4,
            pad_token_id=0,
            eos_token_id=3,
        )
        made.decoder_start_token_id = 0  # pyright: ignore[reportAttributeAccessIssue]
        return made
    return tf.BartConfig(
        vocab_size=vocabulary,
        d_model=32,
        encoder_layers=3,
        decoder_layers=2,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=48,
        decoder_ffn_dim=48,
        max_position_embeddings=64,
        pad_token_id=0,
        bos_token_id=2,
        eos_token_id=3,
        decoder_start_token_id=3,
        forced_eos_token_id=None,
        init_std=0.2,
    )


def words_base(family: str, *, vocabulary: int = NUM_WORDS) -> Any:
    """A language model with the same random weights at every call."""
    auto = tf.AutoModelForSeq2SeqLM if family in APART else tf.AutoModelForCausalLM
    with torch.random.fork_rng():
        torch.manual_seed(7)
        config = words_config(family, vocabulary=vocabulary)
        return auto.from_config(config, attn_implementation="eager").eval()


def make_words(folder: Path, family: str, **tokenizer: Any) -> Path:
    """A folder that ``from_pretrained`` loads: model and tokenizer."""
    made = make_tokenizer(**tokenizer)
    words_base(family, vocabulary=len(made)).save_pretrained(str(folder))
    made.save_pretrained(str(folder))
    return folder


def words_model(family: str, *, layers: int = 2, **adapter: Any) -> AdaptedModel:
    """A new adapted language model: LoRA of rank 2 in the top blocks."""
    return lora.attach(
        words_base(family),
        model=ModelConfig(precision="float32"),
        adapter=AdapterConfig.model_validate(
            {"rank": 2, "alpha": 4.0, "layers": layers, **adapter}
        ),
        num_outputs=NUM_WORDS,
        seed=0,
        head=Head.WORDS,
    )


def words_rows(family: str, count: int = NUM_ROWS, *, times: int = 1) -> tuple[Any, TokenRows]:
    """Inputs of 3 to 12 random tokens before answers of 1 to 11, and the answers; of ``times`` as
    many tokens."""
    drawn, most = np.random.default_rng(5), 24 * times

    def texts(least: int, end: int) -> list[list[int]]:
        sizes = times * drawn.integers(least, end, count)
        return [drawn.integers(4, NUM_WORDS, size).tolist() for size in sizes]

    prompts, answers = texts(3, 13), texts(1, 12)
    learnt = ragged(answers, pad_id=IGNORED, max_tokens=most)
    if family in APART:
        return SourceRows(ragged(prompts, pad_id=0, max_tokens=most), learnt), learnt
    whole = [[*prompt, *answer[:-1]] for prompt, answer in zip(prompts, answers, strict=True)]
    return AnswerRows(ragged(whole, pad_id=0, max_tokens=most), learnt), learnt


def words_task(
    family: str, *, count: int = NUM_ROWS, model: AdaptedModel | None = None, **others: Any
) -> Supervised:
    """The product's task over random prompts and answers."""
    inputs, learnt = words_rows(family, count)
    others = {"evaluation_batch": 4, **others}
    made = model or words_model(family)
    return Supervised(made, inputs, TokenTargets(learnt), NextToken(NUM_WORDS), **others)


def conversations(sizes: dict[str, int], *, seed: int = 0) -> list[Sequence[str]]:
    """Rows of site, prompt and answer: a thing has the same colour whoever asks, and however."""
    drawn = random.Random(seed)
    rows: list[Sequence[str]] = []
    for site, size in sizes.items():
        seen: set[str] = set()
        while len(seen) < size:
            place = drawn.randrange(len(THINGS))
            filler = " ".join(drawn.choices(OTHERS, k=drawn.randint(1, 4)))
            text = f"{filler} which colour has the {THINGS[place]} {site[0]}"
            if text in seen:
                continue
            seen.add(text)
            turns = [{"role": "user", "content": text}]
            rows.append((site, json.dumps(turns), f"it is {COLOURS[place]}"))
    return rows


def write_conversations(path: Path, sizes: dict[str, int], *, plain: bool = False) -> Path:
    """A CSV of them with the columns site, text, label; ``plain``: the text is what is asked."""
    rows = conversations(sizes)
    if plain:
        rows = [(site, json.loads(text)[0]["content"], label) for site, text, label in rows]
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(("site", "text", "label"))
        writer.writerows(rows)
    return path
