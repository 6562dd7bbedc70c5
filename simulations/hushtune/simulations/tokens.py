"""Rows as they are read and as tokens, and which of these are learnt: ``hushtune data preview``."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError
from hushtune.common.kinds import KINDS, Inputs, Targets
from hushtune.common.presets import model_for
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.kinds.causal_lm import encode
from hushtune.common.tasks.kinds.texts import tokenize
from hushtune.common.tasks.kinds.token_classification import tokens_of_words
from hushtune.common.tasks.preview import PreviewRow, preview
from hushtune.common.tasks.rows import Columns
from hushtune.common.tasks.tokenizer import load_tokenizer

UNCUT = 10**9
"""More tokens than a text has: nothing is cut."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """The tokens of a row, and of each whether it carries loss, if any do by themselves."""

    ids: list[int]
    learnt: list[int] | None = None


def preview_file(
    file: Path,
    columns: Columns,
    *,
    bounds: tuple[float, float] | None = None,
    model: str | None,
    rows: int,
    max_tokens: int | None = None,
) -> dict[str, Any]:
    """The first rows of a file and their tokens under a model's tokenizer, of images their size.

    ``model``: left out = the one of the kind's preset. ``bounds``: the range that numbers are
    scaled by. ``max_tokens``: where rows are cut. Of a folder of images any ``columns.site`` says
    that it holds one for each site.
    """
    name = None if columns.images else model or model_for(columns.kind)
    try:
        tokenizer, two_parts = (None, False) if name is None else tokenizer_of(name)
        found = preview(file, rows=rows, columns=columns, bounds=bounds)
    except HushtuneError as error:
        _speak_of_options(error)
        raise
    shown = [_shown(r, columns.kind, tokenizer, two_parts, bounds, max_tokens) for r in found]
    return {"file": str(file), "kind": columns.kind, "model": name, "rows": shown}


def preview_run(config: RunConfig, *, model: str | None, rows: int) -> dict[str, Any]:
    """The same of each file that a configuration names, as the run would read and cut them."""
    name = model or model_for(config.task.kind, config.model.name)
    if config.task.of.inputs is Inputs.IMAGE:
        name = None
    tokenizer, two_parts = (None, False) if name is None else tokenizer_of(name)
    kind, bounds, most = config.task.kind, config.task.range, config.model.max_tokens
    found = preview(config.data, rows=rows, task=config.task)
    shown = [_shown(row, kind, tokenizer, two_parts, bounds, most) for row in found]
    return {"file": None, "kind": kind, "model": name, "rows": shown}


def tokenizer_of(model: str) -> tuple[PreTrainedTokenizerBase, bool]:
    """A model's tokenizer, and whether the model has an encoder and a decoder."""
    folder = resolve_model(model)
    try:
        config = json.loads((Path(folder) / "config.json").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        config = {}
    two_parts = isinstance(config, dict) and config.get("is_encoder_decoder") is True
    return load_tokenizer(str(folder)), two_parts


def tokens_of(
    tokenizer: PreTrainedTokenizerBase,
    kind: str,
    text: str,
    answer: str | None,
    *,
    max_tokens: int,
    two_parts: bool = False,
) -> Tokens:
    """The tokens of a canonical input (and answer), cut as a run cuts them.

    Of answers, the tokens that the model is to write carry loss; of words with tags, the first of
    each word; elsewhere it is the row as a whole.
    """
    of = KINDS[kind]
    if of.targets is Targets.ANSWER:
        if of.inputs is Inputs.MESSAGES or not two_parts:
            messages = json.loads(text) if of.inputs is Inputs.MESSAGES else _asked(text)
            return _answered(tokenizer, messages, answer or "", max_tokens=max_tokens)
        source = _plain(tokenizer, text, max_tokens, of.inputs)
        target: list[int] = tokenizer(text_target=answer or "")["input_ids"]  # pyright: ignore[reportAssignmentType]
        target = target[:max_tokens]
        return Tokens([*source, *target], [0] * len(source) + [1] * len(target))
    if of.targets is Targets.TAGS:
        inputs, words = tokens_of_words(tokenizer, [text], max_tokens=max_tokens)
        marks = [int(word is not None) for word in words[0]]
        return Tokens(inputs.ids.tolist()[: len(marks)], marks)
    return Tokens(_plain(tokenizer, text, max_tokens, of.inputs))


def _asked(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _answered(
    tokenizer: PreTrainedTokenizerBase,
    messages: Sequence[dict[str, str]],
    answer: str,
    *,
    max_tokens: int,
) -> Tokens:
    example = encode(tokenizer, messages, answer, max_tokens=max_tokens)
    after = example.answer
    # The last token of an answer is learnt, and nothing is told from it: it is no input.
    before = example.ids[: len(example.ids) - max(0, len(after) - 1)]
    return Tokens([*before, *after], [0] * len(before) + [1] * len(after))


def _plain(
    tokenizer: PreTrainedTokenizerBase, text: str, max_tokens: int, inputs: Inputs
) -> list[int]:
    found = tokenize(tokenizer, [text], max_tokens=max_tokens, inputs=inputs)
    return [int(token) for token in found.ids.tolist()]


def _shown(
    row: PreviewRow,
    kind: str,
    tokenizer: PreTrainedTokenizerBase | None,
    two_parts: bool,
    bounds: tuple[float, float] | None,
    max_tokens: int | None,
) -> dict[str, Any]:
    """A row as JSON, with tokens; ``learnt``: 1 for each token that carries loss; ``scaled``: a
    number between -1 and 1 as it is learnt."""
    told: dict[str, Any] = asdict(row) | {"tokens": None, "learnt": None, "scaled": None}
    if row.text is not None and tokenizer is not None:
        whole = KINDS[kind].targets in (Targets.ANSWER, Targets.TAGS)
        found = tokens_of(
            tokenizer,
            kind,
            row.text,
            row.label,
            max_tokens=max_tokens or UNCUT,
            two_parts=two_parts,
        )
        told["tokens"] = tokenizer.convert_ids_to_tokens(found.ids)
        told["learnt"] = found.learnt if whole and row.label is not None else None
    if bounds is not None and row.label is not None:
        told["scaled"] = _scaled(row.label, *bounds)
    return told


def _scaled(label: str, low: float, high: float) -> float | None:
    try:
        return 2 * (float(label) - low) / (high - low) - 1
    except ValueError:
        return None


def _speak_of_options(error: HushtuneError) -> None:
    """Where others speak of a run's settings, a preview has options of its own."""
    if error.remedy is not None:
        named = re.sub(r"\bdata\.(text|label|site|form|second|columns)\b", r"--\1", error.remedy)
        error.remedy = named.replace("task.kind", "--kind").replace("model.name", "--model")
