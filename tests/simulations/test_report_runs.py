"""Reports of runs that are not alike: seeds that spend differently, seeded noise, own models."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import pytest
from scipy.stats import wilcoxon

from hushtune.common import pictures
from hushtune.simulations import report
from hushtune.simulations.reporting.captions import PICTURES
from hushtune.simulations.reporting.combinations import against_chosen
from hushtune.simulations.reporting.comparisons import compare_pair
from hushtune.simulations.reporting.draw_costs import draw_communication, draw_front, fronts
from hushtune.simulations.reporting.draw_points import draw_points
from hushtune.simulations.reporting.draw_sites import draw_sites, draw_spread
from hushtune.simulations.reporting.draw_utility import draw_map, draw_utility
from hushtune.simulations.reporting.reading import read_study
from hushtune.simulations.reporting.tables import between_lines, compared
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


def test_a_seed_that_failed_leaves_the_others_comparable(tmp_path: Path) -> None:
    """What was asked for is the condition, whatever the seeds that are done spent."""
    spent = {0: 2.4832, 1: 2.4831, 2: 2.9999}
    rows: list[Any] = [
        studies.done(f"{rule} {seed}", {"aggregation.rule": rule}, seed, found)
        for rule in ("ffa", "fedit")
        for seed, epsilon in spent.items()
        for found in [studies.summary(0.7 + 0.01 * seed, epsilon=epsilon)]
    ]
    rows[-1] = studies.failed("fedit 2", {"aggregation.rule": "fedit"}, "no")
    for row in rows:  # in settings it may say "as preset"
        row["epsilon_asked"], row["settings"]["privacy.epsilon"] = 3.0, None
    shown = view(read_study(studies.write(tmp_path, rows)))
    assert shown.epsilons == (3.0,)
    assert [(one.condition, one.difference.n) for one in between_lines(shown)] == [("epsilon 3", 2)]


def test_noise_from_a_seed_is_not_averaged_with_none(tmp_path: Path) -> None:
    rows: list[Any] = []
    for trust, value in (("site", 0.7), ("off", 0.9)):
        found = studies.summary(value, epsilon=None, trust=trust)
        row = studies.done(trust, {"privacy.trust": trust}, 0, found)
        rows.append({**row, "epsilon_asked": 3.0})
    report(studies.write(tmp_path, rows))
    means = rows_of(tmp_path / "report" / "means.csv")
    assert [(row["epsilon"], float(row["utility_mean"])) for row in means] == [
        ("3.0", 0.7),
        ("", 0.9),
    ]


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
    assert page.count("those epsilons are promised to nobody") == page.count("<figcaption>")
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


def test_what_sends_less_is_no_better_at_another_epsilon(tmp_path: Path) -> None:
    """By bytes there is a front of each epsilon, and one of what has no privacy."""
    rows: list[Any] = []
    for rule, megabytes in (("ffa", 1), ("fedit", 2)):
        for epsilon, value in ((1.0, 0.6), (8.0, 0.7), (None, 0.8)):
            found = studies.summary(value + 0.01 * (rule == "fedit"), epsilon=epsilon)
            settings = {"aggregation.rule": rule, "privacy.epsilon": epsilon}
            row = studies.done(f"{rule} {epsilon}", settings, 0, found)
            rows.append({**row, "bytes_up": megabytes * 1_000_000, "bytes_down": 0})
    shown = view(read_study(studies.write(tmp_path, rows)))
    _, by_bytes = fronts(shown)
    assert [[(one.epsilon, one.line) for one in part] for part in by_bytes] == [
        [(epsilon, "rule ffa"), (epsilon, "rule fedit")] for epsilon in (1.0, 8.0, None)
    ]
    told = [text.get_text() for text in draw_front(shown).axes[1].texts]
    assert told == ["ε 1", "ε 8", "no privacy"]


def test_seconds_of_a_picture_are_those_of_the_table(tmp_path: Path) -> None:
    """Parts that runs tell of: 14 s; the process took 21.5 s of the clock."""
    rows = [
        studies.done(f"{seed}", {"adapter.rank": 1}, seed, studies.summary(0.7)) for seed in (0, 1)
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    axes = draw_communication(shown).axes[1]
    widths = {bars.get_label(): bars.patches[0].get_width() for bars in axes.containers}
    assert widths["loading and saving"] == pytest.approx(7.5)
    assert sum(widths.values()) == pytest.approx(21.5)
    # Of a run that was found finished the last process took no time, and parts stay what they were.
    found = [{**row, "seconds": 0.1} for row in rows]
    axes = draw_communication(view(read_study(studies.write(tmp_path, found)))).axes[1]
    assert "loading and saving" not in [bars.get_label() for bars in axes.containers]


@pytest.mark.parametrize(("seeds", "told"), [(2, ", without intervals (n = 2"), (3, " with 95 %")])
def test_captions_promise_no_interval_that_is_not_there(
    tmp_path: Path, seeds: int, told: str
) -> None:
    folder = studies.rules_by_epsilon(tmp_path, seeds=seeds)
    shown = view(read_study(folder))
    for name in ("utility", "map", "points", "sites", "spread"):
        (kind,) = (kind for kind in PICTURES if kind.name == name)
        assert told in kind.caption(shown) or name == "sites"
        rest = kind.caption(shown).replace(told, "")
        assert seeds > 2 or "interval" not in rest, rest


def test_what_no_epsilon_changes_stands_at_each(tmp_path: Path) -> None:
    """Baselines were trained with the runs of one epsilon alone."""
    rows = []
    for epsilon in (1.0, 3.0):
        found = studies.summary(0.7, epsilon=epsilon)
        if epsilon == 1.0:
            found["baselines"] = dict.fromkeys(found["baselines"])
        rows.append(studies.done(f"{epsilon}", {"privacy.epsilon": epsilon}, 0, found))
    (group,) = compared(view(read_study(studies.write(tmp_path, rows))))
    cells = {row.name: {e: c.mean for e, c in row.cells.items()} for row in group.rows}
    assert cells["pooled, no privacy"] == {1.0: 0.75, 3.0: 0.75}
    assert cells["pooled, private"] == {3.0: 0.72}


def test_equal_errors_are_told_once_line_by_line(tmp_path: Path) -> None:
    rows = [studies.done("good", {"adapter.rank": 1}, 0, studies.summary(0.7))]
    text = "no such module\ngiven: nonsense\ndo: name another"
    rows += [studies.failed(name, {"adapter.rank": 2}, text) for name in ("bad", "worse")]
    page = report(studies.write(tmp_path, rows)).page.read_text(encoding="utf-8")
    assert "<dt><bdi>bad; worse</bdi></dt>" in page
    assert page.count("given: nonsense") == 1
    assert "<bdi>HT403 no such module</bdi><br><bdi>given: nonsense</bdi><br>" in page


def test_one_name_may_be_tested_against_as_it_is(tmp_path: Path) -> None:
    rows = [
        studies.done(f"rank {rank} seed={seed}", {"adapter.rank": rank}, seed, studies.summary(0.7))
        for rank in (1, 2)
        for seed in (0, 1)
    ]
    folder = studies.write(tmp_path, rows)
    report(folder, against="rank 1")
    told = rows_of(folder / "report" / "comparisons.csv")
    assert ("chosen", "rank 2", "rank 1") in [(r["family"], r["first"], r["second"]) for r in told]


def test_letters_that_no_font_has_leave_a_name_readable(tmp_path: Path) -> None:
    rows = [
        studies.done(f"{name} seed=0", {"data.text": name}, 0, studies.summary(0.7))
        for name in ("rank \U000f0000 4", "\U000f0001", "plain")
    ]
    figure = draw_points(view(read_study(studies.write(tmp_path, rows))))
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels[:3] == ["rank \N{WHITE SQUARE} 4", labels[1], "plain"]
    assert labels[1].startswith("#")
    assert "by its place among all names" in figure.get_supxlabel()
    assert "a letter that no font here can draw" in figure.get_supxlabel()
    for name, told in (("ab \U000f0000", pictures.SQUARES), ("\U000f0000", pictures.NUMBERED)):
        rows = [
            studies.done(f"{rule} {text}", {"aggregation.rule": rule, "data.text": text}, 0, found)
            for rule in ("ffa", name)
            for text in ("plain", name)
            for found in [studies.summary(0.7)]
        ]
        shown = view(read_study(studies.write(tmp_path / "more", rows)))
        for draw in (draw_map, draw_communication):
            assert pictures.SQUARES in draw(shown).get_supxlabel(), (name, draw)
        assert pictures.SQUARES in above_legend(draw_utility(shown)), name
        # The number of a name that is lost altogether is told too, wherever it stands alone.
        one = view(read_study(site_called(tmp_path / "site", name)))
        assert told in above_legend(draw_sites(one))


def above_legend(figure: Any) -> str:
    (legend,) = figure.legends
    return legend.get_title().get_text()


def site_called(folder: Path, name: str) -> Path:
    found = studies.summary(0.7, sites=("plain", name))
    return studies.write(folder, [studies.done("run", {}, 0, found)])


def test_single_sites_are_of_private_runs_where_there_are_any(tmp_path: Path) -> None:
    """Runs without privacy, at a rate of their own, come first by it."""
    rows = [
        studies.done(f"{rate} {epsilon}", settings, 0, studies.summary(0.7, epsilon=epsilon))
        for epsilon, rate in ((1.0, 0.01), (8.0, 0.01), (None, 0.003))
        for settings in [
            {
                "privacy.epsilon": epsilon,
                "train.learning_rate": rate,
                "train.warmup_learning_rate": rate / 2,
            }
        ]
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    assert len(shown.panels) == 2
    assert [point.epsilon for point in shown.main.points] == [1.0, 8.0]
    for draw in (draw_sites, draw_spread):
        drawn = [line.get_xdata() for axes in draw(shown).axes for line in axes.get_lines()]
        assert any(len(places) == 2 for places in drawn), draw
    (kind,) = (kind for kind in PICTURES if kind.name == "sites")
    assert "Of the runs with warmup learning rate 0.005 alone" in kind.caption(shown)


def test_what_differs_by_less_than_float32_is_equal(tmp_path: Path) -> None:
    rows = [
        studies.done(f"{rule} {seed}", {"aggregation.rule": rule}, seed, studies.summary(value))
        for rule, value in (("ffa", 0.70833331), ("fedit", 0.70833334))
        for seed in (0, 1, 2)
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    (test,) = between_lines(shown)
    assert test.difference.mean == 0.0
    frames = [p for p in draw_map(shown).axes[0].patches if p.get_linewidth() > 2]
    assert len(frames) == 2  # both are the best
    assert [one.line for one in fronts(shown)[0]] == ["rule fedit", "rule ffa"]


def test_equal_differences_are_equal_to_the_last_bit(tmp_path: Path) -> None:
    """Fractions of 120 rows: always one row more, which no test can hold against its spread."""
    rows = [
        studies.done(
            f"{rule} {seed}", {"aggregation.rule": rule}, seed, studies.summary(right / 120)
        )
        for seed, right in enumerate((76, 83, 90))
        for rule, right in (("fedit", right + 1), ("ffa", right))
    ]
    (test,) = between_lines(view(read_study(studies.write(tmp_path, rows))))
    assert test.verdict == "the same difference at every seed: not tested"
    steps = (1, -1, 2, 1, -1, 2)
    one = {seed: (80 + 3 * seed + step) / 120 for seed, step in enumerate(steps)}
    other = {seed: (80 + 3 * seed) / 120 for seed in range(6)}
    found = compare_pair(one, other, condition="", names=("a", "b"))
    assert found is not None
    assert found.p_ranks == pytest.approx(wilcoxon(steps).pvalue)


def test_means_that_are_equal_are_both_best(tmp_path: Path) -> None:
    rows = [
        studies.done(
            f"{rule} {seed}", {"aggregation.rule": rule}, seed, studies.summary(right / 120)
        )
        for rule, of in (("ffa", (80, 80, 80)), ("fedit", (70, 80, 90)))
        for seed, right in enumerate(of)
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    assert len([p for p in draw_map(shown).axes[0].patches if p.get_linewidth() > 2]) == 2
    assert len(fronts(shown)[0]) == 2


def test_single_sites_are_of_lines_that_pictures_have_room_for(tmp_path: Path) -> None:
    settings = [
        *((None, 0.001 * rate, 5) for rate in range(1, 8)),
        *((3.0, rate, 24) for rate in (0.02, 0.03)),
    ]
    rows = [
        studies.done(
            f"{number}",
            {"train.learning_rate": rate, "train.rounds": rounds, "privacy.epsilon": epsilon},
            0,
            studies.summary(0.7, epsilon=epsilon),
        )
        for number, (epsilon, rate, rounds) in enumerate(settings)
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    for draw in (draw_sites, draw_spread):
        assert any(axes.get_lines() for axes in draw(shown).axes)


def test_pooled_training_that_runs_without_privacy_alone_have_stands_at_none(
    tmp_path: Path,
) -> None:
    rows = []
    for epsilon in (1.0, 8.0, None):
        found = studies.summary(0.7, epsilon=epsilon)
        if epsilon is not None:
            found["baselines"] |= {"pooled": None, "pooled_private": None}
        rate = {"train.learning_rate": 0.01 if epsilon else 0.003}
        rows.append(studies.done(f"{epsilon}", {"privacy.epsilon": epsilon, **rate}, 0, found))
    axes = draw_utility(view(read_study(studies.write(tmp_path, rows)))).axes[0]
    (line,) = (line for line in axes.get_lines() if set(line.get_ydata()) == {0.75})
    assert min(line.get_xdata()) > 8.0


def test_pooled_training_of_other_settings_is_drawn_where_it_belongs(tmp_path: Path) -> None:
    """That of runs without privacy, beside these alone."""
    rows = []
    for epsilon, pooled in ((1.0, 0.8), (8.0, 0.8), (None, 0.75)):
        found = studies.summary(0.7, epsilon=epsilon)
        found["baselines"]["pooled"] = pooled
        rate = {"train.learning_rate": 0.01 if epsilon else 0.003}
        rows.append(studies.done(f"{epsilon}", {"privacy.epsilon": epsilon, **rate}, 0, found))
    shown = view(read_study(studies.write(tmp_path, rows)))
    names = [label.get_text() for label in draw_points(shown).axes[0].get_yticklabels()]
    assert {"pooled, no privacy", "pooled, no privacy, beside runs without"} <= {*names}
    axes = draw_utility(shown).axes[0]
    levels = {tuple(line.get_ydata()): line.get_xdata() for line in axes.get_lines()}
    private, none = levels[0.8, 0.8], levels[0.75, 0.75]
    assert private[0] < 1.0
    assert 8.0 < private[1] == none[0] < none[1]
