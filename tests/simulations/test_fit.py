"""Losses on training rows beside those on validation rows: seeded, the researcher's, and told."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.figure import Figure

from hushtune.common.planning import POOLED
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.simulations import run
from hushtune.simulations.fit import sampled
from hushtune.simulations.overfit import fit_line, fit_of
from hushtune.simulations.plots import draw_run


def rows_of(*losses: tuple[float, float]) -> list[dict[str, Any]]:
    """Rows of a history by (training loss, validation loss)."""
    return [
        {
            "round": number,
            "loss": validation,
            "evaluated_on": "validation",
            "train": {"loss": train},
        }
        for number, (train, validation) in enumerate(losses, start=1)
    ]


def test_the_sample_is_seeded_of_training_rows_alone_and_as_large_as_asked(settings: Any) -> None:
    config = resolve(settings.config(simulation__train_sample=40))
    workspace = open_workspace(config)
    found = sampled(RunContext(config, Path()), workspace)
    everything = np.concatenate(list(found.values()))
    assert len(everything) == 40
    assert set(everything) <= set(workspace.rows(POOLED, "train"))
    again = sampled(RunContext(config, Path()), workspace)
    assert {site: rows.tolist() for site, rows in again.items()} == {
        site: rows.tolist() for site, rows in found.items()
    }
    other = config.model_copy(update={"seed": 8})
    differs = sampled(RunContext(other, Path()), workspace)
    assert set(np.concatenate(list(differs.values()))) != set(everything)


@pytest.mark.parametrize("rule", ["ffa", "fedsa"])
def test_figures_are_shown_change_nothing_and_are_the_researcher_s(
    settings: Any, tmp_path: Path, rule: str
) -> None:
    whole = settings.config(simulation__train_sample=10_000, aggregation__rule=rule)
    none = settings.config(simulation__train_sample=0, aggregation__rule=rule)
    shown = run(whole, tmp_path / "shown")
    hidden = run(none, tmp_path / "hidden")
    assert shown["adapter_digest"] == hidden["adapter_digest"]
    assert hidden["fit"] is None
    lines = (tmp_path / "shown" / "metrics.jsonl").read_text().splitlines()
    rows = [json.loads(line) for line in lines]
    assert all("no site sends" in row["seen_by"]["train"] for row in rows)
    assert shown["fit"]["train_loss"] == rows[-1]["train"]["loss"]
    assert "no site sends" in shown["seen_by"]["fit"]
    losses = [row["train"]["loss"] for row in rows]
    assert len(set(losses)) == len(losses)  # each is its own round's
    if rule == "ffa":
        config = resolve(whole)
        workspace = open_workspace(config)
        from hushtune.server import checkpoint

        state = checkpoint.load(tmp_path / "shown" / "checkpoint").shown
        groups = {"all": workspace.rows(POOLED, "train")}
        found = workspace.task.metrics_by_group(state, groups)["all"]
        assert found["loss"] == pytest.approx(rows[-1]["train"]["loss"], rel=1e-5)


def test_a_growing_gap_is_told_and_a_small_or_closing_one_is_not() -> None:
    grown = fit_of(rows_of((0.6, 0.62), (0.4, 0.45), (0.2, 0.55)))
    assert grown is not None
    assert grown["grows"]
    assert (grown["smallest_round"], grown["smallest_gap"]) == (1, pytest.approx(0.02))
    assert "overfitting" in (fit_line(grown) or "")
    for steady in (
        rows_of((0.6, 0.62), (0.4, 0.44)),
        rows_of((0.6, 0.9), (0.3, 0.4)),
        rows_of((0.5, 0.7)),
    ):
        assert fit_line(fit_of(steady)) is None
    assert fit_of([{"round": 1, "loss": 0.3}]) is None


def test_the_picture_has_both_losses() -> None:
    summary = {
        "task": "text-classification",
        "metric": "accuracy",
        "higher_is_better": True,
        "sites": {"north": None},
        "trust": "site",
        "baselines": {"majority": 0.5},
        "value": 0.6,
    }
    history = [{**row, "epsilon": {"north": 1.0}} for row in rows_of((0.6, 0.62), (0.4, 0.45))]
    figure: Figure = draw_run(history, summary)
    (panel,) = [axes for axes in figure.axes if axes.get_title() == "Fit"]
    drawn = {line.get_label(): list(line.get_ydata()) for line in panel.get_lines()}  # pyright: ignore
    assert drawn == {"validation rows": [0.62, 0.45], "training rows": [0.6, 0.4]}
    without = [{k: v for k, v in row.items() if k != "train"} for row in history]
    assert "Fit" not in [axes.get_title() for axes in draw_run(without, summary).axes]
