"""What of a study is drawn: runs grouped over seeds, by what was varied.

One setting tells the lines of a picture apart (the rule where it was varied), every combination of
the others has a panel of its own, and epsilon is the axis. So no mean mixes what was varied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from hushtune.common.names import methods
from hushtune.simulations.reporting.intervals import Estimate, estimate
from hushtune.simulations.reporting.points import EPSILON, Point, Study, site_values

RULE = "aggregation.rule"
_PROMISE = ("privacy.unit", "privacy.delta", "privacy.relation")

MOST_LINES, MOST_PANELS = 7, 6

Value = Callable[[Point], float | None]
Choice = tuple[tuple[str, object], ...]


def utility(point: Point) -> float:
    """The main metric on all sites' test rows."""
    return float(point.found["value"])


def worst(point: Point) -> float:
    """That of the site with the worst, of the one model of all sites."""
    return site_values(point.found)[point.worst_site]


def own_models(point: Point) -> float | None:
    """The main metric on all sites' test rows, where each site uses a model of its own."""
    value = point.found.get("personal")
    return None if value is None else float(value)


def spread(point: Point) -> float:
    """How far the best site is from the worst."""
    values = site_values(point.found).values()
    return max(values) - min(values)


@dataclass(frozen=True, kw_only=True)
class Line:
    """The runs of one line: ``label`` in words, and its points by epsilon (None: no privacy).

    ``data``: the varied settings that say which data it learned from, the panel's included.
    """

    label: str
    by_epsilon: Mapping[float | None, tuple[Point, ...]]
    data: Choice = ()

    @property
    def points(self) -> tuple[Point, ...]:
        """All of them."""
        return tuple(point for points in self.by_epsilon.values() for point in points)

    def curve(self, value: Value) -> dict[float | None, Estimate]:
        """Mean and interval of a figure at each epsilon, over the seeds that have it."""
        told = {epsilon: by_seed(points, value) for epsilon, points in self.by_epsilon.items()}
        return {epsilon: estimate(list(of.values())) for epsilon, of in told.items() if of}


@dataclass(frozen=True, kw_only=True)
class Panel:
    """The lines of one combination of the settings that do not tell lines apart.

    ``data``: what of it says which data were learned from; figures on other data are no better.
    ``apart``: the rest of it, in words.
    """

    title: str
    lines: tuple[Line, ...]
    data: Choice = ()
    apart: str = ""

    @property
    def points(self) -> tuple[Point, ...]:
        """All runs in it."""
        return tuple(point for line in self.lines for point in line.points)


@dataclass(frozen=True, kw_only=True)
class View:
    """A study as pictures show it.

    ``primary``: the setting that tells lines apart, None where nothing but epsilon was varied.
    ``epsilons``: all there are, rising, None (no privacy) last. ``kept``: what was worked out of it
    for some data, which every picture asks for again.
    """

    study: Study
    primary: str | None
    others: tuple[str, ...]
    panels: tuple[Panel, ...]
    epsilons: tuple[float | None, ...]
    kept: dict[Choice, Any] = field(default_factory=dict[Choice, Any], compare=False, repr=False)

    @property
    def main(self) -> Panel:
        """The panel that stands for all where a picture has room for one: of those with private
        runs the one with most, and with a line that pictures have room for."""
        return max(
            (p for p in self.panels if any(ln.label in self.lines[:MOST_LINES] for ln in p.lines)),
            key=lambda panel: (
                any(point.is_private for point in panel.points),
                len(panel.points),
            ),
        )

    @property
    def lines(self) -> tuple[str, ...]:
        """The labels of all lines, in order: each has one colour in all pictures."""
        return tuple(dict.fromkeys(line.label for panel in self.panels for line in panel.lines))


