"""Reports of runs that are not alike: seeds that spend differently, seeded noise, own models."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest

from hushtune.simulations import report
from hushtune.simulations.reporting.combinations import against_chosen
from hushtune.simulations.reporting.reading import read_study
from hushtune.simulations.reporting.tables import between_lines
from hushtune.simulations.reporting.views import view
from hushtune.simulations.sweep.results import flat_row

from . import studies

pytestmark = pytest.mark.pictures


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_seeds_that_spend_differently_are_one_condition(tmp_path: Path) -> None:
    """As where it is drawn which sites take part: epsilon was not varied."""
    spent = {0: 2.4832, 1: 2.4831, 2: 2.9999}
    rows = [
        studies.done(
            f"{rule} {seed}",
            {"aggregation.rule": rule},
            seed,
            # What was calibrated meets its epsilon to many places, from below or from above.
            studies.summary(value + 0.01 * seed, epsilon=spent[seed] + over * (seed == 2)),
        )
        for rule, value, over in (("ffa", 0.7, 0.0), ("fedit", 0.72, 1.0000000002e-4))
        for seed in spent
    ]
    folder = studies.write(tmp_path, rows)
    (folder / "study.toml").write_text('against = ["rule ffa"]\n', encoding="utf-8")
    shown = view(read_study(folder))
    assert shown.epsilons == (3.0,)
    (test,) = between_lines(shown)
    assert (test.condition, test.difference.n) == ("epsilon 3", 3)
    (chosen,) = against_chosen(shown)
    assert (chosen.condition, chosen.difference.n) == ("epsilon 3", 3)
    report(folder)
    means = rows_of(folder / "report" / "means.csv")
    assert [(row["epsilon"], row["utility_seeds"]) for row in means] == [("3.0", "3")] * 2
    told = rows_of(folder / "report" / "runs.csv")
    assert {row["epsilon_spent"] for row in told} >= {"2.4832", "2.4831"}


def test_noise_from_a_seed_promises_nothing_and_the_page_says_so(tmp_path: Path) -> None:
    rows: list[Any] = []
    for epsilon in (1.0, 3.0):
        found = studies.summary(0.7 + 0.01 * epsilon, epsilon=epsilon)
        for site in found["sites"].values():
            site["epsilon"] = None
        rows.append(studies.done(f"run {epsilon}", {"privacy.epsilon": epsilon}, 0, found))
    rows.append(studies.done("sound", {"privacy.epsilon": 8.0}, 0, studies.summary(0.8)))
    folder = studies.write(tmp_path, rows)
    shown = view(read_study(folder))
    assert shown.epsilons == (1.0, 3.0, 8.0)  # by noise they stay apart
    page = report(folder).page.read_text(encoding="utf-8")
    assert "<strong>NO PRIVACY</strong> in 2 of the 3 runs" in page
    assert "insecure_seeded_noise" in page
    assert [row["epsilon_spent"] for row in rows_of(folder / "report" / "runs.csv")][:2] == ["", ""]


def test_figures_are_of_the_one_model_where_sites_have_their_own_too(tmp_path: Path) -> None:
    """Own models fare worst at another site, which no row of the one model is to tell of."""
    rows = []
    for seed in (0, 1):
        found = studies.summary(0.7, epsilon=3.0)  # amazon 0.70, movie 0.71, news 0.72
        own = {"amazon": 0.9, "movie": 0.95, "news": 0.8}
        for site, value in own.items():
            found["sites"][site]["personal"] = value
        told = {"site": "news", "value": 0.8}
        found |= {"personal": 0.88 + 0.01 * seed, "worst_site": told, "spread": 0.15}
        rows.append(studies.done(f"run {seed}", {"privacy.epsilon": 3.0}, seed, found))
    folder = studies.write(tmp_path, rows)
    page = report(folder).page.read_text(encoding="utf-8")
    assert "s own model</th>" in page
    assert "federated, each site&#39;s own model" in page
    first = rows_of(folder / "report" / "runs.csv")[0]
    assert (first["worst_site"], float(first["worst_site_value"])) == ("amazon", 0.7)
    assert float(first["spread"]) == pytest.approx(0.02)
    assert float(first["own_models"]) == 0.88
    sites = rows_of(folder / "report" / "sites.csv")
    assert [float(row["own_model"]) for row in sites[:3]] == [0.9, 0.95, 0.8]
    (means,) = rows_of(folder / "report" / "means.csv")
    assert float(means["worst_site_mean"]) == pytest.approx(0.7)
    flat = flat_row({**rows[0], "point": "x"})
    assert (flat["worst_site"], flat["worst_value"], flat["own_models"]) == ("amazon", 0.7, 0.88)
    assert flat["spread"] == pytest.approx(0.02)
