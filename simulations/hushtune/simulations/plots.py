"""The picture of a run: how it learned, what it spent, what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hushtune.common.names import SEEN_BY, methods, metric_words, told_as_they_are
from hushtune.common.pictures import explain, fonts, legible, save_picture

# Okabe and Ito's colours, safe for the colour-blind.
BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#999999", "#000000"
SITES = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
_MOST_SITES = len(SITES)
_LINES = ("-", "--", "-.", ":")
_MOST_MARKERS = 30


def plot_run(history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    """Draw learning curve, epsilon spent and comparison, side by side, into a PNG."""
    with fonts():
        save_picture(draw_run(history, summary), path, dpi=140)


def draw_run(history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> Figure:
    """The figure of ``plot_run``; without privacy it has no panel for it, and says so on top."""
    private = summary["trust"] != "off"
    losses = [row for row in history if "train" in row and "loss" in row]
    widths = (1.1, *((0.9,) if losses else ()), *((0.9,) if private else ()), 1.3)
    inches = (11, 15, 19)[len(widths) - 2]
    figure = Figure(figsize=(inches, 4.4), layout="constrained")
    panels: list[Axes] = list(figure.subplots(1, len(widths), width_ratios=widths))
    names = legible(summary["sites"])
    rows = [row for row in history if summary["metric"] in row]
    _curve(panels[0], rows, summary, names)
    if losses:
        _losses(panels[1], losses)
    if private:
        _spent(panels[-2], history, names)
    else:
        figure.suptitle("NO PRIVACY: this run added no noise", color=ORANGE, weight="bold")
    _bars(panels[-1], summary)
    for axes in panels:
        axes.spines[["top", "right"]].set_visible(False)
    for axes in panels[:-1]:
        axes.set_xlim(0.5, max([1, *(row["round"] for row in history)]) + 0.5)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    # Many sites share one line of the legend, and no name is drawn then.
    if len(names) <= _MOST_SITES:
        explain(figure, names)
    return figure


def _curve(
    axes: Axes,
    rows: Sequence[Mapping[str, Any]],
    summary: Mapping[str, Any],
    names: Mapping[str, str],
) -> None:
    metric = summary["metric"]
    of_sites: dict[str, list[tuple[int, float]]] = {}
    for name in sorted(names):
        of_sites[name] = [
            (row["round"], row["sites"][name][metric])
            for row in rows
            if name in row.get("sites", {})
        ]
    _sites(axes, of_sites, names)
    axes.plot(
        [row["round"] for row in rows],
        [row[metric] for row in rows],
        color=BLACK,
        linewidth=2.4,
        marker="o",
        markersize=4,
        label="all sites",
    )
    if not rows:  # a run of Flower's app, whose server has no rows to evaluate on
        text = axes.text(0.5, 0.5, "not evaluated by round", transform=axes.transAxes)
        text.set(ha="center", va="center", color="#666666")
    adapted = next((row["round"] for row in rows if row.get("phase") == "adapter"), None)
    if adapted is not None and adapted > 1:
        axes.axvline(adapted - 0.5, color=GREY, linestyle=":", linewidth=1)
        axes.text(  # above the panel, where no curve and no legend can be
            adapted - 0.5,
            1.025,
            f"LoRA from round {adapted}",
            transform=axes.get_xaxis_transform(),
            ha="right" if adapted > rows[-1]["round"] / 2 else "left",
            color="#666666",
            fontsize=8,
        )
    if summary["higher_is_better"]:
        # No such figure is above 1: nor is the axis, which then cuts no mark of a curve at 1.
        axes.set_ylim(top=min(1.0, axes.get_ylim()[1]))
    for line in axes.get_lines():
        line.set_clip_on(False)
    part = rows[0].get("evaluated_on", "held-out") if rows else "held-out"
    sent = sorted({site for row in rows for site in told_as_they_are(row.get("released"))})
    seen = SEEN_BY
    if sent:  # what they told is in metrics.jsonl, of some rounds only
        seen = f"the researcher's; {len(sent)} of {len(names)} sites told theirs without noise"
    axes.set(xlabel=f"round\n({seen})", ylabel=f"{metric_words(metric)} on {part} rows")
    axes.set_title("Learning", pad=16)
    if rows:
        axes.legend(frameon=False, fontsize=8)


def _losses(axes: Axes, rows: Sequence[Mapping[str, Any]]) -> None:
    """Loss on held-out rows, and on a sample of those that were trained on."""
    numbers = [row["round"] for row in rows]
    held_out = f"{rows[0].get('evaluated_on', 'held-out')} rows"
    shared: dict[str, Any] = {"linewidth": 2, "marker": "o", "markersize": 4}
    axes.plot(numbers, [row["loss"] for row in rows], color=BLACK, label=held_out, **shared)
    trained = [row["train"]["loss"] for row in rows]
    axes.plot(numbers, trained, color=BLUE, linestyle="--", label="training rows", **shared)
    axes.set(xlabel=f"round\n({SEEN_BY})", ylabel="loss, all sites")
    axes.set_title("Fit", pad=16)
    axes.legend(frameon=False, fontsize=8)


def _spent(axes: Axes, history: Sequence[Mapping[str, Any]], names: Mapping[str, str]) -> None:
    of_sites: dict[str, list[tuple[int, float]]] = {}
    for name in sorted(names):
        told = [(row["round"], row["epsilon"].get(name)) for row in history]
        of_sites[name] = [(number, value) for number, value in told if value is not None]
    _sites(axes, of_sites, names)
    if len(names) > _MOST_SITES:
        largest = [
            (row["round"], max(told))
            for row in history
            if (told := [value for value in row["epsilon"].values() if value is not None])
        ]
        if largest:
            style: dict[str, Any] = {"color": BLACK, "linewidth": 2, "markersize": 4}
            axes.plot(*zip(*largest, strict=True), marker="o", label="the largest of any", **style)
    axes.set(xlabel="round", ylabel="epsilon spent")
    axes.set_title("Privacy", pad=16)
    axes.set_ylim(bottom=0)
    axes.legend(frameon=False, fontsize=8)


def _sites(
    axes: Axes,
    of_sites: Mapping[str, Sequence[tuple[int, float]]],
    names: Mapping[str, str],
) -> None:
    """A line for each site: in colours by name, or of many all thin and grey under one label.

    Dashed in turn and each thinner than the one below it, so that one which lies upon another
    leaves that visible.
    """
    many = len(of_sites) > _MOST_SITES
    num_points = max(map(len, of_sites.values()), default=0)
    markers = num_points == 1 if many else num_points <= _MOST_MARKERS
    shared: str | None = f"each of {len(of_sites)} sites"
    for place, (name, points) in enumerate(of_sites.items()):
        if not points:
            continue
        axes.plot(
            *zip(*points, strict=True),
            color=GREY if many else SITES[place],
            alpha=0.5 if many else 1,
            linewidth=0.8 if many else 1.6 + 0.6 * (len(of_sites) - 1 - place),
            linestyle=_LINES[place % len(_LINES)] if not many else "-",
            marker="o" if markers else None,
            markersize=2 if many else 3,
            label=shared if many else names[name],
        )
        shared = None  # once in the legend


def _bars(axes: Axes, summary: Mapping[str, Any]) -> None:
    values = {**summary["baselines"], "federated": summary["value"]}
    labels = methods(private=summary["trust"] != "off", kind=summary["task"])
    names = [name for name in labels if values.get(name) is not None]
    places = range(len(names))
    bounded = summary["higher_is_better"]
    end = 1.0 if bounded else max(values[name] for name in names)
    colours = [ORANGE if name == "federated" else BLUE for name in names]
    axes.barh(places, [values[name] for name in names], color=colours, height=0.7)
    for place, name in zip(places, names, strict=True):
        at = max(values[name], 0.0) + 0.005 * end
        axes.text(at, place, f"{values[name]:.3f}", va="center", fontsize=9)
    axes.set_yticks(list(places), [labels[name] for name in names])
    axes.set_ylim(-0.6, max(len(names), 3) - 0.4)  # one bar alone does not fill the panel
    least = min(0.0, *(values[name] for name in names))  # a correlation may be below 0
    axes.set_xlim(least, 1.08 * end)  # room for the figures beside bars
    if bounded:  # the axis itself ends at 1
        axes.set_xticks([place / 5 for place in range(6)])
        axes.spines["bottom"].set_bounds(least, 1)
    better = "" if bounded else ", lower is better"
    axes.set(
        xlabel=f"{metric_words(summary['metric'])} on all sites' test rows{better}\n({SEEN_BY})"
    )
    axes.set_title("Comparison", pad=16)
