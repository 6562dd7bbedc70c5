"""Every rule of aggregation learns on the default data, with the real weights, at tiny size."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from hushtune.common.config_io import load_config
from hushtune.common.lora_rules import RULES
from hushtune.common.presets import PRESETS
from hushtune.common.tasks import partition
from hushtune.simulations import plots, run

FEW = [
    "simulation.baselines=false",
    "data.max_rows_per_site=120",
    "privacy.trust=off",
    "train.rounds=4",
    "train.warmup_rounds=1",
    "train.sampling_probability=0.4",
    "train.learning_rate=0.008",
    "train.warmup_learning_rate=0.01",
    "model.precision=float32",
    "model.layer=2",
]


@pytest.mark.slow
def test_every_rule_learns_after_the_warm_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In one test, so that the rules share one model and its frozen features."""
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)
    for rule in sorted(RULES, key=lambda name: RULES[name].inner):
        config = load_config(
            preset="tiny", presets=PRESETS, overrides=[*FEW, f"aggregation.rule={rule}"]
        )
        out = tmp_path / rule
        summary = run(config, out)
        rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
        losses = [row["loss"] for row in rows]
        assert sum(losses[-2:]) / 2 < 0.95 * losses[0], (rule, losses)
        assert summary["value"] > 0.62, (rule, summary["value"], losses)
