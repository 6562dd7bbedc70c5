"""On a GPU: all of the model is there, sums are those of a CPU, a private run keeps its epsilon."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hushtune.common.planning import POOLED
from hushtune.common.tasks import workspace as workspaces
from hushtune.common.tasks.workspace import Workspace, open_workspace
from hushtune.simulations import run

from .families import summed

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def clipped(workspace: Workspace) -> torch.Tensor:
    state = workspace.initial_state.map(lambda tensor: tensor + 0.01)
    rows = workspace.rows(POOLED, "train")[:20]
    return summed(workspace.task, rows, state=state, clip_norm=0.1, microbatch=8)


@pytest.mark.parametrize("gradients", ["hooks", "fused"])
def test_the_clipped_sum_is_that_of_a_cpu(
    gradients: str, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = settings.config(speed__gradients=gradients, model__precision="float32")
    found: dict[str, torch.Tensor] = {}
    for device in ("cuda", "cpu"):
        monkeypatch.setattr(workspaces, "_workspaces", {})
        monkeypatch.setattr(torch.cuda, "is_available", lambda device=device: device == "cuda")
        workspace = open_workspace(config)
        of = {parameter.device.type for parameter in workspace.task.model.parameters()}
        assert of == {device}
        found[device] = clipped(workspace)
    assert torch.linalg.norm(found["cuda"] - found["cpu"]) < 1e-4 * found["cpu"].norm()


def test_a_private_run_ends_with_what_was_promised(settings: Any, tmp_path: Path) -> None:
    summary = run(settings.config(privacy__trust="site", train__rounds=2), tmp_path / "run")
    assert summary["rejected"] == {}
    assert all(site["epsilon"] <= 3.0 + 1e-6 for site in summary["sites"].values())
