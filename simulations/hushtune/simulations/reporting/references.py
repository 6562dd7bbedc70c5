"""What a study's models are compared with, without mixing what was varied.

A baseline is trained as the runs of a line are, with their adapter and rule, on the same data. It
stands beside all lines on those data; where several lines have it on record, that of one line does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from hushtune.common.names import METHODS, OF_TABLES, OURS
from hushtune.simulations.reporting.intervals import Estimate, estimate
from hushtune.simulations.reporting.points import Point
from hushtune.simulations.reporting.views import Choice, Line, Panel, View, by_seed, utility

BASELINES = tuple(name for name in (*METHODS, *OF_TABLES) if name not in OURS)
DRAWN = ("majority", "alone_private", "head_private", "head_best", "pooled_private", "pooled")
"""The baselines that pictures show beside the federated model, wherever runs have them."""

WITHOUT_EPSILON = ("majority", "untrained", "pooled", "columns")
"""Those that no epsilon changes."""

_UNTRAINED = ("majority", "untrained")


@dataclass(frozen=True, kw_only=True)
class Reference:
    """A baseline at one epsilon: ``estimate`` over the seeds that have it, and the ``line`` whose
    runs it was trained as; "" of what is not trained."""

    estimate: Estimate
    line: str


References = Mapping[str, Mapping[float | None, Reference]]
"""By a baseline's name and epsilon, in the order of both."""


def references(view: View, data: Choice) -> References:
    """The baselines on record for some data.

    Of several lines that have one at an epsilon: of those with most seeds the one with the best
    mean, which is the hardest to beat. Worked out once for a view.
    """
    if data not in view.kept:
        view.kept[data] = _references(view, data)
    return view.kept[data]


def _references(view: View, data: Choice) -> References:
    sign = 1 if view.study.higher_is_better else -1
    found: dict[str, dict[float | None, Reference]] = {}
    for name in BASELINES:
        best: dict[float | None, Reference] = {}
        for panel, line in lines_on(view, data):
            curve = _curve(line, name)
            label = "" if name in _UNTRAINED else full_label(view, panel, line)
            for epsilon, each in curve.items():
                there = best.get(epsilon)
                rank = (each.n, sign * each.mean)
                if there is None or rank > (there.estimate.n, sign * there.estimate.mean):
                    best[epsilon] = Reference(estimate=each, line=label)
        if best:
            found[name] = {epsilon: best[epsilon] for epsilon in view.epsilons if epsilon in best}
    # Without privacy the two kinds of pooled training are one.
    if None in found.get("pooled", {}):
        found.get("pooled_private", {}).pop(None, None)
    return {name: by_epsilon for name, by_epsilon in found.items() if by_epsilon}


def _curve(line: Line, name: str) -> Mapping[float | None, Estimate]:
    """A baseline's mean at each epsilon; of what no epsilon changes one mean, at each that has it.

    Runs of several epsilons have trained it as often, with other batches: it is one figure of them
    all, and not the best of some.
    """

    def value(point: Point) -> float | None:
        return point.found["baselines"].get(name)

    curve = line.curve(value)
    if name not in WITHOUT_EPSILON or not curve:
        return curve
    return dict.fromkeys(curve, estimate(list(by_seed(line.points, value).values())))


def lines_on(view: View, data: Choice) -> list[tuple[Panel, Line]]:
    """The lines that learned from some data, with their panels."""
    return [(panel, line) for panel in view.panels for line in panel.lines if line.data == data]


def all_data(view: View) -> tuple[Choice, ...]:
    """What was learned from, as far as it was varied, in the order of the panels."""
    return tuple(dict.fromkeys(line.data for panel in view.panels for line in panel.lines))


def data_of(panels: Iterable[Panel]) -> Choice | None:
    """What all lines of some panels learned from; None where they differ in it."""
    found = {line.data for panel in panels for line in panel.lines}
    return found.pop() if len(found) == 1 else None


def full_label(view: View, panel: Panel, line: Line) -> str:
    """A line's label with what tells its panel apart, but for the data."""
    told = [line.label] if view.primary is not None else []
    return ", ".join([*told, *([panel.apart] if panel.apart else [])]) or line.label


def drawn(view: View, panels: Iterable[Panel]) -> References:
    """The references beside the lines of some panels; none where these learned from other data.

    Runs without privacy are told apart by their place alone, and what they are compared with is
    drawn where there is nothing else, but for what no epsilon changes.
    """
    data = data_of(panels)
    if data is None:
        return {}
    names = [name for name in DRAWN if name not in _UNTRAINED or not far_off(view)]
    found = {name: of for name, of in references(view, data).items() if name in names}
    private = any(epsilon is not None for of in found.values() for epsilon in of)
    return {
        name: kept
        for name in names
        if (
            kept := {
                e: r
                for e, r in found.get(name, {}).items()
                if e is not None or not private or name in WITHOUT_EPSILON
            }
        )
    }


def far_off(view: View) -> bool:
    """Whether what looks at no input is so far from all else that beside it nothing could be told
    apart in a picture."""
    lines = [line.curve(utility) for panel in view.panels for line in panel.lines]
    told = [each for curve in lines for each in curve.values()]
    constant: list[float] = []
    for data in all_data(view):
        for name, of in references(view, data).items():
            if name == "majority":
                constant += [each.estimate.mean for each in of.values()]
            elif name in DRAWN:
                told += [each.estimate for each in of.values()]
    low = min(each.mean - (each.half or 0.0) for each in told)
    high = max(each.mean + (each.half or 0.0) for each in told)
    return any(max(low - value, value - high) > high - low for value in constant)
