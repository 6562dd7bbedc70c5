"""What a dry run foresees of time and memory."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from hushtune.common.model import AdaptedModel
from hushtune.common.tasks.kinds.classification import text_classification
from hushtune.simulations import estimate

from ..client.families import adapted, labels, moved, token_rows

COUNT = 600


@pytest.mark.parametrize("size", [4, 16])
def test_the_frozen_model_is_timed_in_pieces_of_all_rows(
    size: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A few rows by themselves would fill up as many places again."""
    model = adapted("bert", "mean")
    tokens = token_rows("bert", COUNT, longest=60)
    task = text_classification(
        model, tokens, labels(COUNT), evaluation_batch=size, cache_megabytes=64
    )
    every = np.arange(COUNT, dtype=np.int64)
    workspace: Any = SimpleNamespace(
        task=task, rows=lambda *_: every, initial_state=moved(task.model)
    )
    run, shapes = AdaptedModel.frozen_activations, list[tuple[int, ...]]()

    def seen(self: AdaptedModel, inputs: Any, **others: Any) -> Any:
        shapes.append(tuple(inputs["input_ids"].shape))
        return run(self, inputs, **others)

    monkeypatch.setattr(AdaptedModel, "frozen_activations", seen)
    task.fill(features=True)
    whole = shapes.copy()
    shapes.clear()
    rows, frozen_pass = estimate.timed_pass(workspace, 64)
    frozen_pass()
    assert len(set(rows.tolist())) == len(rows) == pytest.approx(64, rel=0.5)
    assert set(shapes) <= set(whole)  # as many rows at once, as wide
    places = sum(rows * width for rows, width in shapes) / len(rows)
    assert places == pytest.approx(sum(rows * width for rows, width in whole) / COUNT, rel=0.2)


def test_so_few_rows_that_they_are_one_piece() -> None:
    task = text_classification(adapted("bert", "mean"), token_rows("bert", 3), labels(3))
    workspace: Any = SimpleNamespace(
        task=task, rows=lambda *_: np.arange(3, dtype=np.int64), initial_state=moved(task.model)
    )
    rows, frozen_pass = estimate.timed_pass(workspace, 64)
    frozen_pass()
    assert sorted(rows) == [0, 1, 2]


def test_weights_that_are_kept_rounded_count(
    settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.config(model__precision="bfloat16")
    monkeypatch.setattr(estimate, "_seconds", lambda work: 1.0)
    before = estimate.estimate(config)["memory_megabytes"]
    monkeypatch.setattr(estimate, "most_bytes", lambda model: 77 * 2**20)
    assert estimate.estimate(config)["memory_megabytes"] == pytest.approx(before + 77, abs=1)
