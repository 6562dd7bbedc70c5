"""Rows as they are read and as tokens, for ``hushtune data preview``."""

from __future__ import annotations

import re
from dataclasses import asdict
from pathlib import Path
from typing import Any

from hushtune.common.errors import DataError, HushtuneError
from hushtune.common.kinds import KINDS
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.preview import preview
from hushtune.common.tasks.tokenizer import load_tokenizer


def preview_file(
    file: Path, *, text: str, label: str, site: str | None, model: str, rows: int
) -> dict[str, Any]:
    """The first rows of a file and their tokens under a model's tokenizer."""
    try:
        tokenizer = load_tokenizer(str(resolve_model(model)))
    except HushtuneError as error:
        _speak_of_options(error)
        raise

    def tokens(sentence: str) -> list[str]:
        return list(tokenizer.convert_ids_to_tokens(tokenizer(sentence)["input_ids"]))  # pyright: ignore[reportArgumentType]

    try:
        found = preview(file, tokenize=tokens, rows=rows, text=text, label=label, site=site)
    except DataError as error:
        _speak_of_options(error)
        raise
    return {"file": str(file), "rows": [asdict(row) for row in found]}


def preview_images(
    file: Path, *, text: str, label: str, site: str | None, rows: int
) -> dict[str, Any]:
    """The first images of a table of paths, or of a folder, with their size and class.

    ``site``: of a folder anything but None says that it holds one for each site.
    """
    kind = KINDS["image-classification"]
    try:
        found = preview(file, rows=rows, text=text, label=label, site=site, kind=kind)
    except DataError as error:
        _speak_of_options(error)
        raise
    return {"file": str(file), "rows": [asdict(row) for row in found]}


def _speak_of_options(error: HushtuneError) -> None:
    """Where others speak of a run's settings, a preview has options of its own."""
    if error.remedy is not None:
        named = re.sub(r"\bdata\.(text|label|site)\b", r"--\1", error.remedy)
        error.remedy = named.replace("model.name", "--model")
