"""What a report sets beside each line: baselines on its data, and no mean of what was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune.simulations import report
from hushtune.simulations.reporting import references as module
from hushtune.simulations.reporting.build import PAGE
from hushtune.simulations.reporting.combinations import combinations_of
from hushtune.simulations.reporting.draw_costs import draw_communication, draw_front
from hushtune.simulations.reporting.draw_points import draw_points
from hushtune.simulations.reporting.draw_utility import draw_settings, draw_utility
from hushtune.simulations.reporting.reading import read_study
from hushtune.simulations.reporting.references import far_off, references
from hushtune.simulations.reporting.tables import compared, usual_seeds
from hushtune.simulations.reporting.views import View, view

from . import studies

pytestmark = pytest.mark.pictures

UNTRAINED = {"majority": 0.5, "untrained": 0.45}


def point(
    settings: Mapping[str, Any],
    value: float,
    *,
    seed: int = 0,
    baselines: Mapping[str, float] | None = None,
    **how: Any,
) -> Any:
    """A run, with baselines where it was compared with any."""
    found = studies.summary(value, baselines={**UNTRAINED, **(baselines or {})}, **how)
    return studies.done(f"{sorted(settings.items())} {seed}", settings, seed, found)


def shown(folder: Path, rows: Sequence[Any]) -> View:
    return view(read_study(studies.write(folder, rows)))


def two_sources(*, seeds: int = 2) -> list[Any]:
    """Two rules and two ranks on two sources; only `fedit` of rank 2 has baselines, and each source
    its own."""
    values = {"easy": 0.8, "hard": 0.6}
    return [
        point(
            {"data.source": source, "aggregation.rule": rule, "adapter.rank": rank},
            value + 0.01 * seed + 0.02 * (rule == "ffa") + 0.04 * (rank == 8),
            seed=seed,
            baselines={"pooled_private": value + 0.1} if (rule, rank) == ("fedit", 2) else None,
        )
        for source, value in values.items()
        for rule in ("fedit", "ffa")
        for rank in (2, 8)
        for seed in range(seeds)
    ]


def test_every_line_has_a_mean_of_its_own(tmp_path: Path) -> None:
    groups = compared(shown(tmp_path, two_sources()))
    assert [group.title for group in groups] == ["source easy", "source hard"]
    told = {row.name: row.cells[3.0].mean for row in groups[1].rows if not row.is_baseline}
    assert told == pytest.approx(
        {
            "rule fedit, rank 2": 0.605,
            "rule ffa, rank 2": 0.625,
            "rule fedit, rank 8": 0.645,
            "rule ffa, rank 8": 0.665,
        }
    )
    (pooled,) = (row for row in groups[1].rows if row.name == "pooled, private")
    assert (pooled.note, pooled.cells[3.0].mean) == ("as rule fedit, rank 2", pytest.approx(0.7))


def heights(axes: Any) -> list[float]:
    """Where each line of a panel is, of those at one height."""
    return [round(float(line.get_ydata()[0]), 6) for line in axes.get_lines()]


def test_every_panel_has_the_baselines_of_its_own_data(tmp_path: Path) -> None:
    found = shown(tmp_path, two_sources())
    figure = draw_utility(found)
    assert [panel.title for panel in found.panels] == [
        "source easy, rank 2",
        "source easy, rank 8",
        "source hard, rank 2",
        "source hard, rank 8",
    ]
    for axes, pooled, other in zip(
        figure.axes, (0.9, 0.9, 0.7, 0.7), (0.7, 0.7, 0.9, 0.9), strict=True
    ):
        assert pooled in heights(axes)
        assert other not in heights(axes)
    assert 0.7 not in heights(draw_front(found).axes[0])  # of the first data alone
    assert not {0.7, 0.8, 0.9} & set(heights(draw_settings(found).axes[0]))  # of all data together


def test_of_several_lines_one_stands_for_a_baseline(tmp_path: Path) -> None:
    """The one that is hardest to beat, of those with most seeds: no mean over rules."""
    told = {"fedit": (0.70, 2), "ffa": (0.72, 2), "fedsb": (0.90, 1)}
    for higher, line in ((True, "rule ffa"), (False, "rule fedit")):
        rows = [
            point(
                {"aggregation.rule": rule},
                0.6,
                seed=seed,
                baselines={"pooled_private": pooled},
                higher_is_better=higher,
            )
            for rule, (pooled, seeds) in told.items()
            for seed in range(seeds)
        ]
        found = references(shown(tmp_path, rows), ())["pooled_private"][3.0]
        assert found.line == line
        assert found.estimate.mean == pytest.approx(told[line.removeprefix("rule ")][0])


def test_what_lines_are_compared_with_is_worked_out_once_a_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [
        point({"data.alpha": alpha}, 0.6, baselines={"pooled_private": 0.7}) for alpha in (0.1, 0.5)
    ]
    studies.write(tmp_path, rows)
    asked = list[object]()

    def counted(found: View, data: Any) -> Any:
        asked.append(data)
        return sound(found, data)

    sound = module._references  # pyright: ignore[reportPrivateUsage]
    monkeypatch.setattr(module, "_references", counted)
    report(tmp_path)
    assert len(asked) == len(set(asked)) == 2


def test_other_numbers_of_seeds_are_told(tmp_path: Path) -> None:
    rows = [
        point(
            {"aggregation.rule": rule},
            0.6,
            seed=seed,
            baselines={"pooled_private": 0.7} if seed == 0 and rule == "ffa" else None,
        )
        for rule in ("fedit", "ffa")
        for seed in range(3)
    ]
    groups = compared(shown(tmp_path, rows))
    assert usual_seeds(groups) == 3
    report(tmp_path)
    page = (tmp_path / PAGE).read_text(encoding="utf-8")
    assert "means over 3 seeds, or over n where that is told" in page
    assert page.count('0.700 <span class="soft">n = 1</span>') == page.count("n = 1</span>") == 1


def test_lines_on_other_data_share_no_baseline(tmp_path: Path) -> None:
    rows = [
        point({"data.source": source}, value, baselines={"pooled_private": value + 0.1})
        for source, value in (("easy", 0.8), ("hard", 0.6))
    ]
    found = shown(tmp_path, rows)
    assert not {0.7, 0.9} & set(heights(draw_utility(found).axes[0]))
    assert "Lines are of different data" in report(tmp_path).page.read_text(encoding="utf-8")


def test_lines_are_told_apart_by_what_can_be_compared(tmp_path: Path) -> None:
    rows = [
        point({"data.sites": sites, "adapter.rank": rank}, 0.6)
        for sites in (2, 4)
        for rank in (1, 8)
    ]
    assert shown(tmp_path, rows).primary == "adapter.rank"


@pytest.mark.parametrize("key", ["privacy.unit", "privacy.delta"])
def test_an_epsilon_that_promises_something_else_is_no_reference(key: str, tmp_path: Path) -> None:
    rows = [
        point(
            {key: value, "aggregation.rule": rule},
            0.6,
            baselines={"pooled_private": 0.7} if value == "a" else None,
        )
        for value in ("a", "b")
        for rule in ("fedit", "ffa")
    ]
    found = shown(tmp_path, rows)
    assert "pooled_private" in references(found, ((key, "a"),))
    assert "pooled_private" not in references(found, ((key, "b"),))


def test_a_baseline_of_one_epsilon_does_not_go_across_others(tmp_path: Path) -> None:
    rows = [
        point(
            {"privacy.epsilon": epsilon},
            0.6,
            epsilon=epsilon,
            baselines={"head_private": 0.65, "pooled": 0.7} if epsilon == 8.0 else None,
        )
        for epsilon in (1.0, 3.0, 8.0)
    ]
    axes = draw_utility(shown(tmp_path, rows)).axes[0]
    left = {
        height: min(line.get_xdata(orig=False))  # pyright: ignore[reportArgumentType]
        for height, line in zip(heights(axes), axes.get_lines(), strict=True)
    }
    assert left[0.65] > 3.0
    assert left[0.7] == 0.0  # as far as the axes reach


def test_what_is_too_far_off_is_not_drawn_and_said(tmp_path: Path) -> None:
    near = [point({"seed_of": 1}, value, baselines={"pooled": 0.7}) for value in (0.55,)]
    assert not far_off(shown(tmp_path / "near", near))
    far = [point({}, 0.80 + 0.01 * seed, seed=seed, baselines={"pooled": 0.82}) for seed in (0, 1)]
    found = shown(tmp_path / "far", far)
    assert far_off(found)
    assert 0.5 not in heights(draw_utility(found).axes[0])
    page = report(tmp_path / "far").page.read_text(encoding="utf-8")
    assert "too far off to be drawn" in page
    assert "most frequent label" in page  # in the table


def test_costs_are_of_one_combination_each(tmp_path: Path) -> None:
    rows = two_sources(seeds=1)
    for number, row in enumerate(rows):
        row["bytes_up"], row["bytes_down"] = (number + 1) * 1_000_000, 0
    axes = draw_communication(shown(tmp_path, rows)).axes[0]
    widths = sorted(bar.get_width() for bar in axes.patches)  # pyright: ignore[reportAttributeAccessIssue]
    assert widths == [float(n) for n in range(1, 9)]


def named(name: str, settings: Mapping[str, Any], value: float, seed: int, **how: Any) -> Any:
    return {**point(settings, value, seed=seed, **how), "name": f"{name} seed={seed}"}


def test_every_combination_has_a_row_and_every_baseline_of_an_epsilon(tmp_path: Path) -> None:
    rows = [
        named(name, {"adapter.rank": rank, "privacy.epsilon": epsilon}, value, seed, **how)
        for seed, value in ((0, 0.70), (1, 0.74))
        for name, rank, epsilon, how in (
            ("small", 1, 3.0, {"baselines": {"pooled_private": 0.72, "pooled": 0.75}}),
            ("large", 8, 3.0, {}),
            ("large, more", 8, 8.0, {"epsilon": 8.0, "baselines": {"pooled_private": 0.76}}),
        )
    ]
    found = shown(tmp_path, rows)
    assert {name: len(runs) for name, runs in combinations_of(found).items()} == {
        "small": 2,
        "large": 2,
        "large, more": 2,
    }
    (axes,) = draw_points(found).axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == [
        "small",
        "large",
        "large, more",
        "pooled, ε 3",
        "pooled, ε 8",
        "pooled, no privacy",
    ]
    means = [
        float(np.asarray(line.get_xdata())[0])
        for line in axes.lines
        if line.get_marker() in ("o", "D")
    ]
    assert means == pytest.approx([0.72, 0.72, 0.72, 0.72, 0.76, 0.75])


def test_runs_without_a_seed_in_their_names_are_told_by_their_settings(tmp_path: Path) -> None:
    found = shown(tmp_path, two_sources())
    names = list(combinations_of(found))
    assert len(names) == 8
    assert names[0] == "source easy, rule fedit, rank 2"
    labels = [each.get_text() for each in draw_points(found).axes[0].get_yticklabels()]
    assert len(labels) == 8  # two sources: what either is compared with says nothing of the other
