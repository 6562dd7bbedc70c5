"""Whole runs that adapt the embedding of tokens and a layer of a block at once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hushtune.common.config_io import load_config
from hushtune.common.errors import TargetModuleError
from hushtune.common.tasks.workspace import open_workspace
from hushtune.server import checkpoint
from hushtune.simulations import run, saved
from hushtune.simulations.estimate import estimate

from .test_presets import lines

TEXTS = ["a lovely song", "the meal was quite grim again today", "zebra! 12"]
TARGETS = ["word_embeddings", "value"]
EMBEDDING = "embeddings.word_embeddings"

# peft asks for an attribute that transformers has renamed.
pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")


def by_hand(config: Any, base: Any, adapter: Path, folder: Path) -> Tensor:
    """Logits of a bare base: pooling and head from their definitions."""
    tokenizer = AutoTokenizer.from_pretrained(str(folder))
    rows = tokenizer(TEXTS, padding=True, return_tensors="pt")
    head = load_file(adapter / "head.safetensors")
    with torch.no_grad():
        states = base(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"])
    mask = rows["attention_mask"].unsqueeze(-1)
    mean = (states.last_hidden_state * mask).sum(1) / mask.sum(1)
    features = torch.nn.functional.normalize(mean, dim=-1) * config.model.feature_scale
    return features @ head["weight"].T + head["bias"]


def close(one: Tensor, other: Tensor) -> None:
    torch.testing.assert_close(one, other, rtol=0, atol=1e-5)


@pytest.mark.parametrize("rule", ["ffa", "fedit", "fedex", "flora"])
@pytest.mark.parametrize("trust", ["off", "site"])
def test_embedding_and_value_together(settings: Any, tmp_path: Path, rule: str, trust: str) -> None:
    config = settings.config(
        adapter__targets=TARGETS,
        adapter__alpha=8.0,
        aggregation__rule=rule,
        privacy__trust=trust,
        train__local_steps=3,
    )
    out = tmp_path / "out"
    summary = run(config, out)
    assert summary["refusals"] == summary["rejected"] == {}
    assert [row["phase"] for row in lines(out)] == ["warmup", "adapter", "adapter"]

    state = checkpoint.load(out / "checkpoint").state
    assert state.spec.targets == (EMBEDDING, "encoder.layer.1.attention.self.value")
    a, b = state.factors(EMBEDDING)
    vocabulary = a.shape[1]
    assert (b.shape, vocabulary > 50) == ((32, 2), True)
    trained_a = float((a @ a.T - torch.eye(2)).abs().max()) > 1e-4
    assert trained_a == (rule in ("fedit", "fedex"))
    changed = state.base_change(EMBEDDING)
    assert (changed is not None) == (rule in ("fedex", "flora"))
    assert bool((b if changed is None else changed[1]).any())

    # The run itself, its folder, plain peft and both exports answer alike.
    workspace = open_workspace(load_config(out / "config.toml"))
    rows = workspace.rows("pooled", "test")
    expected = workspace.task.figures(state, rows)[:, :-1]
    predictor = saved.load(out)
    close(predictor.logits([workspace.data.texts[row] for row in rows]), expected)
    assert float(expected.std(0).max()) > 1e-3
    answers = predictor.logits(TEXTS)
    adapter = out / "adapter"
    names = load_file(adapter / "adapter_model.safetensors").keys()
    assert sum("lora_embedding_" in name for name in names) == 2
    base = AutoModel.from_pretrained(config.model.name, attn_implementation="eager")
    embedding = base.get_input_embeddings().weight.detach().clone()
    model = PeftModel.from_pretrained(base, str(adapter)).eval()
    close(by_hand(config, model, adapter, adapter), answers)
    to = saved.export(out, tmp_path / "merged", merged=True)
    merged = AutoModel.from_pretrained(str(to), attn_implementation="eager").eval()
    close(by_hand(config, merged, adapter, to), answers)
    moved_by = merged.get_input_embeddings().weight.detach() - embedding
    assert float(moved_by.abs().max()) > 1e-4


def test_the_family_s_own_head_above_an_embedding(settings: Any, tmp_path: Path) -> None:
    config = settings.config(adapter__targets=TARGETS, aggregation__rule="fedex", model__head="own")
    out = tmp_path / "out"
    run(config, out)
    answers = saved.load(out).logits(TEXTS)
    to = saved.export(out, tmp_path / "merged", merged=True)
    merged = AutoModelForSequenceClassification.from_pretrained(
        str(to), attn_implementation="eager"
    ).eval()
    rows = AutoTokenizer.from_pretrained(str(to))(TEXTS, padding=True, return_tensors="pt")
    with torch.no_grad():
        found = merged(input_ids=rows["input_ids"], attention_mask=rows["attention_mask"]).logits
    close(found, answers)


def test_a_dry_run_counts_an_embedding_s_values(settings: Any) -> None:
    plain = estimate(settings.config(aggregation__rule="fedit"))
    wide = estimate(settings.config(aggregation__rule="fedit", adapter__targets=TARGETS))
    assert wide["bytes_per_round"] > plain["bytes_per_round"]


def test_positions_are_refused_before_anything_is_written(settings: Any, tmp_path: Path) -> None:
    config = settings.config(adapter__targets=["position_embeddings"])
    with pytest.raises(TargetModuleError, match="plain one of tokens"):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").iterdir())
