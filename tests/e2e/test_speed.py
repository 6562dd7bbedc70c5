"""What saves time changes no result: without it a run ends at the same adapter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from hushtune.client import cohort
from hushtune.client.site import ledger_path
from hushtune.common.config import SpeedConfig
from hushtune.common.planning import POOLED
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.tasks import workspace as workspaces
from hushtune.common.tasks.activations import shapes_of
from hushtune.common.tasks.workspace import open_workspace
from hushtune.server import checkpoint
from hushtune.server.app import run_name
from hushtune.simulations import engine, run

OFF: dict[str, dict[str, Any]] = {
    "fused gradients, texts side by side": {"speed__gradients": "fused"},
    "fused gradients": {"speed__gradients": "fused", "speed__pack": False},
    "texts of one length together": {"speed__pad": "max_tokens"},
    "kept activations": {"train__cache_megabytes": 0},
    "sites together": {"speed__together": 3},
    "two of three sites together": {"speed__together": 2},
    "freed memory kept": {"speed__keep_freed_memory": False},
}


def ended_at(config: Any, out: Path) -> tuple[torch.Tensor, float]:
    """The run's adapter as one vector, and its loss on the test rows."""
    run(config, out)
    state = checkpoint.load(out / "checkpoint").state
    vector = torch.cat([state.tensors[key].flatten() for key in state.keys])
    workspace = open_workspace(config)
    groups = {"all": workspace.rows(POOLED, "test")}
    return vector, workspace.task.metrics_by_group(state, groups)["all"]["loss"]


@pytest.fixture(scope="module")
def plain_run(tiny_bert: Path, three_sites: Path, tmp_path_factory: pytest.TempPathFactory) -> Any:
    from ..conftest import Settings

    config = Settings(tiny_bert, three_sites).config(train__rounds=2)
    return ended_at(config, tmp_path_factory.mktemp("plain") / "out")


@pytest.mark.parametrize("name", OFF)
def test_without_it_a_run_ends_where_it_does_with_it(
    name: str, settings: Any, tmp_path: Path, plain_run: Any
) -> None:
    found = ended_at(settings.config(train__rounds=2, **OFF[name]), tmp_path / "out")
    assert torch.linalg.norm(found[0] - plain_run[0]) <= 1e-5 * plain_run[0].norm()
    assert found[1] == pytest.approx(plain_run[1], abs=1e-5)


def test_every_switch_is_tested() -> None:
    tested = {key for changes in OFF.values() for key in changes}
    assert {f"speed__{key}" for key in SpeedConfig.model_fields} <= tested


@pytest.mark.parametrize("name", OFF)
def test_no_batch_is_drawn_otherwise(name: str, settings: Any) -> None:
    assert run_name(settings.config(**OFF[name])) == run_name(settings.config())
    assert run_name(settings.config(seed=8)) != run_name(settings.config())


def test_the_switches_are_at_work(settings: Any) -> None:
    """Also in a process that has had the other setting before."""
    widths = []
    for pad in ("length", "max_tokens", "length"):
        workspace = open_workspace(settings.config(speed__pad=pad))
        inputs = workspace.task.inputs
        widths.append(int(shapes_of(inputs)[:, 0].max()))
        assert workspace.task.batch(workspace.rows("east", "train")[:2], "tokens").inputs[
            "input_ids"
        ].shape[1] == (32 if pad == "max_tokens" else widths[-1])
    assert widths[1] == 32 > widths[0] == widths[2]
    for method in ("hooks", "fused"):
        workspace = open_workspace(settings.config(speed__gradients=method))
        assert workspace.task.model.gradients == method
    for pack in (True, False, True):
        workspace = open_workspace(settings.config(speed__gradients="fused", speed__pack=pack))
        assert workspace.task.model.packs is (pack and torch.cuda.device_count() == 0)


@pytest.mark.parametrize("kept", [True, False])
def test_freed_memory_is_kept_where_that_is_asked_for(
    kept: bool, settings: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []
    monkeypatch.setattr(workspaces, "keep_freed_memory", lambda: asked.append("glibc"))
    monkeypatch.setattr(workspaces, "_workspaces", {})
    open_workspace(settings.config(speed__keep_freed_memory=kept))
    assert asked == ["glibc"] * kept


@pytest.mark.parametrize(("together", "at_once"), [(2, {2}), (3, {3}), (50, {3})])
def test_so_many_sites_take_their_steps_at_once(
    together: int, at_once: set[int], settings: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: set[int] = set()

    def counted(asked: Any, **how: Any) -> Any:
        found.add(len(asked))
        return cohort.clipped_sums(asked, **how)

    monkeypatch.setattr(engine, "clipped_sums", counted)
    run(settings.config(speed__together=together), tmp_path / "out")
    assert found == at_once


def test_a_site_s_charges_are_those_of_the_site_alone(settings: Any, tmp_path: Path) -> None:
    def charges(name: str, **changes: Any) -> dict[str, list[Any]]:
        config = settings.config(
            train__rounds=2, privacy={"trust": "site", "delta": 1e-3}, **changes
        )
        summary = run(config, tmp_path / name)
        return {
            site: [
                (entry.round, entry.event)
                for entry in Ledger(ledger_path(tmp_path / name, site)).entries()
            ]
            for site in summary["sites"]
        }

    alone, together = charges("alone"), charges("together", speed__together=3)
    assert alone == together
    assert all(len(entries) == 2 for entries in alone.values())
