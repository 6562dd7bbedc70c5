"""The report of a study: what is read, computed, drawn, said not to be there, and refused."""

from __future__ import annotations

import csv
import json
import math
import statistics
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import BadValueError, CheckpointError, MissingFileError
from hushtune.simulations import report, run
from hushtune.simulations.reporting.comparisons import NOT_TOLD_APART, compare_pair, holm, judged
from hushtune.simulations.reporting.draw_costs import fronts
from hushtune.simulations.reporting.draw_utility import balanced, draw_map, draw_utility
from hushtune.simulations.reporting.intervals import estimate, front
from hushtune.simulations.reporting.reading import read_study
from hushtune.simulations.reporting.tables import between_lines, csv_text
from hushtune.simulations.reporting.views import utility, view

from ..conftest import Command, Settings
from . import studies

pytestmark = pytest.mark.pictures


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study with its report."""
    folder = studies.rules_by_epsilon(tmp_path_factory.mktemp("report") / "study")
    report(folder)
    return folder


def rows_of(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def test_an_interval_is_student_s_and_none_of_one_value() -> None:
    values = [0.80, 0.83, 0.79, 0.81, 0.82]
    found = estimate(values)
    half = 2.7764451051977987 * statistics.stdev(values) / math.sqrt(5)  # t, 4 degrees, 97.5 %
    assert found.half == pytest.approx(half, rel=1e-9)
    assert (found.n, estimate([0.8]).half) == (5, None)
    assert estimate([0.8, 0.9]).half is None  # it would be 0.64
    assert estimate([0.8, 0.9, 0.7]).half is not None


def test_the_front_leaves_out_what_is_beaten_in_both() -> None:
    assert front([(1, 0.5), (1, 0.4), (2, 0.4), (3, 0.1), (4, 0.2)]) == [1, 3]
    assert front([(1, 0.5), (1, 0.5)]) == [0, 1]


def test_pairs_tell_apart_what_means_over_seeds_hide(made: Path) -> None:
    found = {one.condition: one for one in between_lines(view(read_study(made)))}
    assert found["epsilon 8"].verdict.startswith("rule ffa is better")
    assert found["epsilon 1"].verdict == found["epsilon 3"].verdict == NOT_TOLD_APART
    one = found["epsilon 8"]
    assert one.difference.n == 4
    assert one.difference.mean == pytest.approx(-0.0530, abs=3e-3)
    # Unpaired, the spread of seeds would hide it.
    lines = view(read_study(made)).panels[0].lines
    spreads = [line.curve(utility)[8.0] for line in lines]
    assert all(each.half is not None and each.half > 0.05 for each in spreads)


def test_differences_are_of_equal_seeds_alone() -> None:
    found = compare_pair({1: 0.9, 2: 0.8, 5: 0.1}, {2: 0.7, 1: 0.7}, condition="", names=("a", "b"))
    assert found is not None
    assert found.difference.n == 2
    assert found.difference.mean == pytest.approx(0.15)
    assert compare_pair({1: 0.9}, {2: 0.9}, condition="", names=("a", "b")) is None


def test_p_values_are_corrected_for_their_number() -> None:
    assert holm([0.04, 0.01, None, 0.03]) == pytest.approx([0.06, 0.03, None, 0.06])
    first = {seed: 0.8 + 0.01 * seed for seed in range(6)}
    noise = (0.02, 0.03, 0.025, 0.018, 0.031, 0.024)
    second = {seed: first[seed] - noise[seed] for seed in range(6)}
    one = compare_pair(first, second, condition="x", names=("a", "b"))
    same = compare_pair(first, first, condition="x", names=("a", "a"))
    assert one is not None
    assert same is not None
    (alone,) = judged([one], higher_is_better=True)
    assert alone.verdict == "a is better"
    assert judged([one], higher_is_better=False)[0].verdict == "b is better"
    assert alone.p_ranks == alone.held_ranks == pytest.approx(2 / 2**6)
    # The same test among twenty: ranks of six pairs cannot tell any more, and the page says so.
    many = judged([one] * 20, higher_is_better=True)[0]
    assert many.held_ranks == pytest.approx(20 * 2 / 2**6)
    assert many.verdict == "a is better by the t test, not told apart by ranks"
    assert judged([same], higher_is_better=True)[0].verdict == NOT_TOLD_APART


def test_equal_differences_and_single_seeds_are_not_tested() -> None:
    always = compare_pair({1: 0.5, 2: 0.75}, {1: 0.25, 2: 0.5}, condition="", names=("a", "b"))
    once = compare_pair({1: 0.9}, {1: 0.2}, condition="", names=("a", "b"))
    assert always is not None
    assert once is not None
    told = [one.verdict for one in judged([always, once], higher_is_better=True)]
    assert told == ["the same difference at every seed: not tested", *told[1:]]
    assert told[1] == "one seed in common: not tested"


def test_all_is_written_and_says_the_same(made: Path) -> None:
    page = (made / "report.html").read_text(encoding="utf-8")
    names = ("utility", "map", "points", "front", "sites", "spread", "communication")
    for name in names:
        assert (made / "report" / f"{name}.png").read_bytes()[:4] == b"\x89PNG"
        assert b"</svg>" in (made / "report" / f"{name}.svg").read_bytes()
    assert page.count('src="data:image/svg+xml;base64,') == len(names)
    assert "24 runs done, 1 failed" in page
    assert "HT403 no amount of noise reaches this epsilon" in page
    assert "0" * 40 in page
    for told in ("each site alone, private", "head on frozen features, private", "pooled, private"):
        assert told in page
    runs = rows_of(made / "report" / "runs.csv")
    assert [row["status"] for row in runs] == ["done"] * 24 + ["failed"]
    assert runs[0]["baseline_head_private"] == "0.7"
    means = rows_of(made / "report" / "means.csv")
    values = [float(r["value"]) for r in runs[:24] if r["aggregation.rule"] == "ffa"]
    told = [float(r["utility_mean"]) for r in means if r["line"] == "rule ffa"]
    assert statistics.fmean(told) == pytest.approx(statistics.fmean(values))
    assert {row["utility_seeds"] for row in means} == {"4"}
    assert len(rows_of(made / "report" / "sites.csv")) == 24 * 3


def test_the_same_results_give_the_same_pictures(tmp_path: Path) -> None:
    rows = [studies.done(f"{seed}", {}, seed, studies.summary(0.6 + seed / 10)) for seed in (0, 1)]
    folder = studies.write(tmp_path, rows)
    first, again = ([path.read_bytes() for path in report(folder).pictures] for _ in range(2))
    assert first == again


def test_curves_are_at_their_means_with_their_references(made: Path) -> None:
    shown = view(read_study(made))
    figure = draw_utility(shown)
    axes = figure.axes[0]
    (line,) = (line for line in shown.panels[0].lines if line.label == "rule ffa")
    heights = [list(drawn.get_ydata()) for drawn in axes.get_lines()]  # pyright: ignore[reportArgumentType]
    assert [each.mean for each in line.curve(utility).values()] in heights
    for name in ("alone_private", "head_private", "pooled_private"):
        assert [studies.BASELINES[name]] * 3 in heights
    for name in ("majority", "pooled"):  # which no epsilon changes: across the panel
        assert [studies.BASELINES[name]] * 2 in heights
    (legend,) = figure.legends
    assert [text.get_text() for text in legend.get_texts()][:2] == ["rule fedit", "rule ffa"]
    assert "higher is better" in axes.get_ylabel()


def test_a_legend_is_within_its_picture(tmp_path: Path) -> None:
    rows = [
        studies.done(f"{n}", {"task.name": f"{n} " + "m" * 60}, n, studies.summary(0.6 + n / 10))
        for n in range(3)
    ]
    figure = draw_utility(view(read_study(studies.write(tmp_path, rows))))
    figure.draw_without_rendering()
    (legend,) = figure.legends
    box = legend.get_window_extent()
    assert box.x0 >= 0
    assert box.x1 <= figure.bbox.width


def test_an_error_is_better_the_lower_it_is(tmp_path: Path) -> None:
    rows = [
        studies.done(
            f"{rule}{seed}",
            {"aggregation.rule": rule},
            seed,
            studies.summary(value + 0.01 * seed, higher_is_better=False),
        )
        for rule, value in (("fedit", 1.5), ("ffa", 1.2))
        for seed in range(3)
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    assert [one.line for one in fronts(shown)[0]] == ["rule ffa"]
    assert "lower is better" in draw_map(shown).axes[-1].get_ylabel()
    page = report(tmp_path).page.read_text(encoding="utf-8")
    assert "Lower is better" in page
    assert "<td><bdi>rule ffa</bdi></td>" in page


def test_what_is_not_there_is_said(tmp_path: Path) -> None:
    one = studies.done("only", {}, 0, studies.summary(0.7))
    del one["bytes_up"], one["bytes_down"]
    made = report(studies.write(tmp_path, [one]))
    told = " ".join(made.not_drawn)
    for words in ("No curve over epsilon", "No comparison of rules", "No intervals", "No bytes"):
        assert words in told
    page = made.page.read_text(encoding="utf-8")
    assert "Nothing to compare" in page
    assert not (tmp_path / "report" / "map.png").exists()


def test_runs_on_other_data_do_not_beat_one_another(tmp_path: Path) -> None:
    rows = [
        studies.done(
            f"{source} {rule}",
            {"data.source": source, "aggregation.rule": rule},
            0,
            studies.summary(value),
        )
        for source, rule, value in (
            ("hard", "ffa", 0.5),
            ("hard", "fedit", 0.4),
            ("easy", "ffa", 0.9),
            ("easy", "fedit", 0.95),
        )
    ]
    found = fronts(view(read_study(studies.write(tmp_path, rows))))[0]
    assert [one.words for one in found] == ["rule fedit, source easy, epsilon 3"]
    only = [row for row in rows if row["settings"]["aggregation.rule"] == "ffa"]
    made = report(studies.write(tmp_path, only))
    assert "No Pareto fronts" in " ".join(made.not_drawn)
    assert "front.png" not in {path.name for path in made.pictures}


def test_nothing_spent_is_drawn_all_the_same(tmp_path: Path) -> None:
    rows = [
        studies.done(f"{epsilon}", {"adapter.rank": rank}, 0, studies.summary(0.6, epsilon=epsilon))
        for epsilon, rank in ((0.0, 1), (1.0, 2))
    ]
    made = report(studies.write(tmp_path, rows))
    assert made.done == 2
    assert "epsilon 0</" in made.page.read_text(encoding="utf-8")


def test_runs_without_privacy_stand_apart_and_are_told_loudly(tmp_path: Path) -> None:
    rows = [
        studies.done(
            f"{epsilon}",
            {"aggregation.rule": "ffa", "privacy.epsilon": epsilon},
            0,
            studies.summary(v, epsilon=epsilon),
        )
        for epsilon, v in ((1.0, 0.6), (3.0, 0.7), (None, 0.8))
    ]
    study = read_study(studies.write(tmp_path, rows))
    shown = view(study)
    assert shown.epsilons == (1.0, 3.0, None)
    ticks = [text.get_text() for text in draw_utility(shown).axes[0].get_xticklabels()]
    assert ticks == ["1", "3", "none"]
    assert "NO PRIVACY" in report(tmp_path).page.read_text(encoding="utf-8")


def test_without_privacy_no_epsilon_makes_a_run_another_one(tmp_path: Path) -> None:
    rows = [
        studies.done(
            f"{epsilon} {seed}",
            {"privacy.epsilon": epsilon, "privacy.trust": "off", "adapter.targets": ["a", "b"]},
            seed,
            studies.summary(0.6 + 0.1 * seed, epsilon=None),
        )
        for epsilon in (1.0, 3.0)
        for seed in (0, 1)
    ]
    (line,) = view(read_study(studies.write(tmp_path, rows))).panels[0].lines
    assert line.curve(utility)[None] == estimate([0.6, 0.7])


def test_a_mean_over_other_settings_takes_what_all_values_have(tmp_path: Path) -> None:
    rows = [
        studies.done(f"{rank} {rule}", {"adapter.rank": rank, "aggregation.rule": rule}, 0, found)
        for rank, rule, found in (
            (2, "ffa", studies.summary(0.6)),
            (8, "ffa", studies.summary(0.7)),
            (8, "fedit", studies.summary(0.1)),  # of rank 2 there is no such run
        )
    ]
    shown = view(read_study(studies.write(tmp_path, rows)))
    found = balanced(shown, "adapter.rank", 3.0)
    assert {value: each.mean for value, each in found.items()} == {2: 0.6, 8: 0.7}


def test_what_was_spent_is_rounded_up(tmp_path: Path) -> None:
    rows = [studies.done("a", {}, 0, studies.summary(0.7, epsilon=0.00012))]
    study = read_study(studies.write(tmp_path, rows))
    assert study.points[0].epsilon == 0.00012
    page = report(tmp_path).page.read_text(encoding="utf-8")
    assert '<td class="n">0.00012</td>' in page


def test_no_text_becomes_markup_or_formula(tmp_path: Path) -> None:
    bad = "<img src=x onerror=alert(1)>"
    found = studies.summary(0.7, sites=(bad, "</bdi>"))
    rows = [
        studies.done("=cmd()", {"task.x": bad}, 0, found),
        studies.failed("bad", {"task.x": "a"}, f"<script>{bad}"),
    ]
    folder = studies.write(tmp_path, rows)
    (folder / "study.toml").write_text(f'x = "{bad}"', encoding="utf-8")
    page = report(folder).page.read_text(encoding="utf-8")
    assert "<img src=x" not in page
    assert "<script" not in page
    assert page.count("&lt;img src=x onerror=alert(1)&gt;") >= 3
    assert rows_of(tmp_path / "report" / "runs.csv")[0]["name"] == "'=cmd()"
    assert csv_text([{"a": -0.5}]) == "a\n-0.5\n"


def test_a_study_that_is_still_written_is_read_without_its_last_line(tmp_path: Path) -> None:
    studies.write(tmp_path, [studies.done("a", {}, 0, studies.summary(0.7))])
    with (tmp_path / "results.jsonl").open("a", encoding="utf-8") as file:
        file.write('{"name": "ha')
    study = read_study(tmp_path)
    assert (study.cut, len(study.points)) == (True, 1)
    assert "was not whole" in report(tmp_path).page.read_text(encoding="utf-8")


def test_runs_without_a_row_are_counted(tmp_path: Path) -> None:
    studies.write(tmp_path, [studies.done("a", {}, 0, studies.summary(0.7))])
    for name in ("a", "b", "c"):
        (tmp_path / "points" / name).mkdir(parents=True)
    page = report(tmp_path).page.read_text(encoding="utf-8")
    assert "1 run done, 0 failed; of 2 more in points there is no row of results." in page


def test_of_a_run_that_was_repeated_the_last_result_counts(tmp_path: Path) -> None:
    rows = [studies.failed("a", {}, "disk full"), studies.done("a", {}, 0, studies.summary(0.7))]
    study = read_study(studies.write(tmp_path, rows))
    assert (len(study.done), len(study.failed)) == (1, 0)


@pytest.mark.parametrize(
    ("text", "kind"),
    [
        ("", MissingFileError),
        ('{"name": "a"}\n', CheckpointError),
        ("no json\n", CheckpointError),
        (
            '{"name":"a","settings":{},"seed":0,"status":"done","summary":{"value":1}}\n',
            CheckpointError,
        ),
        (json.dumps(studies.failed("a", {}, "x")) + "\n", BadValueError),
        (
            "".join(
                json.dumps(studies.done(f"{up}", {}, 0, studies.summary(0.7, higher_is_better=up)))
                + "\n"
                for up in (True, False)
            ),
            BadValueError,
        ),
    ],
)
def test_what_is_no_study_is_refused(text: str, kind: Any, tmp_path: Path) -> None:
    (tmp_path / "results.jsonl").write_text(text, encoding="utf-8")
    with pytest.raises(kind):
        report(tmp_path)
    assert not (tmp_path / "report.html").exists()


def test_the_command_tells_and_refuses(hushtune: Command, made: Path, tmp_path: Path) -> None:
    answer = hushtune("report", made, "--json")
    assert answer.status == 0
    told = json.loads(answer.out.splitlines()[-1])
    assert (told["done"], told["failed"]) == (24, 1)
    assert Path(told["page"]).is_file()
    refused = hushtune("report", tmp_path / "nowhere")
    assert refused.status == 2
    assert "HT201" in refused.err


def test_folders_of_real_runs_are_a_study(settings: Settings, tmp_path: Path) -> None:
    for name, rate in (("a", 0.01), ("b", 0.02)):
        config = settings.config(
            privacy={"trust": "site", "epsilon": 4.0, "delta": 1e-3},
            train__learning_rate=rate,
            train__rounds=1,
            train__warmup_rounds=0,
        )
        run(config, tmp_path / "points" / name)
    study = read_study(tmp_path)
    assert study.keys == ("train.learning_rate",)
    assert [point.seed for point in study.points] == [7, 7]
    assert all(point.num_bytes for point in study.points)
    summaries = [
        json.loads((tmp_path / "points" / name / "summary.json").read_text()) for name in "ab"
    ]
    assert [utility(point) for point in study.points] == [each["value"] for each in summaries]
    made = report(tmp_path)
    assert made.done == 2
    assert "learning rate 0.02" in made.page.read_text(encoding="utf-8")
