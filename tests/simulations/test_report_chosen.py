"""What a study is held against: a head that adapters differ from in several settings."""

from __future__ import annotations

import csv
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from hushtune.simulations import report
from hushtune.simulations.reporting.combinations import against_chosen, combinations_of
from hushtune.simulations.reporting.comparisons import holm
from hushtune.simulations.reporting.reading import read_study
from hushtune.simulations.reporting.references import all_data, references
from hushtune.simulations.reporting.views import view

from ..conftest import Command
from . import studies

pytestmark = pytest.mark.pictures


def row(
    name: str, settings: Mapping[str, Any], seed: int, value: float, epsilon: float = 3.0
) -> Any:
    return studies.done(name, settings, seed, studies.summary(value, epsilon=epsilon))


def heads_and_adapters(tmp_path: Path, seeds: int = 6) -> Path:
    """A head, and adapters that differ from it in several settings, on which no line agrees."""
    rows = [
        row(
            f"{name} seed={seed}",
            {"adapter.rank": rank, "model.layer": layer, "privacy.epsilon": epsilon},
            seed,
            0.7 + 0.02 * seed + more + 0.001 * (seed % 3) * (rank or 0),
            epsilon=epsilon,
        )
        for seed in range(seeds)
        for name, rank, layer, epsilon, more in (
            ("head", None, 4, 3.0, 0.0),
            ("rank 1", 1, 6, 3.0, 0.0),
            ("rank 8", 8, 5, 3.0, 0.05),
            ("head, more", None, 4, 8.0, 0.2),
            ("rank 8, more", 8, 5, 8.0, 0.15),
        )
    ]
    return studies.write(tmp_path, rows)


def test_all_are_tested_against_what_was_chosen_at_the_same_epsilon(tmp_path: Path) -> None:
    folder = heads_and_adapters(tmp_path)
    assert against_chosen(view(read_study(folder))) == []
    (folder / "study.toml").write_text('against = ["head", "head, more"]\n', encoding="utf-8")
    found = against_chosen(view(read_study(folder)))
    told = {(one.condition, one.first, one.second): one for one in found}
    assert list(told) == [
        ("epsilon 3", "rank 1", "head"),
        ("epsilon 3", "rank 8", "head"),
        ("epsilon 8", "rank 8, more", "head, more"),
    ]
    one = told["epsilon 3", "rank 8", "head"]
    assert one.difference.n == 6
    assert one.difference.mean == pytest.approx(0.05 + 0.008)
    assert one.verdict.startswith("rank 8 is better")
    assert told["epsilon 8", "rank 8, more", "head, more"].verdict.startswith("head, more is")
    # They are a family of three.
    assert [each.held_t for each in found] == holm([each.p_t for each in found])
    made = report(folder)
    page = made.page.read_text(encoding="utf-8")
    assert page.count("Every combination against those that were named") == 1
    with (folder / "report" / "comparisons.csv").open(encoding="utf-8", newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["family"] == "chosen"]
    assert [(row["first"], row["second"]) for row in rows] == [key[1:] for key in told]
    assert float(rows[1]["p_t_holm"]) == one.held_t


def test_two_that_were_chosen_are_tested_once(tmp_path: Path) -> None:
    folder = heads_and_adapters(tmp_path)
    found = replace(read_study(folder), against=("rank 1", "head", "gone"))
    pairs = [(one.first, one.second) for one in against_chosen(view(found))]
    assert pairs == [("head", "rank 1"), ("rank 8", "rank 1"), ("rank 8", "head")]


def test_other_data_are_no_comparison(tmp_path: Path) -> None:
    rows = [
        row(f"{name} seed={seed}", {"data.sites": sites}, seed, 0.7 + seed / 10)
        for seed in (0, 1, 2)
        for name, sites in (("few", 2), ("many", 8))
    ]
    found = replace(read_study(studies.write(tmp_path, rows)), against=("few",))
    assert against_chosen(view(found)) == []


def test_the_command_takes_what_is_tested_against(tmp_path: Path, hushtune: Command) -> None:
    folder = heads_and_adapters(tmp_path, seeds=2)
    (folder / "study.toml").write_text('against = ["head"]\n', encoding="utf-8")
    answer = hushtune("report", folder, "--against", "rank 8", "--against", "rank 8, more")
    assert answer.status == 0, answer.err
    with (folder / "report" / "comparisons.csv").open(encoding="utf-8", newline="") as file:
        chosen = [row["second"] for row in csv.DictReader(file) if row["family"] == "chosen"]
    assert chosen == ["rank 8", "rank 8", "rank 8, more"]
    answer = hushtune("report", folder, "--against", "rank 9")
    assert answer.status == 2
    assert "rank 9" in answer.err
    assert "one of: head; rank 1; rank 8" in " ".join(answer.err.split())


def test_no_mean_mixes_runs_with_and_without_privacy_wherever_their_names_have_the_seed(
    tmp_path: Path,
) -> None:
    """A grid that names the seed first puts it into the middle of a name, or leaves it out."""
    for named in (True, False):
        rows = [
            studies.done(
                f"{name} seed={seed} learning_rate={rate}" if named else f"{len(name)}{seed}{rate}",
                {"privacy.trust": trust, "train.learning_rate": rate},
                seed,
                studies.summary(value + rate, epsilon=None if trust == "off" else 3.0, trust=trust),
            )
            for name, trust, value in (("private", "site", 0.6), ("open", "off", 0.7))
            for seed in (0, 1)
            for rate in (0.05, 0.01)
        ]
        found = combinations_of(view(read_study(studies.write(tmp_path / str(named), rows))))
        assert [len(points) for points in found.values()] == [2] * 4
        assert all(len({point.is_private for point in points}) == 1 for points in found.values())
        if named:
            assert next(iter(found)) == "private learning_rate=0.05"


def test_two_settings_with_one_name_stay_apart(tmp_path: Path) -> None:
    rows = [
        row(f"mine seed={seed}", {"adapter.rank": rank}, seed, 0.6 + rank / 10)
        for rank in (1, 2)
        for seed in (0, 1)
    ]
    for number, each in enumerate(rows):  # a name of its own each, but for its seed the same
        each["name"] = " " * (number // 2) + each["name"]
    found = combinations_of(view(read_study(studies.write(tmp_path, rows))))
    assert [len(points) for points in found.values()] == [2, 2]


def test_what_no_epsilon_changes_is_one_figure_and_not_the_best_of_some(tmp_path: Path) -> None:
    rows = [
        studies.done(
            f"{epsilon} seed={seed}",
            {"privacy.epsilon": epsilon},
            seed,
            studies.summary(0.6, epsilon=epsilon, baselines={"pooled": value, "majority": 0.5}),
        )
        for epsilon, value in ((1.0, 0.76), (8.0, 0.81))
        for seed in (0, 1)
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    (data,) = all_data(shown)
    pooled = references(shown, data)["pooled"]
    assert {epsilon: each.estimate.mean for epsilon, each in pooled.items()} == {
        1.0: pytest.approx(0.785),
        8.0: pytest.approx(0.785),
    }
    assert {each.estimate.n for each in pooled.values()} == {2}
