"""Runs that stop by themselves: when, by whose figures, at which cost, and whose model is kept."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune.client.site import ledger_path
from hushtune.common.errors import ConfigError, TooFewRowsError
from hushtune.common.planning import POOLED, site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.run_context import RunContext
from hushtune.common.stopping import best_round, is_over, score
from hushtune.common.tasks.workspace import open_workspace, resolve
from hushtune.server import checkpoint
from hushtune.server.app import federate
from hushtune.simulations import run

from .test_resume import StopAt, rounds_told, tree

SITES = ("east", "north", "south")
PRIVATE = {"trust": "site", "epsilon": 8.0, "delta": 1e-3}
# No figure improves by a thousand: the first judged round stays the best.
STALLED = {
    "train__rounds": 8,
    "train__warmup_rounds": 1,
    "train__patience": 2,
    "train__min_improvement": 1000.0,
}


def judged(settings: Any, losses: list[float | None], **changes: Any) -> tuple[Any, list[Any]]:
    config = settings.config(**{"train__rounds": 20, "train__warmup_rounds": 0, **changes})
    rows = [
        {"round": number, "loss": loss, "accuracy": 0.5, "evaluated_on": "validation"}
        if loss is not None
        else {"round": number}
        for number, loss in enumerate(losses, start=1)
    ]
    return config, rows


# ----------------------------------------------------------------------------- the rule ----


def test_the_rule_on_losses_written_down(settings: Any) -> None:
    config, rows = judged(settings, [0.9, 0.8, 0.85, 0.79, 0.8, 0.8], train__patience=2)
    assert [is_over(rows[:k], config) for k in range(7)] == [False] * 6 + [True]
    assert best_round(rows, config) == 4
    config, rows = judged(
        settings, [0.9, 0.8, 0.85, 0.79, 0.8], train__patience=2, train__min_improvement=0.05
    )
    assert best_round(rows, config) == 2  # 0.79 is no improvement by 0.05
    assert [is_over(rows[:k], config) for k in (3, 4)] == [False, True]


def test_rounds_without_a_figure_stop_nothing(settings: Any) -> None:
    config, rows = judged(settings, [0.5, None, None, None, 0.6], train__patience=2)
    assert [is_over(rows[:k], config) for k in range(6)] == [False] * 5 + [True]
    config, rows = judged(settings, [None, None, None], train__patience=1)
    assert not is_over(rows, config)
    assert best_round(rows, config) is None


def test_the_head_s_rounds_stop_no_run_in_which_adapters_follow(settings: Any) -> None:
    losses: list[float | None] = [0.5, 0.6, 0.6, 0.6, 0.6, 0.6]
    changes = {"train__patience": 2, "train__rounds": 10}
    config, rows = judged(settings, losses, **{**changes, "train__warmup_rounds": 4})
    assert [is_over(rows[:k], config) for k in range(7)] == [False] * 6 + [True]
    config, rows = judged(settings, losses, **{**changes, "train__warmup_rounds": 10})
    assert is_over(rows[:3], config)  # of a head alone there is nothing to wait for


def test_figures_on_test_rows_and_told_ones_of_another_kind_choose_nothing(settings: Any) -> None:
    config, rows = judged(settings, [0.5], train__patience=2)
    assert score(rows[0], config) == -0.5
    assert score({**rows[0], "evaluated_on": "test"}, config) is None
    noised = settings.config(train__patience=2, metrics__release="noised")
    assert score(rows[0], noised) is None
    assert score({**rows[0], "released": {"loss": 0.7, "accuracy": 0.2}}, noised) == -0.7
    metric = settings.config(train__patience=2, train__watch="metric")
    assert score(rows[0], metric) == 0.5


# ------------------------------------------------------------------------------- the run ----


@pytest.mark.parametrize("told", [False, True], ids=["researcher", "told"])
def test_a_run_that_stops_pays_for_the_rounds_that_ran_and_says_how_it_chose(
    settings: Any, tmp_path: Path, told: bool
) -> None:
    figures = {"metrics": {"release": "noised", "every": 1}} if told else {}
    config = settings.config(**STALLED, **figures, privacy=PRIVATE)
    summary = run(config, tmp_path / "out")
    assert rounds_told(tmp_path / "out") == [1, 2, 3]
    assert summary["rounds"] == 3
    assert summary["stopped"]["after"] == 3
    assert summary["stopped"]["planned"] == 8
    entries = Ledger(ledger_path(tmp_path / "out", "east")).entries()
    training = [entry.round for entry in entries if "/" not in entry.run]
    assert training == [1, 2, 3]
    assert len(entries) == (6 if told else 3)
    privacy = json.loads((tmp_path / "out" / "privacy.json").read_text())
    words = privacy["selection"]
    assert "stopped after round 3 of 8" in words
    assert ("told with noise" in words) == told
    assert ("Of the validation records nothing is promised" in words) != told
    page = (tmp_path / "out" / "privacy.md").read_text()
    assert "stopped after round 3 of 8" in page
    site = privacy["sites"]["east"]
    assert site["steps"] == 6
    assert site["planned"]["steps"] == 16


@pytest.mark.parametrize("trust", ["site", "distributed"])
def test_a_length_that_releases_chose_is_bounded_by_the_whole_plan(
    settings: Any, tmp_path: Path, trust: str
) -> None:
    """What was spent by the stop would be too little: the stop follows from what was released."""
    config = settings.config(**STALLED, privacy={**PRIVATE, "trust": trust})
    summary = run(config, tmp_path / "out")
    plan = site_plans(resolve(config))["east"]
    privacy = json.loads((tmp_path / "out" / "privacy.json").read_text())
    site = privacy["sites"]["east"]
    entries = Ledger(ledger_path(tmp_path / "out", "east")).entries()
    spent = epsilon([e.event for e in entries], delta=plan.delta, relation=plan.relation)
    assert spent < 0.8 * plan.epsilon
    for told in (
        site["epsilon"],
        site["epsilon_lifetime"],
        site["lifetime"]["epsilon"],
        summary["sites"]["east"]["epsilon"],
        site["epsilon_by_relation"][site_relation(privacy)],
    ):
        assert 0.98 * plan.epsilon < told <= 1.001 * plan.epsilon
    assert "whole plan" in privacy["selection"]
    fixed = settings.config(privacy={**PRIVATE, "trust": trust})
    run(fixed, tmp_path / "fixed")
    told = json.loads((tmp_path / "fixed" / "privacy.json").read_text())
    assert "by looking at private data" in told["selection"]


def site_relation(privacy: dict[str, Any]) -> str:
    return privacy["relation"]


def test_a_stopped_run_resumes_to_itself_and_one_cut_before_stops_where_it_would_have(
    settings: Any, tmp_path: Path
) -> None:
    config = settings.config(**STALLED)
    whole = run(config, tmp_path / "whole")
    before = tree(tmp_path / "whole")
    assert run(config, tmp_path / "whole", resume=True) == whole
    assert tree(tmp_path / "whole") == before
    for stop in (2, 3):
        with pytest.raises(KeyboardInterrupt):
            run(config, tmp_path / "out", observer=StopAt(stop), resume=stop > 2)
    again = run(config, tmp_path / "out", resume=True)
    assert again["adapter_digest"] == whole["adapter_digest"]
    assert rounds_told(tmp_path / "out") == [1, 2, 3]


def test_the_best_round_s_model_is_kept_over_a_stop(settings: Any, tmp_path: Path) -> None:
    """With a threshold that nothing reaches the best round is the first."""
    kept = {**STALLED, "train__keep": "best"}
    config = settings.config(**kept)
    with pytest.raises(KeyboardInterrupt):
        run(config, tmp_path / "out", observer=StopAt(3))
    summary = run(config, tmp_path / "out", resume=True)
    assert summary["stopped"]["kept_round"] == 1
    last = checkpoint.load(tmp_path / "out" / "checkpoint")
    workspace = open_workspace(resolve(config))
    rows = {"all": workspace.rows(POOLED, "validation")}
    first = json.loads((tmp_path / "out" / "metrics.jsonl").read_text().splitlines()[0])
    found = workspace.task.metrics_by_group(last.final, rows)["all"]
    assert found["loss"] == pytest.approx(first["loss"], rel=1e-6)
    assert last.final.digest() == summary["adapter_digest"] != last.shown.digest()
    assert run(config, tmp_path / "out", resume=True) == summary
    whole = run(settings.config(train__keep="best"), tmp_path / "whole")
    rows = [
        json.loads(line) for line in (tmp_path / "whole" / "metrics.jsonl").read_text().splitlines()
    ]
    least = min(rows, key=lambda row: row["loss"])["round"]
    assert whole["stopped"]["kept_round"] == least
    assert whole["rounds"] == 3


def test_baselines_go_through_all_rounds(settings: Any, tmp_path: Path) -> None:
    from hushtune.simulations.baselines import trained_baselines

    config = resolve(settings.config(**{**STALLED, "train__keep": "best"}, privacy=PRIVATE))
    for other in trained_baselines(config).values():
        assert other.train.patience is None
        assert other.train.keep == "last"
    plain = {k: v for k, v in STALLED.items() if "patience" not in k and "min_" not in k}
    without = resolve(settings.config(**plain, privacy=PRIVATE))
    assert trained_baselines(without) == trained_baselines(config)


# --------------------------------------------------------------------------- what is refused ----

OWN = {
    "source": "sites",
    "labels": ["bad", "good"],
    "public_sizes": {"north": 60, "south": 60},
}
CLIENT = {"trust": "server", "unit": "client", "epsilon": 50.0, "delta": 0.1}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data": OWN}, "real sites"),
        ({"data": OWN, "metrics__release": "public"}, "real sites"),
        ({"privacy": CLIENT}, "all data of a client"),
        ({"privacy": {**CLIENT, "trust": "distributed"}}, "all data of a client"),
        ({"data__validation_fraction": 0.0}, "no validation rows"),
        ({"personal__method": "finetune"}, "train for themselves"),
    ],
    ids=["sites", "public", "server", "sums", "none", "own"],
)
@pytest.mark.parametrize(
    "judged_by", [{"train__patience": 3}, {"train__keep": "best"}], ids=["patience", "best"]
)
def test_a_choice_that_would_leak_is_refused(
    settings: Any, changes: dict[str, Any], words: str, judged_by: dict[str, Any]
) -> None:
    with pytest.raises(ConfigError, match=words):
        settings.config(**changes, **judged_by)


def test_what_goes_with_a_choice_and_what_does_not(settings: Any) -> None:
    settings.config(data=OWN, metrics__release="noised", train__patience=3, train__keep="best")
    settings.config(aggregation__rule="fedsa", train__patience=3)
    for changes, words in (
        ({"aggregation__rule": "fedsa", "train__keep": "best"}, "own part"),
        ({"train__watch": "metric"}, "early stopping"),
        ({"train__min_improvement": 0.1}, "early stopping"),
    ):
        with pytest.raises(ConfigError, match=words):
            settings.config(**changes)


def test_a_server_that_nobody_tells_anything_refuses_before_any_order(
    settings: Any, tmp_path: Path
) -> None:
    config = resolve(settings.config(**STALLED))
    state = open_workspace(config).initial_state
    with pytest.raises(ConfigError, match="nobody can tell"):
        federate(RunContext(config, tmp_path), None, initial=state)  # type: ignore[arg-type]


def test_test_rows_never_choose(settings: Any, tmp_path: Path) -> None:
    """Where rounding leaves no validation row the rounds are shown on test rows."""
    config = settings.config(**STALLED, data__validation_fraction=1e-6)
    with pytest.raises(TooFewRowsError, match="test rows choose nothing"):
        run(config, tmp_path / "out")
    assert not (tmp_path / "out").exists()
