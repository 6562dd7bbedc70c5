"""Labels that are smoothed in training: example by example, weighted, and in no reported loss."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.common import lora
from hushtune.common.errors import ConfigError
from hushtune.common.model import Level
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.simulations import run


def opened(settings: Any, **changes: Any) -> Supervised:
    workspace = open_workspace(resolve(settings.config(**changes)))
    state = workspace.initial_state.map(lambda tensor: tensor + 0.1)
    lora.install(workspace.task.model, state)
    return workspace.task


def losses(task: Supervised, rows: np.ndarray) -> torch.Tensor:
    with torch.no_grad():
        return task.example_losses(task.batch(rows, Level.TOKENS))


def test_a_smoothed_loss_is_a_mixture_with_the_mean_over_all_labels(settings: Any) -> None:
    """Weighted by the example's own label alone: torch's ``weight`` would weigh the mixture."""
    weights = {"good": 3.0}
    rows = np.arange(12)
    plain = losses(opened(settings), rows)
    task = opened(settings, train__label_smoothing=0.25, data__class_weights=weights)
    batch = task.batch(rows, Level.TOKENS)
    with torch.no_grad():
        even = -task.model(batch.inputs).log_softmax(1).mean(1)
    weight = torch.where(batch.targets == 1, 3.0, 1.0)
    found = losses(task, rows)
    torch.testing.assert_close(found, weight * (0.75 * plain + 0.25 * even), rtol=1e-5, atol=1e-6)
    alone = torch.cat([losses(task, rows[k : k + 1]) for k in range(12)])
    torch.testing.assert_close(alone, found, rtol=1e-5, atol=1e-6)


def test_reported_losses_are_plain(settings: Any) -> None:
    rows = {"all": np.arange(12)}
    found = {}
    for smoothing in (0.0, 0.4):
        workspace = open_workspace(resolve(settings.config(train__label_smoothing=smoothing)))
        found[smoothing] = workspace.task.metrics_by_group(workspace.initial_state, rows)
    assert found[0.0] == found[0.4]


@pytest.mark.parametrize(
    "changes",
    [{"train__label_smoothing": 0.3}, {"adapter__dropout": 0.4}, {"train__weight_decay": 0.5}],
    ids=str,
)
def test_each_setting_reaches_the_sites_and_repeats(
    settings: Any, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Through orders or workspaces: a setting that stayed behind would leave the plain model."""
    plain = run(settings.config(), tmp_path / "plain")["adapter_digest"]
    first = run(settings.config(**changes), tmp_path / "first")["adapter_digest"]
    assert run(settings.config(), tmp_path / "plain again")["adapter_digest"] == plain != first
    assert run(settings.config(**changes), tmp_path / "second")["adapter_digest"] == first


@pytest.mark.parametrize("value", [-0.1, 1.0])
def test_its_range(settings: Any, value: float) -> None:
    with pytest.raises(ConfigError, match="label_smoothing"):
        settings.config(train__label_smoothing=value)
