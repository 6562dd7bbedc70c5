"""Pictures of costs: which runs no other beats, what a run sends, and how long it takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hushtune.common.pictures import explain, legible
from hushtune.simulations.plots import BLACK
from hushtune.simulations.reporting.draw_utility import draw_references
from hushtune.simulations.reporting.intervals import Estimate, front, written
from hushtune.simulations.reporting.points import Point
from hushtune.simulations.reporting.references import WITHOUT_EPSILON, drawn
from hushtune.simulations.reporting.style import (
    COLOURS,
    SOFT,
    entries_of,
    epsilon_axis,
    grid,
    legend,
    line_style,
    metric_label,
    reference_style,
    shown_lines,
)
from hushtune.simulations.reporting.views import Panel, View, epsilon_words, utility

MOST_BARS = 16
_MEGABYTE = 1e6
_PARTS = ("training", "evaluation", "orchestration", "preparation", "baselines")
_REST = "loading and saving"
_HATCHES = ("", "///", "...", "xx", "\\\\\\", "oo")


@dataclass(frozen=True, kw_only=True)
class Setting:
    """The runs of one combination of settings: mean utility and costs over its seeds."""

    words: str
    line: str
    epsilon: float | None
    utility: Estimate
    megabytes: float | None
    seconds: float | None


def settings_of(view: View) -> list[Setting]:
    """All combinations that were run on the data of the first panel."""
    return [
        Setting(
            words=", ".join(
                part for part in (line.label, panel.title, epsilon_words(epsilon)) if part
            ),
            line=line.label,
            epsilon=epsilon,
            utility=line.curve(utility)[epsilon],
            megabytes=_mean(points, lambda p: None if p.num_bytes is None else p.num_bytes / 1e6),
            seconds=_mean(points, lambda p: p.seconds),
        )
        for panel in comparable(view)
        for line in panel.lines
        for epsilon, points in line.by_epsilon.items()
    ]


def comparable(view: View) -> tuple[Panel, ...]:
    """The panels of the data that the first one is of."""
    return tuple(panel for panel in view.panels if panel.data == view.panels[0].data)


def fronts(view: View) -> tuple[list[Setting], list[list[Setting]]]:
    """What no other combination beats: in utility at its epsilon; and at its bytes, of each epsilon
    and of what has no privacy for itself.

    By the means alone, which are uncertain.
    """
    sign = -1.0 if view.study.higher_is_better else 1.0
    found = settings_of(view)
    private = [one for one in found if one.epsilon is not None]
    by_epsilon = front([(one.epsilon or 0.0, sign * written(one.utility.mean)) for one in private])
    by_bytes: list[list[Setting]] = []
    for epsilon in view.epsilons:
        sent = [one for one in found if one.epsilon == epsilon and one.megabytes is not None]
        places = front([(one.megabytes or 0.0, sign * written(one.utility.mean)) for one in sent])
        by_bytes += [[sent[place] for place in places]] if sent else []
    return [private[place] for place in by_epsilon], by_bytes


def draw_front(view: View) -> Figure:
    """Utility against epsilon and against bytes, with the front of what is not beaten.

    The second panel is left out where no run has its bytes on record.
    """
    by_epsilon, by_bytes = fronts(view)
    panels = 1 + bool(by_bytes)
    figure, all_axes = grid(panels, height=4.2)
    places = epsilon_axis(all_axes[0], view.epsilons)
    found = settings_of(view)
    _scatter(all_axes[0], view, found, [by_epsilon], lambda one: places[one.epsilon])
    beside = drawn(view, comparable(view))
    draw_references(all_axes[0], beside, places)
    for name, of in beside.items():
        if by_bytes and (name in WITHOUT_EPSILON or len(view.epsilons) == 1):
            for level in {each.estimate.mean for each in of.values()}:
                all_axes[1].axhline(level, **reference_style(name))
    if by_bytes:
        sent = [one for one in found if one.megabytes is not None]
        _scatter(all_axes[1], view, sent, by_bytes, lambda one: one.megabytes or 0.0)
        all_axes[1].set_xlabel("megabytes sent in a run, both ways, all sites\n(less is better)")
        all_axes[1].set_xlim(0, 1.06 * max(one.megabytes or 0.0 for one in sent))
        if len(by_bytes) > 1:
            _name_ends(all_axes[1], by_bytes)
    all_axes[0].set_ylabel(metric_label(view.study, "all sites' test rows"))
    entries = entries_of(view, references=beside)
    entries["not beaten, by the means"] = _front_line()
    legend(figure, entries, names=shown_lines(view))
    return figure


def _name_ends(axes: Axes, by_bytes: Sequence[Sequence[Setting]]) -> None:
    """Say at the end of each front whose it is."""
    for part in by_bytes:
        axes.annotate(
            "no privacy" if part[-1].epsilon is None else f"ε {part[-1].epsilon:g}",
            (part[-1].megabytes or 0.0, part[-1].utility.mean),
            xytext=(-7, 7),
            textcoords="offset points",
            ha="right",
            fontsize=8,
            color=SOFT,
        )


def _scatter(
    axes: Axes,
    view: View,
    found: Sequence[Setting],
    unbeaten: Sequence[Sequence[Setting]],
    cost: Callable[[Setting], float],
) -> None:
    for one in found:
        if one.line in shown_lines(view):
            style = line_style(view, one.line)
            on_front = any(one in part for part in unbeaten)
            axes.plot(
                [cost(one)],
                [one.utility.mean],
                linestyle="none",
                markersize=8 if on_front else 5,
                alpha=1.0 if on_front else 0.6,
                markeredgecolor=BLACK if on_front else "none",
                zorder=4 if on_front else 3,
                **style,
            )
    for part in unbeaten:
        path = [(cost(one), one.utility.mean) for one in part]
        if path:
            axes.step(*zip(*path, strict=True), where="post", color=BLACK, linewidth=1.6, zorder=2)


def _front_line() -> Line2D:
    return Line2D(
        [], [], color=BLACK, linewidth=1.6, marker="o", markerfacecolor="white", markersize=7
    )


def draw_communication(view: View) -> Figure:
    """Bytes up and down of a run, and where its seconds went, by line and panel."""
    by_line = dict(list(_points_by_line(view).items())[:MOST_BARS])
    names = {name: fill(text, 30) for name, text in legible(by_line, most=56).items()}
    tall = 0.9 + 0.5 * len(by_line) + 0.15 * sum(text.count("\n") for text in names.values())
    figure, all_axes = grid(2, width=5.0, height=max(2.4, tall), share=False)
    traffic = {
        "to the server": _means(by_line, lambda p: _scaled(p.bytes_up)),
        "to the sites": _means(by_line, lambda p: _scaled(p.bytes_down)),
    }
    seconds = {
        part: _means(by_line, lambda p, part=part: p.found.get("seconds", {}).get(part))
        for part in _PARTS
    }
    seconds[_REST] = _means(by_line, _rest)
    _stacked(all_axes[0], traffic, [names[label] for label in by_line])
    all_axes[0].set_xlabel("megabytes in a run, all sites\n(less is better)")
    _stacked(all_axes[1], seconds, [names[label] for label in by_line])
    all_axes[1].set_xlabel("seconds on the clock\n(less is better)")
    for axes in all_axes:
        axes.grid(visible=False)
        axes.invert_yaxis()
    explain(figure, by_line)
    return figure


def _rest(point: Point) -> float | None:
    """What of a run's seconds is in none of the parts; nothing of one that was resumed or found,
    whose last process took less."""
    known = point.found.get("seconds")
    if point.seconds is None or not known:
        return None
    return max(0.0, point.seconds - sum(known.get(part) or 0.0 for part in _PARTS))


def _stacked(
    axes: Axes, parts: Mapping[str, Sequence[float | None]], labels: Sequence[str]
) -> None:
    ends = [0.0] * len(labels)
    told = {name: values for name, values in parts.items() if any(values)}
    for number, (name, values) in enumerate(told.items()):
        widths = [value or 0.0 for value in values]
        axes.barh(
            range(len(labels)),
            widths,
            left=ends,
            height=0.62,
            color=COLOURS[number],
            edgecolor="white",
            hatch=_HATCHES[number],
            label=name,
        )
        ends = [end + width for end, width in zip(ends, widths, strict=True)]
    for place, end in enumerate(ends):
        axes.text(end, place, f" {end:.3g}" if end else " not on record", va="center", fontsize=9)
    axes.set_yticks(range(len(labels)), list(labels))
    axes.set_xlim(0, max(ends) * 1.16 or 1)
    if told:
        axes.legend(
            loc="lower right", bbox_to_anchor=(1.0, 1.0), ncols=3, frameon=False, fontsize=9
        )


def _points_by_line(view: View) -> dict[str, Sequence[Point]]:
    """The runs of each line of each panel, of all epsilons."""
    return {
        ", ".join(part for part in (line.label, panel.title) if part): line.points
        for panel in view.panels
        for line in panel.lines
    }


def bars_left_out(view: View) -> int:
    """How many lines have no bar in ``draw_communication``."""
    return max(0, len(_points_by_line(view)) - MOST_BARS)


def _scaled(num_bytes: int | None) -> float | None:
    return None if num_bytes is None else num_bytes / _MEGABYTE


def _means(
    by_line: Mapping[str, Sequence[Point]], value: Callable[[Point], float | None]
) -> list[float | None]:
    return [_mean(points, value) for points in by_line.values()]


def _mean(points: Sequence[Point], value: Callable[[Point], float | None]) -> float | None:
    told = [found for point in points if (found := value(point)) is not None]
    return sum(told) / len(told) if told else None
