"""How lines, references and axes look in all pictures of a report.

Okabe and Ito's colours, which the colour-blind can tell apart; each with a marker of its own, so
that a print without colour can be read as well.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.font_manager import FontProperties
from matplotlib.lines import Line2D
from matplotlib.textpath import TextToPath
from matplotlib.ticker import FixedLocator, NullLocator

from hushtune.common.names import metric_words
from hushtune.common.pictures import explanation, legible, squared
from hushtune.simulations.plots import BLACK, BLUE, ORANGE
from hushtune.simulations.reporting.points import Study
from hushtune.simulations.reporting.views import (
    MOST_LINES,
    MOST_PANELS,
    Panel,
    View,
    label_of,
)

COLOURS = (BLUE, ORANGE, "#009E73", "#CC79A7", "#E69F00", "#56B4E9", BLACK)
MARKERS = ("o", "s", "^", "D", "v", "P", "X")
SOFT = "#555555"
_LETTERS = 9
_LEAST_EPSILON = 1e-9
_REFERENCE_STYLES: Mapping[str, tuple[str, Any]] = {
    "majority": ("#999999", (0, (1, 2))),
    "alone_private": ("#777777", (0, (6, 2, 1, 2))),
    "head_private": ("#444444", (0, (5, 2))),
    "head_best": ("#444444", (0, (10, 3))),
    "pooled_private": ("#000000", (0, (3, 1, 1, 1, 1, 1))),
    "pooled": ("#000000", "-"),
}


def line_style(view: View, label: str) -> dict[str, Any]:
    """Colour and marker of a line, the same in all pictures of a report."""
    place = view.lines.index(label) % MOST_LINES
    return {"color": COLOURS[place], "marker": MARKERS[place]}


def reference_style(name: str) -> dict[str, Any]:
    """Thin, grey or black, and without a marker."""
    colour, dashes = _REFERENCE_STYLES[name]
    return {"color": colour, "linestyle": dashes, "linewidth": 1.1, "zorder": 1}


def shown(view: View) -> tuple[Panel, ...]:
    """The panels that a picture has room for."""
    return view.panels[:MOST_PANELS]


def shown_lines(view: View) -> tuple[str, ...]:
    """The labels of the lines that a picture has room for."""
    return view.lines[:MOST_LINES]


def grid(
    count: int, *, width: float = 4.3, height: float = 3.4, share: bool = True
) -> tuple[Figure, list[Axes]]:
    """A figure with so many panels, three in a row at most; `share`: one vertical axis for all."""
    columns = 2 if count == 4 or width > 5 else min(count, 3)
    columns = min(columns, count)
    rows = -(-count // columns)
    figure = Figure(figsize=(max(7.2, width * columns), height * rows + 1.0), layout="constrained")
    panels = figure.subplots(rows, columns, sharey=share, squeeze=False)
    axes: list[Axes] = list(panels.flat)
    for spare in axes[count:]:
        spare.set_visible(False)
    for each in axes[:count]:
        each.spines[["top", "right"]].set_visible(False)
        each.tick_params(labelleft=True)
        each.grid(axis="y", color="#e3e3e3", linewidth=0.8)
        each.set_axisbelow(True)
    return figure, axes[:count]


def positions(epsilons: Sequence[float | None]) -> dict[float | None, float]:
    """Where each epsilon is drawn: to a logarithmic scale, and no privacy a step to the right."""
    told = [max(epsilon, _LEAST_EPSILON) for epsilon in epsilons if epsilon is not None]
    places: dict[float | None, float] = {
        epsilon: max(epsilon, _LEAST_EPSILON) for epsilon in epsilons if epsilon is not None
    }
    if None in epsilons:
        if not told:
            places[None] = 1.0
        else:
            step = (told[-1] / told[0]) ** (1 / max(1, len(told) - 1))
            places[None] = told[-1] * max(step, 1.6)
    return places


def epsilon_axis(axes: Axes, epsilons: Sequence[float | None]) -> dict[float | None, float]:
    """Set the horizontal axis, and say where each epsilon is on it."""
    places = positions(epsilons)
    low, high = min(places.values()), max(places.values())
    axes.set_xscale("log")
    reach = 1.25 if low == high else (high / low) ** 0.08
    axes.set_xlim(low / reach, high * reach)
    labels = {place: "none" if eps is None else f"{eps:g}" for eps, place in places.items()}
    kept = _apart(sorted(labels))
    axes.xaxis.set_major_locator(FixedLocator(kept))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xticks(kept, [labels[place] for place in kept])
    none = "; none: no privacy" if None in epsilons else ""
    axes.set_xlabel(f"epsilon (less is more private{none})")
    return places


def _apart(places: Sequence[float]) -> list[float]:
    """Ticks that do not run into one another: at least a sixteenth of the axis between them."""
    if len(places) < 2:
        return list(places)
    least = (places[-1] / places[0]) ** (1 / 16)
    kept = [places[0]]
    for place in places[1:]:
        if place / kept[-1] >= least:
            kept.append(place)
    return kept


def better(study: Study) -> str:
    """Which way is better, for an axis.

    The arrow shows where better results are.
    """
    return (
        "higher is better \N{UPWARDS ARROW}"
        if study.higher_is_better
        else ("lower is better \N{DOWNWARDS ARROW}")
    )


def metric_label(study: Study, rows: str) -> str:
    """A vertical axis: the metric, whose rows, and which way is better."""
    return f"{metric_words(study.metric)}, {rows}\n({better(study)})"


def titled(axes: Axes, title: str) -> None:
    """A panel's title, cut so that it stays above its panel."""
    if title:
        axes.set_title(legible([title])[title] if len(title) < 40 else _wrapped(title), fontsize=10)


