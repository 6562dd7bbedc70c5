"""The picture of a run: how it learned, what it spent, what it is compared with."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib

matplotlib.use("Agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.ticker import MaxNLocator

from hushtune.common.names import METHODS
from hushtune.common.pictures import drawn_name, save_picture

# Okabe and Ito's colours, safe for the colour-blind.
BLUE, ORANGE, GREY, BLACK = "#0072B2", "#D55E00", "#999999", "#000000"
SITES = ("#E69F00", "#56B4E9", "#009E73", "#CC79A7", "#F0E442", "#0072B2", "#D55E00")
_MOST_SITES = 7


def plot_run(history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any], path: Path) -> None:
    """Draw learning curve, epsilon spent and comparison, side by side, into a PNG."""
    figure, (curve, spent, bars) = pyplot.subplots(
        1, 3, figsize=(15, 4.4), width_ratios=(1.1, 0.9, 1.3), layout="constrained"
    )
    _curve(curve, [row for row in history if summary["metric"] in row], summary)
    _spent(spent, history, summary)
    _bars(bars, summary)
    for axes in (curve, spent, bars):
        axes.spines[["top", "right"]].set_visible(False)
    save_picture(figure, path, dpi=140)


def _curve(axes: Axes, rows: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    metric = summary["metric"]
    rounds = [row["round"] for row in rows]
    names = sorted(summary["sites"])
    if len(names) <= _MOST_SITES:
        for name, colour in zip(names, SITES, strict=False):
            points = [
                (row["round"], row["sites"][name][metric])
                for row in rows
                if name in row.get("sites", {})
            ]
            if points:
                label = drawn_name(name)
                axes.plot(*zip(*points, strict=True), color=colour, linewidth=1.2, label=label)
    axes.plot(
        rounds,
        [row[metric] for row in rows],
        color=BLACK,
        linewidth=2.4,
        marker="o",
        markersize=4,
        label="all sites",
    )
    adapted = next((row["round"] for row in rows if row.get("phase") == "adapter"), None)
    if adapted is not None and adapted > 1:
        axes.axvline(adapted - 0.5, color=GREY, linestyle=":", linewidth=1)
        axes.text(
            adapted - 0.45,
            0.02,
            "LoRA",
            transform=axes.get_xaxis_transform(),
            color=GREY,
            fontsize=8,
        )
    part = rows[0].get("evaluated_on", "held-out") if rows else "held-out"
    axes.set(xlabel="round", ylabel=f"{metric} on {part} rows", title="Learning")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)


def _spent(axes: Axes, history: Sequence[Mapping[str, Any]], summary: Mapping[str, Any]) -> None:
    axes.set(xlabel="round", ylabel="epsilon spent", title="Privacy")
    names = sorted(summary["sites"])
    if summary["trust"] == "off" or not history:
        axes.text(
            0.5,
            0.5,
            "NO PRIVACY",
            ha="center",
            va="center",
            transform=axes.transAxes,
            color=ORANGE,
            fontsize=16,
            weight="bold",
        )
        return
    for place, name in enumerate(names[:_MOST_SITES]):
        line = [row["epsilon"].get(name) for row in history]
        axes.plot(
            [row["round"] for row in history],
            line,
            color=SITES[place % len(SITES)],
            linewidth=1.8,
            linestyle=("-", "--", "-.", ":")[place % 4],
            label=drawn_name(name),
        )
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)


def _bars(axes: Axes, summary: Mapping[str, Any]) -> None:
    values = {**summary["baselines"], "federated": summary["value"]}
    names = [name for name in METHODS if values.get(name) is not None]
    labels = dict(METHODS)
    if summary["trust"] == "off":
        labels = {name: text.replace(", private", "") for name, text in labels.items()}
    places = range(len(names))
    colours = [ORANGE if name == "federated" else BLUE for name in names]
    axes.barh(places, [values[name] for name in names], color=colours, height=0.7)
    for place, name in zip(places, names, strict=True):
        axes.text(values[name] + 0.005, place, f"{values[name]:.3f}", va="center", fontsize=9)
    axes.set_yticks(list(places), [labels[name] for name in names])
    axes.set_xlim(0, 1.08)
    axes.set(xlabel=f"{summary['metric']} on all sites' test rows", title="Comparison")
