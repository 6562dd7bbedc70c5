"""What a dry run says of a sweep: shared work is counted once, and each kind of it timed once."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hushtune.client import dp
from hushtune.common.planning import local_batch, site_plans
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Units
from hushtune.common.tasks.workspace import resolve
from hushtune.simulations import run
from hushtune.simulations.estimate import estimate
from hushtune.simulations.sweep.foresight import foresee
from hushtune.simulations.sweep.points import points_of
from hushtune.simulations.sweep.study_file import read_study
from hushtune.simulations.sweep.timing import Costs, Round, seconds_of

from ...conftest import Settings
from .test_study_file import study


def test_what_points_share_is_counted_at_the_first(settings: Settings, tmp_path: Path) -> None:
    file = study(
        settings,
        tmp_path,
        set={"privacy.trust": "site", "privacy.delta": 1e-3, "simulation.baselines": False},
        grid={"privacy.epsilon": [2.0, 4.0], "seed": [0, 1], "train.local_steps": [1, 2]},
    )
    points, _ = points_of(read_study(file), precision="float32")
    heard: list[tuple[int, int]] = []
    rows = foresee(points, told=lambda done, total: heard.append((done, total)))
    # One table of rows and one model, and two kinds of work: epsilon and seed make no other.
    assert heard == [(0, 3), (1, 3), (2, 3)]
    minutes = {
        (r["settings"]["privacy.epsilon"], r["seed"], r["steps"]): r["minutes"] for r in rows
    }
    for steps in {row["steps"] for row in rows}:
        assert minutes[4.0, 0, steps] == minutes[4.0, 1, steps]
    least = min(row["steps"] for row in rows)
    # A seed has a split, and so a workspace, of its own; the frozen model is passed once for all.
    first, second = minutes[2.0, 0, least], minutes[2.0, 1, least]
    assert first >= second > minutes[4.0, 1, least] > 0


def test_a_point_s_seconds_are_those_of_its_rounds_rows_and_baselines(
    settings: Settings, tmp_path: Path
) -> None:
    file = study(
        settings,
        tmp_path,
        set={"train.rounds": 5, "train.warmup_rounds": 3, "privacy.trust": "site"},
        grid={"privacy.delta": [1e-3], "simulation.baselines": [True, False]},
    )
    compared, plain = (p.config for p in points_of(read_study(file), precision="float32")[0])
    costs = Costs(
        warmup=Round(fixed=10.0, per_row=0.0), adapted=Round(fixed=1000.0, per_row=0.0), layers=0
    )
    nothing = Round(fixed=0.0, per_row=0.0)
    ends = seconds_of(plain, Costs(warmup=nothing, adapted=nothing, layers=0))
    own = 3 * 10.0 + 2 * 1000.0
    assert seconds_of(plain, costs) == pytest.approx(ends + own)
    sites = len(plain.data.public_sizes)
    # All sites alone are the rounds of one run; each pooled one is a run with a single site.
    pooled, head = 2 * own / sites, 5 * 10.0
    assert seconds_of(compared, costs) == pytest.approx(ends + own + head + own + pooled)
    more = Costs(warmup=costs.warmup, adapted=costs.adapted, layers=4)
    assert seconds_of(compared, more) == pytest.approx(ends + 2 * own + 5 * head + pooled)


def test_rows_count_by_the_batches_that_are_expected(settings: Settings, tmp_path: Path) -> None:
    fixed = {"train.rounds": 4, "train.warmup_rounds": 4, "simulation.baselines": False}
    file = study(settings, tmp_path, set=fixed, grid={"train.local_steps": [1, 3]})
    once, thrice = (p.config for p in points_of(read_study(file), precision="float32")[0])
    each = Round(fixed=0.0, per_row=1.0)
    costs = Costs(warmup=each, adapted=each, layers=0)
    free = Round(fixed=0.0, per_row=0.0)
    ends = seconds_of(once, Costs(warmup=free, adapted=free, layers=0))
    rows = seconds_of(once, costs) - ends
    plans = site_plans(once)
    expected = 4 * sum(local_batch(once, site, plan) for site, plan in plans.items())
    assert rows == pytest.approx(expected, rel=1e-3)
    assert seconds_of(thrice, costs) - ends == pytest.approx(3 * rows, rel=1e-3)


@pytest.mark.parametrize("trust", ["site", "distributed"])
def test_rows_are_those_that_a_run_draws_whoever_adds_the_noise(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trust: str
) -> None:
    """Each site's own, where the plan is of all sites together too."""
    how = {"train__rounds": 3, "train__warmup_rounds": 1, "train__sampling_probability": 1.0}
    config = resolve(settings.config(privacy__trust=trust, simulation__baselines=False, **how))
    drawn = list[int]()

    def counted(task: Task, units: Units, **given: Any) -> Any:
        drawn.append(len(units.rows))
        return sound(task, units, **given)

    sound = dp.clipped_sum
    monkeypatch.setattr(dp, "clipped_sum", counted)
    run(config, tmp_path / "run")
    costs = [
        Costs(warmup=each, adapted=each, layers=0)
        for each in (Round(fixed=0.0, per_row=1.0), Round(fixed=0.0, per_row=0.0))
    ]
    rows, ends = (seconds_of(config, of) for of in costs)
    assert rows - ends == pytest.approx(sum(drawn))
    steps = config.train.rounds * config.train.local_steps
    assert sum(drawn) == steps * sum(config.data.public_sizes.values())
    told = estimate(config)["sites"]
    assert {site: each["batch"] for site, each in told.items()} == pytest.approx(
        config.data.public_sizes
    )
