"""Tables and a picture of what benchmarks/w.py measured."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

BEGIN, END = "<!-- w:begin -->", "<!-- w:end -->"
PARTS = ("start", "training", "evaluation", "report", "orchestration")
_FIGURES = (*PARTS, "wall", "cpu", "memory_mb", "first_step", "loss", "accuracy")

Rows = Sequence[Mapping[str, Any]]


def medians(rows: Rows) -> dict[str, dict[str, float]]:
    """Each contender's medians, and under ``n`` how many runs they are of."""
    found: dict[str, dict[str, float]] = {}
    for name in dict.fromkeys(row["contender"] for row in rows):
        own = [row for row in rows if row["contender"] == name]
        found[name] = {key: statistics.median(row[key] for row in own) for key in _FIGURES}
        found[name]["n"] = len(own)
    return found


def as_markdown(rows: Rows, everyone: Mapping[str, Any], about: Mapping[str, Any]) -> str:
    """What was measured, what was aimed at, and where."""
    found = medians(rows)
    plain = [n for n in everyone if n in found and not n.startswith("off-")]
    without = [n for n in everyone if n in found and n.startswith("off-")]
    lines = [
        "| W by | runs | wall s | CPU s | start | training | evaluation | report | orchestration "
        "| first step after | peak MB | wall ratio | memory ratio | loss | accuracy |",
        "|---" * 15 + "|",
        *(_row(name, found, everyone) for name in plain),
    ]
    if without:
        lines += [
            "",
            "| hushtune without one thing | runs | training | evaluation | wall s | times as long "
            "| peak MB | times as much |",
            "|---" * 8 + "|",
            *(_off(name, found, everyone) for name in without),
        ]
    lines += ["", *targets(found)]
    commits = sorted({str(row["commit"]) for row in rows})
    loads = [row["load"] for row in rows]
    lines += [
        "",
        f"One core of: {about['processor']}. torch {about['torch']}, Python {about['python']}, "
        f"{about['date']}. Load before a run: {min(loads):.1f} to {max(loads):.1f}. "
        f"Source commit of these runs: {'; '.join(commits)}.",
    ]
    return "\n".join(lines)


def _row(name: str, found: Mapping[str, Mapping[str, float]], everyone: Mapping[str, Any]) -> str:
    own, floor = found[name], found.get(everyone[name].floor)
    ratios = [
        "" if floor is None else f"{own[key] / floor[key]:.2f}" for key in ("wall", "memory_mb")
    ]
    seconds = [f"{own[key]:.1f}" for key in ("wall", "cpu", *PARTS, "first_step")]
    cells = [everyone[name].title, f"{own['n']:.0f}", *seconds, f"{own['memory_mb']:.0f}", *ratios]
    return "| " + " | ".join([*cells, f"{own['loss']:.3f}", f"{own['accuracy']:.3f}"]) + " |"


def _off(name: str, found: Mapping[str, Mapping[str, float]], everyone: Mapping[str, Any]) -> str:
    own, floor = found[name], found.get(everyone[name].floor)
    cells = [everyone[name].title, f"{own['n']:.0f}"]
    cells += [f"{own[key]:.1f}" for key in ("training", "evaluation")]
    for key, shown in (("wall", f"{own['wall']:.1f}"), ("memory_mb", f"{own['memory_mb']:.0f}")):
        cells += [shown, "" if floor is None else f"{own[key] / floor[key]:.2f}"]
    return "| " + " | ".join(cells) + " |"


def targets(found: Mapping[str, Mapping[str, float]]) -> list[str]:
    """What was aimed at, with what came out; only of what was measured."""

    def ratio(ours: str, floor: str, key: str) -> float | None:
        if ours not in found or floor not in found:
            return None
        return found[ours][key] / found[floor][key]

    ours = found.get("hushtune")
    share = None if ours is None else ours["orchestration"] / ours["wall"]
    aims = (
        ("wall, of the plain loop's", ratio("hushtune", "bare", "wall"), 0.35),
        ("peak memory, of the plain loop's", ratio("hushtune", "bare", "memory_mb"), 0.6),
        (
            "top two layers: wall, of the plain loop's, filling what is kept included",
            ratio("hushtune-top", "bare-top", "wall"),
            0.5,
        ),
        ("orchestration, of the wall", share, 0.03),
        ("seconds to the first step", None if ours is None else ours["first_step"], 6.0),
    )
    lines = ["| aim | at most | measured | reached |", "|---" * 4 + "|"]
    for what, most, value in ((what, most, value) for what, value, most in aims):
        if value is not None:
            reached = "yes" if value <= most else "**no**"
            lines.append(f"| {what} | {most:g} | {value:.3g} | {reached} |")
    return lines


def plot(rows: Rows, everyone: Mapping[str, Any], path: Path) -> None:
    """Seconds by part, a bar a contender, and its peak memory beside."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    from hushtune.simulations.reporting.style import COLOURS

    found = medians(rows)
    names = [name for name in everyone if name in found][::-1]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(11, 1.5 + 0.45 * len(names)), width_ratios=(3, 1), sharey=True
    )
    labels = [everyone[name].title for name in names]
    begin = [0.0] * len(names)
    for part, colour in zip(PARTS, COLOURS, strict=False):
        widths = [max(0.0, found[name][part]) for name in names]
        left.barh(labels, widths, left=begin, label=part, color=colour)
        begin = [start + width for start, width in zip(begin, widths, strict=True)]
    left.set_xlabel("seconds, one core")
    left.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=len(PARTS), frameon=False)
    right.barh(labels, [found[name]["memory_mb"] for name in names], color="0.6")
    right.set_xlabel("peak memory, MB")
    figure.tight_layout()
    figure.savefig(path, dpi=120)
    pyplot.close(figure)
