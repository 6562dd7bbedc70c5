"""Rows as they are read and as tokens, for ``hushtune data preview``."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.preview import preview
from hushtune.common.tasks.workspace import load_tokenizer


def preview_file(
    file: Path, *, text: str, label: str, site: str | None, model: str, rows: int
) -> dict[str, Any]:
    """The first rows of a file and their tokens under a model's tokenizer."""
    tokenizer = load_tokenizer(str(resolve_model(model)))

    def tokens(sentence: str) -> list[str]:
        return list(tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"]))  # pyright: ignore[reportArgumentType]

    found = preview(file, tokenize=tokens, rows=rows, text=text, label=label, site=site)
    return {"file": str(file), "rows": [asdict(row) for row in found]}
