"""Models of rules that change the base, or have R, outside their run: they answer as they did."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModel, AutoModelForSequenceClassification, AutoTokenizer

from hushtune.common.tasks import partition
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server import checkpoint
from hushtune.simulations import plots, run, saved

from .test_saved import TEXTS, close


@pytest.mark.parametrize("head", ["mean", "own"])
@pytest.mark.parametrize("rule", ["fedex", "flora", "fedsb"])
def test_a_saved_and_a_merged_model_answer_as_in_their_run(
    settings: Any,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    rule: str,
    head: str,
) -> None:
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)
    config = resolve(
        settings.config(
            aggregation__rule=rule,
            model__head=head,
            adapter__rslora=True,
            adapter__layers=2,
            train__learning_rate=0.05,
            train__local_steps=3,
        )
    )
    out = tmp_path / "out"
    run(config, out)
    workspace, state = open_workspace(config), checkpoint.load(out / "checkpoint").shown
    assert state.spec.inner == (rule == "fedsb")
    assert any(".base_" in key for key in state.keys) == (rule != "fedsb")
    rows = workspace.rows("pooled", "test")
    expected = workspace.task.figures(state, rows)[:, :-1]
    texts = [workspace.data.texts[row] for row in rows]
    assert float(expected.std(0).max()) > 1e-3
    close(saved.load(out).logits(texts), expected)
    start = workspace.initial_state.merge(head_of(state))
    without = workspace.task.figures(start, rows)[:, :-1]
    assert float((without - expected).abs().max()) > 1e-4  # the adapter is in it
    copy = saved.export(out, tmp_path / "copy", merged=False)
    close(saved.load(copy).logits(texts), expected)
    merged = saved.export(out, tmp_path / "merged", merged=True)
    close(by_transformers(merged, texts, head=head, predictor=saved.load(out)), expected)
    assert saved.load(copy).predict(TEXTS) == saved.load(out).predict(TEXTS)


def head_of(state: Any) -> Any:
    """The head alone, under the description of the model's own adapters."""
    return state.select(key for key in state.keys if key.startswith("head."))


@torch.no_grad()
def by_transformers(folder: Path, texts: list[str], *, head: str, predictor: Any) -> torch.Tensor:
    """Logits by the merged folder as transformers loads it; of the mean head the features."""
    kind = AutoModelForSequenceClassification if head == "own" else AutoModel
    model = kind.from_pretrained(folder, attn_implementation="eager").eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    rows = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    inputs = {key: rows[key] for key in ("input_ids", "attention_mask")}
    if head == "own":
        return model(**inputs).logits
    states = model(**inputs).last_hidden_state
    mask = inputs["attention_mask"].unsqueeze(-1).float()
    pooled = torch.nn.functional.normalize((states * mask).sum(1) / mask.sum(1), dim=-1)
    linear = predictor.model.head
    return pooled * predictor.settings.feature_scale @ linear.weight.T + linear.bias
