"""An audit for people: a table, what it means and does not mean, and the picture of the attacks."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from hushtune.common.privacy.figures import at_most, upwards
from hushtune.simulations.audit.assess import ONE_RUN, ONE_RUN_F, TWO_SAMPLES

_SEEN_BY = {
    "each step": "each step's noised gradient",
    "each round": "what is sent each round",
    "the final model": "the final model alone",
}
_WHAT = {
    "gradient": "gradient canaries",
    "mislabelled": "mislabelled rows",
    "client": "clients as canaries",
}


_METHODS = {TWO_SAMPLES: "by rates", ONE_RUN: "one run", ONE_RUN_F: "one run, curve"}


def show_audit(console: Console, report: Mapping[str, Any]) -> None:
    """The table of bounds, the membership inference, and the sentences."""
    title = (
        f"Epsilon is at least (at delta {at_most(report['delta'])}; "
        f"{_claim(report)} or less is claimed)"
    )
    table = Table(title=title, title_justify="left")
    for column in ("canaries", "guessed from"):
        table.add_column(column, min_width=11)
    # Of seven letters, or one of eight, at most: so all of it goes into 80.
    for column in ("number", *_METHODS.values(), "of its kind"):
        table.add_column(column, justify="right", min_width=6, max_width=8 if "," in column else 7)
    groups: dict[tuple[str, str], list[Mapping[str, Any]]] = {}
    for row in report["rows"]:
        groups.setdefault((row["canary"], row["observer"]), []).append(row)
    for (canary, observer), rows in groups.items():
        bounds = {row["method"]: _down(row["lower_bound"]) for row in rows}
        family = max(row["in_family"] for row in rows if row["in_family"] is not None)
        table.add_row(
            _WHAT[canary],
            _SEEN_BY[observer],
            str(rows[0]["canaries"]),
            *(bounds.get(method, "") for method in _METHODS),
            _down(family),
            style="bold red" if any(row["refutes"] for row in rows) else None,
        )
    console.print(table)
    if report["membership"]:
        _show_attacks(console, report["membership"])
    for line in sentences(report):
        console.print(line, highlight=False, markup=False, soft_wrap=True)


def _down(bound: float) -> str:
    """Rounded down: a lower bound must not be told as more than it is."""
    return f"{math.floor(bound * 100) / 100:.2f}"


def sentences(report: Mapping[str, Any]) -> list[str]:
    """What was tested, who saw it, what came of it, and what that does not mean."""
    seen, share = _SEEN_BY[report["observer"]], f"{report['confidence']:.0%}"
    lines = [
        f"Tested: {report['canaries']} {_WHAT[report['canary']]} in a run of {report['rounds']} "
        f"rounds ({report['steps']} steps) at {report['sites']} sites, each in or out by a coin; "
        f"guessed by one who sees {seen}. The head alone was trained, on frozen features.",
    ]
    if report["relation"] != report["relation_of_run"]:
        lines.append(
            f"The claim that is tested is about adding or removing one {report['unit']}, as "
            "canaries are added; the run's own, about replacing one, follows from the same noise "
            "and is larger."
        )
    if report["plant"]:
        lines.append(f"PLANTED FAULT: {report['plant']}. This is not the product's own training.")
    bound, claim = _down(report["lower_bound"]), _claim(report)
    if report["refuted"]:
        how = (
            f"the lower bound {bound} is above it"
            if report["lower_bound"] > report["claimed"]
            else "what was seen is more than its trade-off curve allows"
        )
        lines.append(f"REFUTED at {share} confidence: epsilon {claim} does not hold, as {how}.")
    else:
        lines.append(
            f"Not refuted: at {share} confidence epsilon is at least {bound}, and {claim} or less "
            "is claimed. That proves no privacy: a better test may find more, and only the "
            "accounting bounds it from above."
        )
    lines.append(
        "The first figure is the one that counts, chosen beforehand; the others hold at the same "
        'confidence each by itself. "by rates" takes canaries as independent of one another, "one '
        'run" does not. "of its kind": the epsilon of the claimed mechanism with as little noise '
        "as is refuted; it bounds no mechanism of another kind."
    )
    return lines


def _claim(report: Mapping[str, Any]) -> str:
    return upwards(report["claimed"], places=3)


def _show_attacks(console: Console, told: Mapping[str, Any]) -> None:
    title = (
        f"Membership inference on the final model: {told['members']} rows in, {told['others']} out"
    )
    table = Table(title=title, title_justify="left")
    names = list(next(iter(told["attacks"].values())))
    table.add_column("attack")
    for name in names:
        words = name.replace("tpr_at_", "hits at false alarms ").replace("auc", "area")
        table.add_column(words, justify="right")
    for attack, figures in told["attacks"].items():
        cells = ("too few rows" if figures[n] is None else f"{figures[n]:.4f}" for n in names)
        table.add_row(attack, *cells)
    console.print(table)


def plot_attacks(attacks: Sequence[Any], report: Mapping[str, Any], path: Path) -> None:
    """Hits against false alarms of each attack, on logarithmic axes, into a PNG.

    With what the claimed epsilon allows any attack.
    """
    import numpy as np
    from matplotlib.figure import Figure

    from hushtune.common.pictures import fonts, save_picture
    from hushtune.common.privacy.figures import most_true_positives
    from hushtune.simulations.plots import BLACK, BLUE, GREY, ORANGE

    least = 1.0 / max(1, report["membership"]["others"])
    with fonts():
        figure = Figure(figsize=(5.2, 5.0), layout="constrained")
        axes = figure.subplots()
        grid = np.geomspace(least / 2, 1.0, 200)
        allowed = [
            most_true_positives(report["claimed"], report["delta"], false_positives=float(rate))
            for rate in grid
        ]
        claim = f"any attack, by epsilon {_claim(report)}"
        axes.plot(grid, allowed, color=BLACK, linestyle=":", label=claim)
        axes.plot(grid, grid, color=GREY, linestyle="--", label="guessing")
        for attack, color in zip(attacks, (BLUE, ORANGE), strict=False):
            false, true = attack.curve()
            some = (false > 0) & (true > 0)
            axes.plot(false[some], true[some], color=color, drawstyle="steps-post")
            axes.plot([], [], color=color, label=attack.name)
        axes.set(xscale="log", yscale="log", xlim=(least / 2, 1.0), ylim=(least / 2, 1.05))
        axes.set(xlabel="false alarms", ylabel="hits")
        axes.set_title("Membership inference")
        axes.spines[["top", "right"]].set_visible(False)
        axes.legend(frameon=False, fontsize=8)
        save_picture(figure, path, dpi=140)