def view(study: Study) -> View:
    """Group the runs that are done."""
    keys = [key for key in study.keys if key != EPSILON]
    # Lines on the same data can be compared, and those on other data cannot.
    first = sorted(keys, key=lambda key: (key != RULE, is_of_data(key)))
    primary = first[0] if first else None
    others = tuple(key for key in keys if key != primary)
    panels: dict[Choice, list[Point]] = {}
    for point in study.done:
        panels.setdefault(_choice(point, others), []).append(point)
    choices = sorted(panels, key=lambda choice: [order(value) for _, value in choice])
    epsilons = {point.epsilon for point in study.done}
    return View(
        study=study,
        primary=primary,
        others=others,
        panels=tuple(
            Panel(
                title=words(choice),
                lines=_lines(panels[choice], primary, of_data(choice)),
                data=of_data(choice),
                apart=words(tuple(pair for pair in choice if not is_of_data(pair[0]))),
            )
            for choice in choices
        ),
        epsilons=tuple(sorted(epsilons, key=lambda value: (value is None, value or 0.0))),
    )


def of_data(choice: Choice) -> Choice:
    """What of it says from which data is learned."""
    return tuple(pair for pair in choice if is_of_data(pair[0]))


def _lines(points: Sequence[Point], primary: str | None, data: Choice) -> tuple[Line, ...]:
    found: dict[object, dict[float | None, list[Point]]] = {}
    for point in points:
        value = None if primary is None else point.settings.get(primary)
        found.setdefault(value, {}).setdefault(point.epsilon, []).append(point)
    return tuple(
        Line(
            label="federated" if primary is None else words(((primary, value),)),
            by_epsilon={
                epsilon: tuple(found[value][epsilon])
                for epsilon in sorted(found[value], key=lambda e: (e is None, e or 0.0))
            },
            data=data + of_data(() if primary is None else ((primary, value),)),
        )
        for value in sorted(found, key=order)
    )


def _choice(point: Point, keys: Iterable[str]) -> Choice:
    """The values of some settings; a run without privacy has none of a trust model's."""
    return tuple((key, point.settings.get(key)) for key in keys)


def order(value: object) -> tuple[bool, float, str]:
    """Numbers by size, before words."""
    if isinstance(value, int | float) and not isinstance(value, bool):
        return (False, float(value), "")
    return (True, 0.0, str(value))


def words(choice: Choice) -> str:
    """What was chosen, as a title or label says it.

    >>> words((("aggregation.rule", "ffa"), ("adapter.rank", 8)))
    'rule ffa, rank 8'
    """
    return ", ".join(
        f"{key.rpartition('.')[2].replace('_', ' ')} {'as preset' if value is None else value}"
        for key, value in choice
    )


def label_of(study: Study, name: str) -> str:
    """What a baseline is called."""
    return methods(private=True, kind=study.kind).get(name, name)


def by_seed(points: Iterable[Point], value: Value = utility) -> dict[int, float]:
    """A figure by the run's seed; of several runs with one seed (as without privacy, where epsilon
    changes nothing), their mean."""
    told: dict[int, list[float]] = {}
    for point in points:
        found = value(point)
        if found is not None:
            told.setdefault(point.seed, []).append(found)
    return {seed: sum(values) / len(values) for seed, values in told.items()}


def epsilon_words(epsilon: float | None) -> str:
    """An epsilon as a label.

    >>> epsilon_words(3.0), epsilon_words(None)
    ('epsilon 3', 'no privacy')
    """
    return "no privacy" if epsilon is None else f"epsilon {epsilon:g}"


def condition_of(title: str, epsilon: float | None) -> str:
    """What runs have in common that are compared, and their epsilon.

    >>> condition_of("rank 8", 3.0), condition_of("", None)
    ('rank 8, epsilon 3', 'no privacy')
    """
    return ", ".join(part for part in (title, epsilon_words(epsilon)) if part)


def is_of_data(key: str) -> bool:
    """Whether a setting says from which data is learned, or what an epsilon is promised to."""
    return key.startswith(("data.", "task.")) or key in _PROMISE
