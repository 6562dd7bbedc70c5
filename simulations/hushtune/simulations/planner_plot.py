"""The picture of ``hushtune plan``: epsilon by rounds, and signal to noise by site."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hushtune.common.pictures import explain, fonts, legible, save_picture
from hushtune.simulations.planner import DROWNED, FAINT, epsilon_curve
from hushtune.simulations.plots import BLACK, BLUE, GREY, ORANGE, SITES

_LINES = ("-", "--", "-.", ":")
_MOST_CURVES = len(SITES)
_MOST_NAMES = 3


def plot_plan(figures: Mapping[str, Any], path: Path) -> None:
    """Draw what `planner.plan_run` returned into a PNG, which is there whole or not at all."""
    with fonts():
        save_picture(draw_plan(figures), path, dpi=140)


def draw_plan(figures: Mapping[str, Any]) -> Figure:
    """The figure of ``plot_plan``."""
    sites = figures["sites"]
    height = max(4.4, 1.6 + 0.32 * len(sites))
    figure = Figure(figsize=(12, height), layout="constrained")
    curves, bars = figure.subplots(1, 2)
    names = legible(sites)
    _curves(curves, figures, names)
    _bars(bars, figures, names)
    for axes in (curves, bars):
        axes.spines[["top", "right"]].set_visible(False)
    explain(figure, sites)
    return figure


def _curves(axes: Axes, figures: Mapping[str, Any], written: Mapping[str, str]) -> None:
    # Sites with one rate have one noise and one curve.
    alike: dict[tuple[float, float], list[str]] = {}
    for name, site in figures["sites"].items():
        if site["takes_part"]:
            key = (site["sampling_probability"], site["noise_multiplier"])
            alike.setdefault(key, []).append(name)
    for place, ((rate, sigma), names) in enumerate(list(alike.items())[:_MOST_CURVES]):
        points = [(r, e) for r, e in epsilon_curve(figures, names[0]) if e is not None]
        axes.plot(
            *zip(*points, strict=True),
            color=SITES[place],
            linestyle=_LINES[place % len(_LINES)],
            linewidth=2,
            label=f"{_together(names, written)} (q {rate:.3g}, noise {sigma:.3g})",
        )
    left_out = len(alike) - _MOST_CURVES
    if left_out > 0:
        more = "1 more rate" if left_out == 1 else f"{left_out} more rates"
        axes.plot([], [], " ", label=f"{more} not drawn: see the table")
    axes.axhline(figures["epsilon"], color=GREY, linestyle=":", linewidth=1)
    axes.axvline(figures["rounds"], color=GREY, linestyle=":", linewidth=1)
    axes.plot(figures["rounds"], figures["epsilon"], "o", color=BLACK, label="as planned", zorder=3)
    axes.set(xlabel="rounds", ylabel=f"epsilon at delta {figures['delta']:g}")
    axes.set_title("What more rounds cost at the same noise")
    axes.set_xlim(left=0)
    axes.set_ylim(bottom=0)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    axes.legend(frameon=False, fontsize=8)


def _together(names: list[str], written: Mapping[str, str]) -> str:
    rest = len(names) - _MOST_NAMES
    shown = ", ".join(written[name] for name in names[:_MOST_NAMES])
    return f"{shown} and {rest} more" if rest > 0 else shown


def _bars(axes: Axes, figures: Mapping[str, Any], written: Mapping[str, str]) -> None:
    rows = [*figures["sites"].items(), ("federation", figures["federation"])]
    ratios = {
        place: row["signal_to_noise"]["run"]
        for place, (_, row) in enumerate(rows)
        if row and row.get("takes_part", True)
    }
    last = len(rows) - 1
    colours = [ORANGE if place == last else BLUE for place in ratios]
    axes.barh(list(ratios), list(ratios.values()), color=colours, height=0.7)
    axes.set_xscale("log")
    low, high = min([0.3, *ratios.values()]) / 2, max([FAINT, *ratios.values()]) * 6
    axes.set_xlim(low, high)
    for place in range(len(rows)):
        ratio = ratios.get(place)
        text = "cannot take part" if ratio is None else f"{ratio:.3g}"
        axes.text((ratio or low) * 1.08, place, text, va="center", fontsize=9)
    for line, text in ((DROWNED, "drowned"), (FAINT, "faint")):
        axes.axvline(line, color=BLACK, linestyle="--", linewidth=1)
        axes.text(
            line / 1.06,
            1.0,
            f"{text} below",
            transform=axes.get_xaxis_transform(),
            ha="right",
            va="bottom",
            fontsize=8,
        )
    axes.set_yticks(range(len(rows)), [written.get(name, name) for name, _ in rows])
    axes.invert_yaxis()
    axes.set_xlabel(
        f"signal to noise of {figures['steps']} steps, at most ({figures['trained_values']} values)"
    )
    axes.set_title("What each site can learn, at best", pad=18)
