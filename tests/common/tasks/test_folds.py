"""Folds: each unit is tested on once, labels in equal shares, groups whole, and sites left out."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune.common.config import DataConfig
from hushtune.common.errors import ConfigError, TooFewRowsError
from hushtune.common.tasks.data import load_data

from ...conftest import made_up_rows, write_csv


def loaded(file: Path, **changes: Any) -> Any:
    return load_data(DataConfig(file=file, site="site", **changes), seed=3)


def test_each_row_is_tested_on_once_and_labels_are_shared_alike(three_sites: Path) -> None:
    folds = [loaded(three_sites, folds=5, fold=k) for k in range(1, 6)]
    whole = loaded(three_sites)
    for site, split in whole.sites.items():
        everything = np.sort(np.concatenate([split.train, split.validation, split.test]))
        tested = [fold.sites[site].test for fold in folds]
        assert np.array_equal(np.sort(np.concatenate(tested)), everything)
        counts = [Counter(whole.labels[rows].tolist()) for rows in tested]
        for label in (0, 1):
            shares = [count[label] for count in counts]
            assert max(shares) - min(shares) <= 1
        assert max(map(len, tested)) - min(map(len, tested)) <= 1
        for fold in folds:
            part = fold.sites[site]
            held = [part.train, part.validation, part.test]
            assert np.array_equal(np.sort(np.concatenate(held)), everything)
            assert len(part.validation) == pytest.approx(0.1 * len(everything), abs=1)


def test_a_patient_is_in_one_part_of_each_fold(tmp_path: Path) -> None:
    rows = [
        (site, text, label, f"{site}-{place // 4}")
        for place, (site, text, label) in enumerate(made_up_rows({"north": 120, "south": 120}))
    ]
    file = write_csv(tmp_path / "rows.csv", rows, ("site", "text", "label", "patient"))
    for fold in (1, 2, 3):
        data = loaded(file, group="patient", folds=3, fold=fold)
        for split in data.sites.values():
            parts = [set(data.groups[p].tolist()) for p in (split.train, split.test)]
            assert not parts[0] & parts[1]
            assert not set(data.groups[split.validation].tolist()) & (parts[0] | parts[1])


def test_more_folds_than_rows_are_refused(three_sites: Path) -> None:
    with pytest.raises(TooFewRowsError, match="folds"):
        loaded(three_sites, folds=70, fold=70)


def test_a_site_that_is_left_out_is_in_nothing_but_its_own_rows(three_sites: Path) -> None:
    data, whole = loaded(three_sites, left_out="north"), loaded(three_sites)
    assert list(data.sites) == ["east", "south"]
    split = whole.sites["north"]
    everything = np.sort(np.concatenate([split.train, split.validation, split.test]))
    assert np.array_equal(data.left_out, everything)
    for site, kept in data.sites.items():
        assert np.array_equal(kept.train, whole.sites[site].train)
        assert data.fingerprints[site] == whole.fingerprints[site]
    assert any("north takes no part" in line for line in data.report.lines())
    with pytest.raises(ConfigError, match="no site"):
        loaded(three_sites, left_out="west")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"data__folds": 3}, "one of several"),
        ({"data__folds": 3, "data__fold": 4}, "one of several"),
        ({"data__fold": 1}, "one of several"),
        ({"data__folds": 3, "data__fold": 1, "data__left_out": "north"}, "or sites"),
        ({"data__folds": 2, "data__fold": 1, "data__validation_fraction": 0.5}, "leave nothing"),
    ],
    ids=str,
)
def test_settings_that_are_no_fold(settings: Any, changes: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        settings.config(**changes)
    own = {"source": "sites", "labels": ["a", "b"], "public_sizes": {"x": 9, "y": 9}}
    with pytest.raises(ConfigError, match="only their sites"):
        settings.config(data={**own, "left_out": "x"})
