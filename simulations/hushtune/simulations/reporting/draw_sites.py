"""Pictures of single sites: each of them, the one that fares worst, and how far apart they are."""

from __future__ import annotations

from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from hushtune.common.pictures import legible
from hushtune.simulations.plots import BLACK, GREY
from hushtune.simulations.reporting.draw_utility import curve
from hushtune.simulations.reporting.points import site_values
from hushtune.simulations.reporting.style import (
    COLOURS,
    MARKERS,
    dodge,
    entries_of,
    epsilon_axis,
    grid,
    legend,
    line_style,
    metric_label,
    shown_lines,
    titled,
)
from hushtune.simulations.reporting.views import MOST_LINES, MOST_PANELS, View, spread, worst


def draw_sites(view: View) -> Figure:
    """Every site's own figure against epsilon, a panel for each line of the main panel.

    Of more sites than there are colours all are grey; the worst of each run is dashed.
    """
    panel = view.main
    lines = [line for line in panel.lines if line.label in shown_lines(view)][:MOST_PANELS]
    names = legible(
        {site for line in lines for point in line.points for site in site_values(point.found)}
    )
    few = len(names) < MOST_LINES
    figure, all_axes = grid(len(lines))
    for axes, line in zip(all_axes, lines, strict=True):
        places = epsilon_axis(axes, view.epsilons)
        for number, site in enumerate(sorted(names)):
            found = line.curve(lambda point, site=site: site_values(point.found).get(site))
            told = [epsilon for epsilon in found if epsilon is not None]
            for part in (told, [None] if None in found else []):
                axes.plot(
                    [places[epsilon] for epsilon in part],
                    [found[epsilon].mean for epsilon in part],
                    color=COLOURS[number] if few else GREY,
                    marker=MARKERS[number] if few else ".",
                    linewidth=1.6 if few else 0.8,
                    markersize=5 if few else 3,
                )
        curve(axes, line.curve(worst), places, color=BLACK, marker="X", linestyle="--")
        titled(axes, ", ".join(part for part in (line.label, panel.title) if part))
    entries = {
        names[site]: Line2D([], [], color=COLOURS[number], marker=MARKERS[number])
        for number, site in enumerate(sorted(names))
        if few
    } or {f"each of {len(names)} sites": Line2D([], [], color=GREY, marker=".")}
    entries["worst site of each run"] = Line2D([], [], color=BLACK, marker="X", linestyle="--")
    all_axes[0].set_ylabel(metric_label(view.study, "the site's own test rows"))
    legend(
        figure,
        entries,
        columns=4,
        names=[*(names if few else ()), *(line.label for line in lines), panel.title],
    )
    return figure


def draw_spread(view: View) -> Figure:
    """The worst site, and the distance from the best to the worst, of each line."""
    panel = view.main
    figure, all_axes = grid(2, share=False)
    lines = [line for line in panel.lines if line.label in shown_lines(view)]
    for axes, value in zip(all_axes, (worst, spread), strict=True):
        places = epsilon_axis(axes, view.epsilons)
        span = max(4, max(places.values()) / min(places.values()))
        for number, line in enumerate(lines):
            moved = {key: dodge(x, number, len(lines), span=span) for key, x in places.items()}
            curve(axes, line.curve(value), moved, **line_style(view, line.label))
    all_axes[0].set_ylabel(metric_label(view.study, "the worst site's test rows"))
    all_axes[1].set_ylabel("best site less worst site\n(lower is more even \N{DOWNWARDS ARROW})")
    titled(all_axes[0], "Worst site")
    titled(all_axes[1], "Spread")
    entries = entries_of(view, lines=[line.label for line in lines])
    legend(figure, entries, names=shown_lines(view))
    return figure
