"""A picture of every combination of settings, below one another, by the names of the runs."""

from __future__ import annotations

from collections.abc import Mapping

from matplotlib.figure import Figure

from hushtune.common.pictures import explain, legible
from hushtune.simulations.plots import BLUE, GREY
from hushtune.simulations.reporting.combinations import combinations_of
from hushtune.simulations.reporting.intervals import Estimate, estimate
from hushtune.simulations.reporting.references import (
    DRAWN,
    WITHOUT_EPSILON,
    all_data,
    far_off,
    references,
)
from hushtune.simulations.reporting.style import SOFT, metric_label
from hushtune.simulations.reporting.views import View, by_seed, label_of

MOST_ROWS = 44
_LETTERS = 48


def draw_points(view: View) -> Figure:
    """Each combination's mean with its interval and a tick for each seed; baselines below."""
    groups = combinations_of(view)
    rows = [(name, points, None) for name, points in list(groups.items())[:MOST_ROWS]]
    beside = [(name, [], found) for name, found in _baselines(view).items()]
    figure = Figure(figsize=(7.6, 1.1 + 0.24 * (len(rows) + len(beside))), layout="constrained")
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(axis="x", color="#e3e3e3", linewidth=0.8)
    axes.set_axisbelow(True)
    for place, (_, points, given) in enumerate([*rows, *beside]):
        seeds = list(by_seed(points).values())
        found = given or estimate(seeds)
        colour = BLUE if given is None else GREY
        axes.plot(seeds, [place] * len(seeds), "|", color=colour, alpha=0.6, markersize=9)
        axes.errorbar(
            [found.mean],
            [place],
            xerr=[found.half or 0.0],
            color=colour,
            marker="o" if given is None else "D",
            markersize=5.5,
            capsize=3,
        )
    labels = legible([name for name, _, _ in [*rows, *beside]], most=_LETTERS)
    axes.set_yticks(range(len(labels)), [labels[name] for name, _, _ in [*rows, *beside]])
    explain(figure, labels)
    for label in axes.get_yticklabels()[len(rows) :]:
        label.set_color(SOFT)
    axes.invert_yaxis()
    axes.set_xlabel(metric_label(view.study, "all sites' test rows").replace("\n", " "))
    return figure


def _baselines(view: View) -> Mapping[str, Estimate]:
    """What all are compared with, by name and epsilon; none where runs learned from other data."""
    data = all_data(view)
    if len(data) != 1:
        return {}
    found: dict[str, Estimate] = {}
    for name, by_epsilon in references(view, data[0]).items():
        if name not in DRAWN or (name == "majority" and far_off(view)):
            continue
        label = label_of(view.study, name)
        if name in WITHOUT_EPSILON or len(view.epsilons) == 1:
            one = next(iter(by_epsilon.values())).estimate
            found[label] = one  # at every epsilon
            if None in by_epsilon and by_epsilon[None].estimate.mean != one.mean:
                found[f"{label}, beside runs without"] = by_epsilon[None].estimate
            continue
        for epsilon, each in by_epsilon.items():
            told = "no privacy" if epsilon is None else f"ε {epsilon:g}"
            found[f"{label.removesuffix(', private')}, {told}"] = each.estimate
    return found
