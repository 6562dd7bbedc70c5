"""The tokenizer of a base model, apart from the model: what only reads tokens loads no training."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from transformers import AutoTokenizer

from hushtune.common.errors import ModelError

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_TOKENIZER_FILES = (
    *("tokenizer.json", "vocab.txt", "vocab.json", "tokenizer.model", "spiece.model"),
    "sentencepiece.bpe.model",
)


def load_tokenizer(name: str) -> PreTrainedTokenizerBase:
    """The tokenizer that lies beside a model; raises ModelError where there is none."""
    folder = Path(name)
    if folder.is_dir() and not any((folder / file).is_file() for file in _TOKENIZER_FILES):
        # transformers would make an empty one, to which every word is unknown.
        raise ModelError(
            "the model's folder has no tokenizer",
            given=name,
            expected=" or ".join(_TOKENIZER_FILES),
            remedy="copy the tokenizer's files there: tokenizer.save_pretrained(folder)",
        )
    try:
        tokenizer = AutoTokenizer.from_pretrained(name, trust_remote_code=False)
        if tokenizer.pad_token is None:  # as in GPT-2 and Llama
            tokenizer.pad_token = tokenizer.eos_token or tokenizer.unk_token
        tokenizer.padding_side = "right"  # as rows are padded, wherever it is saved to
        return tokenizer
    except Exception as error:  # of a damaged file the libraries raise whatever they stumble over
        raise ModelError(
            "the model's tokenizer cannot be loaded",
            given=name,
            expected="tokenizer.json or the family's vocabulary files in the model's folder",
            remedy=f"get the tokenizer's files again: {type(error).__name__} {error}"[:200],
        ) from error
