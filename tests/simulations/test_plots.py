"""The pictures: what is drawn of one site, of many, of one round, and of names without glyphs."""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hushtune.common import pictures
from hushtune.common.names import SEEN_BY
from hushtune.common.pictures import legible
from hushtune.common.tasks import partition
from hushtune.common.tasks.data import DataReport, LabelledRows
from hushtune.common.tasks.splits import Split
from hushtune.simulations.plots import draw_run, plot_run

pytestmark = pytest.mark.pictures

MANY = [f"site-{number:02}" for number in range(50)]
UNWRITABLE = "\U000f0000 clinic"  # a private character, for which no font has a glyph


def history(names: Sequence[str], *, rounds: int, warmup: int = 0) -> list[dict[str, Any]]:
    """Rounds in which each site spends more than the one before it."""
    return [
        {
            "round": number,
            "phase": "warmup" if number <= warmup else "adapter",
            "accuracy": 0.6,
            "sites": {name: {"accuracy": 0.5} for name in names},
            "epsilon": {name: number * (1.0 + place) for place, name in enumerate(names)},
        }
        for number in range(1, rounds + 1)
    ]


def summary(names: Sequence[str], **changes: Any) -> dict[str, Any]:
    told = {"task": "text-classification", "metric": "accuracy", "higher_is_better": True}
    told |= {"sites": dict.fromkeys(names), "trust": "site"}
    return {**told, "baselines": {"majority": 0.5}, "value": 0.6, **changes}


def drawn(names: Sequence[str], *, rounds: int = 3, warmup: int = 1, **changes: Any) -> Figure:
    return draw_run(history(names, rounds=rounds, warmup=warmup), summary(names, **changes))


def panel(figure: Figure, title: str) -> Axes:
    return next(axes for axes in figure.axes if axes.get_title() == title)


def legend(axes: Axes) -> list[str]:
    found = axes.get_legend()
    assert found is not None
    return [text.get_text() for text in found.get_texts()]


def data_of(names: Sequence[str], labels: Sequence[str] = ("bad", "good")) -> LabelledRows:
    """Three rows of each site."""
    sites = {
        name: Split(*(np.array([3 * place + part]) for part in range(3)))
        for place, name in enumerate(names)
    }
    numbers = np.arange(3 * len(names)) % len(labels)
    texts = tuple(map(str, numbers))
    return LabelledRows(
        texts, numbers, tuple(labels), sites, DataReport(), {}, strata=tuple(labels)
    )


def test_every_one_of_many_sites_is_drawn_and_the_largest_epsilon_told() -> None:
    figure = drawn(MANY)
    for title, total in (("Learning", "all sites"), ("Privacy", "the largest of any")):
        axes = panel(figure, title)
        assert legend(axes) == ["each of 50 sites", total]
        assert len([line for line in axes.get_lines() if len(line.get_xdata()) == 3]) == 51  # pyright: ignore[reportArgumentType]
    highest = [max(line.get_ydata()) for line in panel(figure, "Privacy").get_lines()]  # pyright: ignore
    assert max(highest) == highest[-1] == 3 * 50


@pytest.mark.parametrize("names", [["only"], list("abcdefg")])
def test_few_sites_are_named(names: list[str]) -> None:
    figure = drawn(names)
    assert legend(panel(figure, "Learning")) == [*names, "all sites"]
    assert legend(panel(figure, "Privacy")) == names


@pytest.mark.parametrize("names", [["only"], MANY])
def test_one_round_is_seen_and_ticked_as_one(names: list[str]) -> None:
    figure = drawn(names, rounds=1, warmup=0)
    for title in ("Learning", "Privacy"):
        axes = panel(figure, title)
        assert all(line.get_marker() == "o" for line in axes.get_lines())
        low, high = axes.get_xlim()
        assert [tick for tick in axes.get_xticks() if low <= tick <= high] == [1]


def test_the_phase_s_label_is_above_curves_and_legend() -> None:
    figure = drawn(["a", "b"])
    axes = panel(figure, "Learning")
    (text,) = [text for text in axes.texts if "LoRA" in text.get_text()]
    figure.draw_without_rendering()
    found = axes.get_legend()
    assert found is not None
    assert text.get_window_extent().y0 >= axes.get_window_extent().y1
    assert not text.get_window_extent().overlaps(found.get_window_extent())
    assert not text.get_window_extent().overlaps(axes.title.get_window_extent())


