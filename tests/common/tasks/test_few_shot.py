"""Few-shot training: so many of each label at each site, whole units, and sizes that follow."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune.common.config import DataConfig
from hushtune.common.errors import ConfigError, TooFewRowsError
from hushtune.common.planning import site_plans
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.workspace import check_sizes, open_workspace, resolve
from hushtune.simulations import run

from ...conftest import made_up_rows, write_csv


def loaded(file: Path, *, seed: int = 3, **changes: Any) -> Any:
    return load_data(DataConfig(file=file, site="site", **changes), seed=seed)


def test_each_label_has_its_shots_and_the_rest_stays_whole(three_sites: Path) -> None:
    whole, few, more = (loaded(three_sites, **k) for k in ({}, {"shots": 3}, {"shots": 5}))
    for site in whole.sites:
        train = few.sites[site].train
        assert Counter(few.labels[train].tolist()) == {0: 3, 1: 3}
        assert set(train) <= set(more.sites[site].train) <= set(whole.sites[site].train)
        assert np.array_equal(few.sites[site].test, whole.sites[site].test)
        assert np.array_equal(few.sites[site].validation, whole.sites[site].validation)
    other = loaded(three_sites, shots=3, seed=4)
    assert any(set(other.sites[s].train) != set(few.sites[s].train) for s in whole.sites)
    assert any("few-shot: 3 training examples" in line for line in few.report.lines())
    assert whole.fingerprints == few.fingerprints  # a smaller draw is no new budget


def test_a_label_with_too_few_is_named_with_its_site(tmp_path: Path) -> None:
    rows = made_up_rows({"north": 40, "south": 40})
    rare = [row for row in rows if row[0] == "north" or row[2] == "bad"]
    rare += [row for row in rows if row[0] == "south" and row[2] == "good"][:6]
    file = write_csv(tmp_path / "rows.csv", rare)
    with pytest.raises(TooFewRowsError) as caught:
        loaded(file, shots=8)
    assert "'south'" in str(caught.value)
    assert "'good'" in str(caught.value)
    assert loaded(file, shots=3).sites["south"].train.size == 6


def test_of_groups_whole_groups_are_drawn(tmp_path: Path) -> None:
    """A patient in pieces would be two units, each with a promise of its own."""
    rows = [
        (site, text, label, f"{site}-{place // 4}-{label}")
        for place, (site, text, label) in enumerate(made_up_rows({"north": 240, "south": 240}))
    ]
    file = write_csv(tmp_path / "rows.csv", rows, ("site", "text", "label", "patient"))
    data = loaded(file, shots=4, group="patient")
    whole = loaded(file, group="patient")
    for site, split in data.sites.items():
        units = data.units(split.train)
        assert Counter(units.majority(data.labels).tolist()) == {0: 4, 1: 4}
        codes = set(data.groups[split.train].tolist())
        full = [row for row in whole.sites[site].train if whole.groups[row] in codes]
        assert sorted(split.train.tolist()) == sorted(full)


def test_public_sizes_follow_and_declared_ones_must_fit(settings: Any) -> None:
    private = {"trust": "site", "epsilon": 8.0, "delta": 1e-3}
    config = resolve(settings.config(data__shots=4, privacy=private))
    assert dict(config.data.public_sizes) == {"east": 8, "north": 8, "south": 8}
    check_sizes(config)
    assert {plan.denominator for plan in site_plans(config).values()} == {8 * 0.3}
    assert len(open_workspace(config).train_units("north")) == 8
    wrong = {"east": 8, "north": 8, "south": 9}
    with pytest.raises(ConfigError, match="does not fit"):
        check_sizes(settings.config(data__shots=4, data__public_sizes=wrong))
    own = {"source": "sites", "labels": ["bad", "good"], "shots": 4, "public_sizes": wrong}
    with pytest.raises(ConfigError, match="as many examples"):
        settings.config(data=own)


def test_a_few_shot_run_trains_and_figures_of_unknown_sizes_are_refused(
    settings: Any, tmp_path: Path
) -> None:
    summary = run(settings.config(data__shots=4), tmp_path / "out")
    assert {row["train_rows"] for row in summary["sites"].values()} == {8}
    assert summary["sites"]["north"]["test_rows"] == 16
    with pytest.raises(ConfigError, match="few-shot"):
        settings.config(data__shots=4, metrics__release="noised")