def _wrapped(title: str) -> str:
    import textwrap

    return "\n".join(textwrap.wrap(squared(title).replace("$", r"\$"), 44)[:3])


def legend(
    figure: Figure, entries: Mapping[str, Any], *, columns: int = 3, names: Iterable[str] = ()
) -> None:
    """One legend below all panels, in as many columns as are not wider than they are.

    ``names``: those in the picture that may need an ``explanation``, which stands above it.
    """
    told = explanation(names)
    if entries:
        # In points: the line, the gaps beside it, and the longest text.
        widest = 6 * _LETTERS + max(map(_text_width, entries))
        columns = max(1, min(columns, int(72 * figure.get_figwidth() / widest)))
        figure.legend(
            list(entries.values()),
            list(entries),
            loc="outside lower center",
            ncols=min(columns, len(entries)),
            frameon=False,
            fontsize=_LETTERS,
            handlelength=3.2,
            columnspacing=2.0,
            title=told or None,
            title_fontsize=8,
        )


def _text_width(text: str) -> float:
    """Of a text in a legend, in points."""
    letters = FontProperties(size=_LETTERS)
    width, _, _ = TextToPath().get_text_width_height_descent(text, letters, ismath=False)
    return float(width)


def entries_of(
    view: View,
    *,
    references: Iterable[str] = (),
    lines: Sequence[str] | None = None,
) -> dict[str, Line2D]:
    """What a legend of lines, all or some, and of references holds, by its text."""
    names = legible(shown_lines(view))
    found: dict[str, Line2D] = {}
    for label in shown_lines(view) if lines is None else lines:
        style = line_style(view, label)
        found[names[label]] = Line2D([], [], linewidth=2, markersize=6, **style)
    for name in references:
        found[label_of(view.study, name)] = Line2D([], [], **reference_style(name))
    return found


def dodge(place: float, number: int, of: int, *, span: float) -> float:
    """A place moved a little on a logarithmic axis, so that intervals do not hide one another."""
    return place * span ** ((number - (of - 1) / 2) * 0.018)
