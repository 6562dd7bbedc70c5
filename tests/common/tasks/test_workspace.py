"""Loading a base and its tokenizer: whole, or refused with the reason."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
import transformers as tf
from safetensors.torch import load_file, save_file

from hushtune.common.errors import MissingWeightsError, ModelError, UnsupportedModelError
from hushtune.common.model import Head
from hushtune.common.tasks.base_model import load_base
from hushtune.common.tasks.tokenizer import load_tokenizer
from hushtune.common.tasks.workspace import open_workspace

LABELS = ("bad", "good")
WEIGHTS = "model.safetensors"


def without(source: Path, folder: Path, *prefixes: str) -> Path:
    """A copy of a model whose checkpoint lacks some weights."""
    shutil.copytree(source, folder)
    kept = {k: v for k, v in load_file(folder / WEIGHTS).items() if not k.startswith(prefixes)}
    save_file(kept, folder / WEIGHTS, metadata={"format": "pt"})
    return folder


@pytest.mark.parametrize("head", ["mean", "own"])
def test_a_checkpoint_that_lacks_a_block_is_refused(
    tiny_bert: Path, tmp_path: Path, head: str
) -> None:
    """transformers would draw the block at random and only say so in its log."""
    torn = without(tiny_bert, tmp_path / "torn", "encoder.layer.1.")
    with pytest.raises(MissingWeightsError, match=r"encoder\.layer\.1\.") as caught:
        load_base(str(torn), Head(head), LABELS)
    assert "16 weights" in str(caught.value)


def test_weights_of_another_shape_are_refused(tiny_bert: Path, tmp_path: Path) -> None:
    other = Path(shutil.copytree(tiny_bert, tmp_path / "other"))
    config = json.loads((other / "config.json").read_text(encoding="utf-8"))
    (other / "config.json").write_text(json.dumps({**config, "intermediate_size": 48}))
    for head in ("mean", "own"):
        with pytest.raises(MissingWeightsError):
            load_base(str(other), Head(head), LABELS)


def test_a_pooler_is_needed_by_the_own_head_alone(tiny_bert: Path, tmp_path: Path) -> None:
    bare = without(tiny_bert, tmp_path / "bare", "pooler.")
    load_base(str(bare), Head.MEAN, LABELS)
    with pytest.raises(MissingWeightsError, match=r'set model\.head = "mean"'):
        load_base(str(bare), Head.OWN, LABELS)


def test_a_head_for_other_labels_is_made_anew(tiny_bert: Path, tmp_path: Path) -> None:
    """A checkpoint that was fine-tuned for five labels is a base like any other."""
    config = tf.AutoConfig.from_pretrained(tiny_bert, num_labels=5)
    five = tf.AutoModelForSequenceClassification.from_pretrained(tiny_bert, config=config)
    five.save_pretrained(tmp_path / "five")
    two = load_base(str(tmp_path / "five"), Head.OWN, LABELS)
    assert two.classifier.weight.shape == (2, 32)
    kept = two.bert.encoder.layer[1].output.dense.weight
    assert torch.equal(kept, five.bert.encoder.layer[1].output.dense.weight)


def test_a_folder_without_a_tokenizer_is_refused(tiny_bert: Path, tmp_path: Path) -> None:
    """transformers would make one to which every word is unknown."""
    bare = Path(shutil.copytree(tiny_bert, tmp_path / "bare"))
    for path in bare.glob("tokenizer*"):
        path.unlink()
    with pytest.raises(ModelError, match="no tokenizer"):
        load_tokenizer(str(bare))


@pytest.mark.parametrize(("tokens", "fits"), [(64, True), (65, False)])
def test_roberta_counts_its_positions_from_the_padding_token(
    settings: object, tiny_bert: Path, tmp_path: Path, tokens: int, fits: bool
) -> None:
    """66 positions hold 64 tokens: a text of 65 would read past the table."""
    folder = tmp_path / "roberta"
    config = tf.RobertaConfig(
        vocab_size=len(load_tokenizer(str(tiny_bert))),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=48,
        max_position_embeddings=66,
    )
    with torch.random.fork_rng():
        tf.RobertaModel(config).save_pretrained(folder)
    for path in tiny_bert.glob("tokenizer*"):
        shutil.copy(path, folder / path.name)
    made = settings.config(model__name=str(folder), model__max_tokens=tokens)  # pyright: ignore
    if not fits:
        with pytest.raises(UnsupportedModelError, match=r"model\.max_tokens") as caught:
            open_workspace(made)
        assert "at most 64" in str(caught.value)
        return
    workspace = open_workspace(made)
    workspace.warm()
    assert workspace.initial_state.is_finite()
