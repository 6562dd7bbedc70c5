"""A trained adapter merged into its base: one folder that loads without hushtune and peft."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, cast

import safetensors.torch
from torch import nn

from hushtune.common.lora_files import HEAD_FILE, merged
from hushtune.common.model import Head
from hushtune.common.tasks.image_processor import ImageProcessor
from hushtune.simulations.card import merged_card, with_use
from hushtune.simulations.card_words import use_words

if TYPE_CHECKING:
    from hushtune.simulations.saved import Predictor


def write_merged(trained: Predictor, card: str, folder: Path) -> None:
    """Merge a trained model into its base; ``card``: that of the adapter."""
    base = merged(trained.model)
    names = dict(enumerate(trained.labels))
    if names:
        base.config.id2label = names
        base.config.label2id = {name: index for index, name in names.items()}
    base.save_pretrained(str(folder), safe_serialization=True)
    trained.encoder.save_pretrained(str(folder))
    (folder / "README.md").write_text(_card(trained, card), encoding="utf-8")
    if trained.model.head is None:
        return
    linear = cast(nn.Linear, trained.model.head)
    if isinstance(trained.encoder, ImageProcessor) or trained.model.head_kind is not Head.MEAN:
        # Of features that are scaled to norm 1; of tokens' states as they are.
        tokens = trained.model.head_kind is Head.TOKENS
        scale = 1.0 if tokens else trained.settings.feature_scale
        head = {
            "weight": linear.weight.detach() * scale,
            "bias": linear.bias.detach(),
        }
        contiguous = {name: tensor.clone().contiguous() for name, tensor in head.items()}
        safetensors.torch.save_file(contiguous, folder / HEAD_FILE)
        return
    width, scale = linear.in_features, trained.settings.feature_scale
    _write_json(
        folder / "sentence_bert_config.json",
        {"max_seq_length": trained.settings.max_tokens, "do_lower_case": False},
    )
    _write_json(
        folder / "1_Pooling" / "config.json",
        {"word_embedding_dimension": width, "pooling_mode_mean_tokens": True},
    )
    (folder / "2_Normalize").mkdir()
    _write_json(
        folder / "3_Dense" / "config.json",
        {
            "in_features": width,
            "out_features": linear.out_features,
            "bias": True,
            "activation_function": "torch.nn.modules.linear.Identity",
        },
    )
    dense = {
        "linear.weight": (linear.weight.detach() * scale).contiguous(),
        "linear.bias": linear.bias.detach().clone(),
    }
    safetensors.torch.save_file(dense, folder / "3_Dense" / "model.safetensors")
    kinds = [
        ("", "Transformer"),
        ("1_Pooling", "Pooling"),
        ("2_Normalize", "Normalize"),
        ("3_Dense", "Dense"),
    ]
    _write_json(
        folder / "modules.json",
        [
            {
                "idx": index,
                "name": str(index),
                "path": path,
                "type": f"sentence_transformers.models.{kind}",
            }
            for index, (path, kind) in enumerate(kinds)
        ],
    )
    _write_json(
        folder / "config_sentence_transformers.json",
        {"similarity_fn_name": "cosine", "labels": list(trained.labels)},
    )


def _card(trained: Predictor, card: str) -> str:
    if trained.model.head_kind is Head.WORDS:
        chat = trained.tokenizer.chat_template is not None
        use = use_words(apart=trained.model.reads_and_writes, chat=chat)
        return with_use(card, use, library="transformers")
    return merged_card(
        card,
        task=trained.task,
        labels=trained.labels,
        head=trained.model.head_kind,
        max_tokens=trained.settings.max_tokens,
        separator=trained.model.separator,
    )


def _write_json(path: Path, value: object) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")