def test_a_run_that_was_not_evaluated_by_round_says_so() -> None:
    rows = [{"round": 1, "phase": "adapter", "epsilon": {"a": 1.0}}]
    axes = panel(draw_run(rows, summary(["a"])), "Learning")
    assert [text.get_text() for text in axes.texts] == ["not evaluated by round"]
    assert axes.get_legend() is None


def test_without_privacy_there_is_no_panel_for_it() -> None:
    figure = drawn(["a", "b"], trust="off")
    assert [axes.get_title() for axes in figure.axes] == ["Learning", "Comparison"]
    assert figure.get_suptitle().startswith("NO PRIVACY")
    assert "private" not in str([t.get_text() for t in figure.axes[1].get_yticklabels()])


def test_a_name_that_no_font_can_draw_is_numbered_and_no_one_is_warned(tmp_path: Path) -> None:
    names = ["münchen", "_u $x$", UNWRITABLE]
    partly = drawn(names)
    assert legend(panel(partly, "Privacy")) == [r" _u \$x\$", "münchen", "□ clinic"]
    assert partly.get_supxlabel() == pictures.SQUARES
    figure = drawn([*names[:2], UNWRITABLE[0]])
    assert legend(panel(figure, "Privacy")) == [r" _u \$x\$", "münchen", "#3"]
    assert figure.get_supxlabel() == pictures.NUMBERED
    assert drawn(names[:2]).get_supxlabel() == ""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plot_run(history(names, rounds=2), summary(names), tmp_path / "curve.png")
        partition.plot(data_of(names, ["bad", UNWRITABLE]), tmp_path / "sites.png")
    assert (tmp_path / "sites.png").stat().st_size > 1000


@pytest.mark.parametrize("number", [1, 4, 50, 400])
def test_bars_of_sites_fill_their_panel(number: int) -> None:
    (axes,) = partition.draw(data_of([f"site-{place:03}" for place in range(number)])).axes
    low, high = sorted(axes.get_ylim())
    assert high - low <= number + 0.3  # no blank bands above and below
    assert len(axes.patches) == 2 * number
    assert len(axes.get_yticks()) == (number if number < 100 else 0)


def test_long_names_are_cut_in_the_middle_and_stay_apart() -> None:
    long = [f"the clinic of a long and winding valley, ward {number}" for number in (1, 2)]
    alike = [f"the clinic of a long {middle} road in the valley, ward 3" for middle in "ab"]
    written = legible([*long, *alike, "short"])
    assert len(set(written.values())) == 5
    assert written["short"] == "short"
    assert all(written[name].endswith(name[-6:]) for name in long)
    assert all(len(text) <= 36 for text in written.values())


def test_equal_curves_leave_one_another_visible() -> None:
    """All sites have the same figures here: a solid line on top would hide the others."""
    lines = panel(drawn(["a", "b", "c"]), "Learning").get_lines()[:3]
    assert len({line.get_linestyle() for line in lines}) == 3
    widths = [line.get_linewidth() for line in panel(drawn(list("abcdefg")), "Privacy").get_lines()]
    assert widths == sorted(set(widths), reverse=True)  # the lower sticks out on both sides


@pytest.mark.parametrize("best", [0.6, 1.0])
def test_no_axis_of_accuracy_goes_above_one(best: float) -> None:
    rows = [{**row, "accuracy": best} for row in history(["a", "b"], rounds=3)]
    figure = draw_run(rows, summary(["a", "b"], value=best))
    axes = panel(figure, "Learning")
    assert best <= axes.get_ylim()[1] <= 1.0
    assert not any(line.get_clip_on() for line in axes.get_lines())  # marks at 1.0 are whole
    axes = panel(figure, "Comparison")
    assert max(axes.get_xticks()) == 1.0
    assert axes.spines["bottom"].get_bounds() == (0, 1)


def test_each_bar_has_its_own_site_s_name() -> None:
    (axes, *_) = partition.draw(data_of(["west", "east"])).axes
    assert [text.get_text() for text in axes.get_yticklabels()] == ["west", "east"]


def test_a_curve_of_figures_that_sites_sent_does_not_say_that_none_did() -> None:
    rows = history(["a", "b"], rounds=2)
    assert SEEN_BY in panel(draw_run(rows, summary(["a", "b"])), "Learning").get_xlabel()
    for noised in (True, False):
        rows[1]["released"] = {"noised": noised, "sites": {"b": {}}}
        label = panel(draw_run(rows, summary(["a", "b"])), "Learning").get_xlabel()
        assert (SEEN_BY in label) is noised
        assert ("1 of 2 sites told theirs without noise" in label) is not noised
