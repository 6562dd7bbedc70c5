"""Pictures of utility: against epsilon, against each other setting, and as a map."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hushtune.common.pictures import explain, legible
from hushtune.simulations.reporting.intervals import Estimate, estimate, written
from hushtune.simulations.reporting.points import EPSILON, Point
from hushtune.simulations.reporting.references import (
    DRAWN,
    WITHOUT_EPSILON,
    Reference,
    References,
    drawn,
)
from hushtune.simulations.reporting.style import (
    COLOURS,
    MARKERS,
    SOFT,
    dodge,
    entries_of,
    epsilon_axis,
    grid,
    legend,
    line_style,
    metric_label,
    reference_style,
    shown,
    shown_lines,
    titled,
)
from hushtune.simulations.reporting.views import (
    MOST_LINES,
    Line,
    Panel,
    View,
    by_seed,
    epsilon_words,
    order,
    utility,
)


def draw_utility(view: View) -> Figure:
    """Utility against epsilon with intervals over seeds, beside every baseline there is."""
    panels = shown(view)
    told: dict[str, None] = {}
    figure, all_axes = grid(len(panels))
    for axes, panel in zip(all_axes, panels, strict=True):
        places = epsilon_axis(axes, view.epsilons)
        span = max(places.values()) / min(places.values())
        beside = drawn(view, [panel])
        told |= dict.fromkeys(beside)
        draw_references(axes, beside, places)
        lines = [line for line in panel.lines if line.label in shown_lines(view)]
        for number, line in enumerate(lines):
            curve(
                axes,
                line.curve(utility),
                {key: dodge(x, number, len(lines), span=max(span, 4)) for key, x in places.items()},
                **line_style(view, line.label),
            )
        titled(axes, panel.title)
    all_axes[0].set_ylabel(metric_label(view.study, "all sites' test rows"))
    entries = entries_of(view, references=[name for name in DRAWN if name in told])
    legend(figure, entries, names=[*shown_lines(view), *(panel.title for panel in panels)])
    return figure


def curve(
    axes: Axes,
    found: Mapping[float | None, Estimate],
    places: Mapping[float | None, float],
    *,
    color: str,
    marker: str,
    linestyle: str = "-",
) -> None:
    """Means with intervals; what has no privacy is not joined to the rest."""
    joined = [epsilon for epsilon in found if epsilon is not None]
    for part in (joined, [None] if None in found else []):
        if part:
            axes.errorbar(
                [places[epsilon] for epsilon in part],
                [found[epsilon].mean for epsilon in part],
                yerr=[found[epsilon].half or 0.0 for epsilon in part],
                color=color,
                marker=marker,
                linestyle=linestyle,
                markersize=6,
                linewidth=1.8,
                elinewidth=1.2,
                capsize=3,
                zorder=3,
            )


def draw_references(axes: Axes, beside: References, places: Mapping[float | None, float]) -> None:
    """What a panel is compared with.

    It goes across the panel where an epsilon makes no difference to it, or there is one alone; what
    is on record for one of several epsilons is a dash there.
    """
    for name, found in beside.items():
        means = [each.estimate.mean for each in found.values()]
        spots = [places[epsilon] for epsilon in found]
        if None in found and len(places) > 1 and name in WITHOUT_EPSILON:
            # Of runs without privacy, which learned by other settings, it is another figure.
            last = max(place for epsilon, place in places.items() if epsilon is not None)
            border = math.sqrt(last * places[None])
            low, high = axes.get_xlim()
            if len(found) > 1:
                axes.plot([low, border], means[:1] * 2, **reference_style(name))
            axes.plot([border, high], means[-1:] * 2, **reference_style(name))
        elif name in WITHOUT_EPSILON or len(places) == 1:
            axes.axhline(means[0], **reference_style(name))
        elif len(found) > 1:
            axes.plot(spots, means, **reference_style(name))
        else:
            reach = (max(places.values()) / min(places.values())) ** 0.06
            axes.plot([spots[0] / reach, spots[0] * reach], means * 2, **reference_style(name))


def draw_settings(view: View) -> Figure:
    """Utility against each setting but epsilon that was varied.

    Values are set at equal distances, numbers in their order. Means are over those combinations of
    the other settings, and seeds, that each value has, and intervals over seeds.
    """
    keys = settings_drawn(view)
    figure, all_axes = grid(len(keys), height=3.9)
    epsilons = view.epsilons[:MOST_LINES]
    beside = _of_one_epsilon(view)
    for axes, key in zip(all_axes, keys, strict=True):
        values = sorted({point.settings.get(key) for point in view.study.done}, key=order)
        numeric = all(isinstance(v, int | float) and not isinstance(v, bool) for v in values)
        spots = [float(number) for number in range(len(values))]
        for number, epsilon in enumerate(epsilons):
            found = balanced(view, key, epsilon)
            pairs = [(x, found[v]) for x, v in zip(spots, values, strict=True) if v in found]
            if pairs:
                axes.errorbar(
                    [x + 0.06 * (number - (len(epsilons) - 1) / 2) for x, _ in pairs],
                    [each.mean for _, each in pairs],
                    yerr=[each.half or 0.0 for _, each in pairs],
                    color=COLOURS[number],
                    marker=MARKERS[number],
                    linestyle="-" if numeric else "none",
                    capsize=3,
                    markersize=6,
                    label=epsilon_words(epsilon),
                )
        for name, each in beside.items():
            axes.axhline(each.estimate.mean, **reference_style(name))
        texts = {str(v) if v is not None else "as preset": None for v in values}
        axes.set_xticks(spots, [legible(texts)[text] for text in texts])
        axes.set_xlim(-0.5, len(values) - 0.5)
        if not numeric and (len(values) > 4 or max(map(len, texts)) > 12):
            axes.tick_params(axis="x", rotation=30)
        axes.set_xlabel(key)
    all_axes[0].set_ylabel(metric_label(view.study, "all sites' test rows"))
    handles, labels = all_axes[0].get_legend_handles_labels()
    entries = dict(zip(labels, handles, strict=True))
    legend(figure, entries | entries_of(view, references=beside, lines=()))
    return figure


def _of_one_epsilon(view: View) -> dict[str, Reference]:
    """The references of a study with one epsilon and one kind of data; else there are none."""
    if len(view.epsilons) > 1:
        return {}
    return {name: each for name, of in drawn(view, view.panels).items() for each in of.values()}


def settings_drawn(view: View) -> tuple[str, ...]:
    """The settings with a panel in ``draw_settings``: all but epsilon, six at most."""
    return tuple(key for key in view.study.keys if key != EPSILON)[:6]


def balanced(view: View, key: str, epsilon: float | None) -> dict[object, Estimate]:
    """The estimate of each value of a setting over what all of its values have in common."""
    others = [name for name in view.study.keys if name not in (key, EPSILON)]
    cells: dict[object, dict[tuple[str, int], list[Point]]] = {}
    for point in view.study.done:
        if point.epsilon == epsilon:
            rest = repr([point.settings.get(name) for name in others])
            cells.setdefault(point.settings.get(key), {}).setdefault((rest, point.seed), []).append(
                point
            )
    if not cells:
        return {}
    common = set.intersection(*(set(found) for found in cells.values()))
    return {
        value: estimate(list(by_seed([p for cell in common for p in found[cell]]).values()))
        for value, found in cells.items()
        if common
    }


def draw_map(view: View) -> Figure:
    """Mean utility by line and epsilon; the best of each epsilon in a frame."""
    panels = shown(view)
    labels = view.lines
    cells = [
        [[_at(panel, label, epsilon) for epsilon in view.epsilons] for label in labels]
        for panel in panels
    ]
    means = [c.mean for panel in cells for row in panel for c in row if c is not None]
    figure, all_axes = grid(
        len(panels),
        width=max(4.3, 1.5 + 0.85 * len(view.epsilons)),
        height=max(2.2, 0.8 + 0.5 * len(labels)),
    )
    low, high = min(means), max(means)
    names = legible(labels)
    image = None
    for axes, panel, rows in zip(all_axes, panels, cells, strict=True):
        values = [[math.nan if c is None else c.mean for c in row] for row in rows]
        image = axes.imshow(
            values, cmap="cividis", vmin=low, vmax=high if high > low else low + 1e-9, aspect="auto"
        )
        _cells(axes, view, rows, low=low, high=high)
        axes.set_xticks(
            range(len(view.epsilons)),
            ["none" if e is None else f"{e:g}" for e in view.epsilons],
        )
        axes.set_yticks(range(len(labels)), [names[label] for label in labels])
        axes.set_xlabel("epsilon (less is more private)")
        axes.grid(visible=False)
        axes.spines[:].set_visible(False)
        titled(axes, panel.title)
    assert image is not None
    bar = figure.colorbar(image, ax=all_axes, pad=0.015, fraction=0.05)
    bar.set_label(metric_label(view.study, "mean over seeds"))
    explain(figure, [*labels, *(panel.title for panel in panels)])
    return figure


def _cells(
    axes: Axes, view: View, rows: Sequence[Sequence[Estimate | None]], *, low: float, high: float
) -> None:
    """What is written into each cell, and the frame around the best of a column."""
    from matplotlib.patches import Rectangle

    pick = max if view.study.higher_is_better else min
    for column in range(len(view.epsilons)):
        told = [row[column].mean for row in rows if row[column] is not None]  # pyright: ignore[reportOptionalMemberAccess]
        best = pick(told) if told else None
        for place, row in enumerate(rows):
            cell = row[column]
            if cell is None:
                axes.text(column, place, "no run", ha="center", va="center", color=SOFT)
                continue
            share = 0.5 if high == low else (cell.mean - low) / (high - low)
            half = "" if cell.half is None else f"\n\N{PLUS-MINUS SIGN}{cell.half:.3f}"
            axes.text(
                column,
                place,
                f"{cell.mean:.3f}{half}",
                ha="center",
                va="center",
                fontsize=9,
                color="#000000" if share > 0.55 else "#ffffff",
            )
            if best is not None and written(cell.mean) == written(best) and len(told) > 1:
                frame = Rectangle(
                    (column - 0.47, place - 0.46), 0.94, 0.92, fill=False, edgecolor="#D55E00"
                )
                frame.set_linewidth(2.2)
                axes.add_patch(frame)


def _at(panel: Panel, label: str, epsilon: float | None) -> Estimate | None:
    line: Line | None = next((line for line in panel.lines if line.label == label), None)
    return None if line is None else line.curve(utility).get(epsilon)
