"""Every rule of aggregation and every server optimiser learns on the default data, with the real
weights, at tiny size."""

from __future__ import annotations

import json
import math
from collections.abc import Collection
from pathlib import Path

import pytest
import torch

from hushtune.common.compatibility import OPTIMIZERS
from hushtune.common.config import RunConfig
from hushtune.common.config_io import load_config
from hushtune.common.lora_rules import RULES
from hushtune.common.presets import PRESETS
from hushtune.common.tasks import partition
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.common.tensor_keys import HEAD_PREFIX
from hushtune.server import checkpoint
from hushtune.simulations import plots, run

FEW = [
    "simulation.baselines=false",
    "simulation.forgetting=false",
    "data.max_rows_per_site=120",
    "privacy.trust=off",
    "train.rounds=4",
    "train.warmup_rounds=1",
    "train.sampling_probability=0.4",
    "train.learning_rate=0.015",
    "train.warmup_learning_rate=0.01",
    "model.precision=float32",
    "model.layer=2",
]


@pytest.fixture(autouse=True)
def no_pictures(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are drawn elsewhere."""
    monkeypatch.setattr(plots, "plot_run", lambda *_: None)
    monkeypatch.setattr(partition, "plot", lambda *_: None)


def losses_of(out: Path) -> list[float]:
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return [row["loss"] for row in rows]


def moved(config: RunConfig, out: Path) -> list[str]:
    """What a run's rounds changed of the global adapter, beside the head."""
    begun = open_workspace(resolve(config)).initial_state.tensors
    ended = checkpoint.load(out / "checkpoint").state.tensors
    return [
        key
        for key, tensor in ended.items()
        if not key.startswith(HEAD_PREFIX)
        and not (key in begun and torch.equal(tensor, begun[key]))
    ]


# Of each way to train one: A fixed, both factors, A in turn with B, B at the sites, gradients.
BY_DAY = ("ffa", "fedit", "rolora", "fedsa", "fedsgd")


@pytest.mark.slow
@pytest.mark.parametrize(
    "rules",
    [pytest.param(BY_DAY, id="by day"), pytest.param(RULES, id="all", marks=pytest.mark.nightly)],
)
def test_every_rule_learns_and_nearly_all_gain_by_the_adapter_s_rounds(
    tmp_path: Path, rules: Collection[str]
) -> None:
    """In one test, so that the rules share one model and its frozen features.

    Four rounds on a hundred rows a site: which batches the name of a run draws moves one rule's
    loss by some percent, so each is held to the loss of an even guess and to an adapter that is
    elsewhere than it began, and all together to the loss that the first round (the head alone) ends
    with.
    """
    even, gains = math.log(2), dict[str, float]()
    for rule in sorted(rules, key=lambda name: RULES[name].inner):
        config = load_config(
            preset="tiny", presets=PRESETS, overrides=[*FEW, f"aggregation.rule={rule}"]
        )
        out = tmp_path / rule
        summary = run(config, out)
        losses = losses_of(out)
        gains[rule] = min(losses[1:]) / losses[0]
        assert min(losses[1:]) < 0.92 * even, (rule, losses)
        assert losses[-1] < 0.97 * even, (rule, losses)
        assert summary["value"] > 0.62, (rule, summary["value"], losses)
        assert moved(config, out), (rule, "the adapter is where it began")
    few = 2 if rules is RULES else 1
    assert sum(gain < 0.97 for gain in gains.values()) >= len(gains) - few, gains


@pytest.mark.slow
@pytest.mark.parametrize(
    "name",
    [
        pytest.param(name, marks=[] if name in ("sgd", "adam") else pytest.mark.nightly)
        for name in OPTIMIZERS
    ],
)
def test_a_server_optimiser_learns_at_the_rate_that_follows_from_it(
    name: str, tmp_path: Path
) -> None:
    """Eight rounds of the head alone and two of the adapter: a rate too large has the loss rise far
    above its lowest, and above where it began."""
    chosen = ["train.warmup_rounds=8", f"aggregation.optimizer={name}"]
    few = [one for one in FEW if "rounds=" not in one]
    overrides = [*few, "train.rounds=10", *chosen]
    summary = run(load_config(preset="tiny", presets=PRESETS, overrides=overrides), tmp_path / name)
    losses = losses_of(tmp_path / name)
    assert min(losses) < 0.95 * losses[0], losses
    assert losses[-1] < min(losses[0], 1.15 * min(losses)), losses
    assert summary["value"] > 0.6, (summary["value"], losses)


@pytest.mark.slow
@pytest.mark.nightly
def test_no_site_refuses_or_is_rejected_under_any_rule_of_the_demo(tmp_path: Path) -> None:
    """As a user would begin: the demo's own model, recipe and privacy, on few rows, and a rule."""
    few = ["data.max_rows_per_site=80", "simulation.baselines=false"]
    few += ["train.rounds=3", "train.warmup_rounds=1", "simulation.evaluate_every=3"]
    for rule in sorted(RULES, key=lambda name: RULES[name].inner):
        chosen = [*few, f"aggregation.rule={rule}"]
        summary = run(
            load_config(preset="demo", presets=PRESETS, overrides=chosen), tmp_path / rule
        )
        assert (summary["refusals"], summary["rejected"]) == ({}, {}), rule
        assert summary["rounds"] == 3, rule
        for row in summary["sites"].values():
            assert 2.5 < row["epsilon"] <= 3.0, (rule, row)
