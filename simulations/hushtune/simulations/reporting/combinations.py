"""Every combination of settings by its name, and the tests of all against some that were chosen.

Lines of a picture differ in one setting. A head and an adapter differ in several, so which of them
is better no pair of lines says; a study names in ``against`` what all others are held against.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence

from hushtune.common.errors import BadValueError
from hushtune.simulations.reporting.comparisons import Comparison, compare_pair, judged
from hushtune.simulations.reporting.points import Point
from hushtune.simulations.reporting.views import View, by_seed, condition_of, of_data, words


def without_seed(name: str, seed: int) -> str:
    """A run's name but for its seed, which is what its combination is called.

    >>> without_seed("head, 4 blocks seed=3", 3), without_seed("head seed=3 rank=2", 3)
    ('head, 4 blocks', 'head rank=2')
    >>> without_seed("seed=3", 3), without_seed("head seed=30", 3)
    ('seed=3', 'head seed=30')
    """
    found = list(re.finditer(rf"(?:^|[ ,]+)seed[= ]{seed}(?![^ ,])", name))
    if not found:
        return name
    begin, end = found[-1].span()
    return (name[:begin] + name[end:]).strip(" ,") or name


def combinations_of(view: View) -> Mapping[str, Sequence[Point]]:
    """The runs of each combination of settings, over seeds, in the order of the study; by the name
    that its runs have but for their seed, or else by its settings."""
    groups: dict[str, list[Point]] = {}
    for point in view.study.done:
        groups.setdefault(point.combination, []).append(point)
    told: dict[str, Sequence[Point]] = {}
    for key, points in groups.items():
        name = _name(view, points[0])
        told[key if name in told else name] = points
    return told


def _name(view: View, point: Point) -> str:
    """With all settings that tell it from another run, a trust model's too."""
    without = without_seed(point.name, point.seed)
    if without != point.name:
        return without
    keys = [
        key
        for key in point.settings
        if len({repr(one.settings.get(key)) for one in view.study.done}) > 1
    ]
    return words(tuple((key, point.settings.get(key)) for key in keys)) or point.name


def check_named(view: View) -> None:
    """BadValueError for what the study is to be held against and has no run of that is done."""
    names = combinations_of(view)
    for name in view.study.against:
        if name not in names:
            raise BadValueError(
                "there is no such combination of settings to test against",
                file=view.study.folder,
                given=name,
                expected=f"one of: {'; '.join(names)}",
            )


def against_chosen(view: View) -> list[Comparison]:
    """Paired tests of every other combination against each of ``against``, on the same data and at
    the same epsilon. They are one family. A pair of two that were chosen is tested once."""
    groups = combinations_of(view)
    chosen = [name for name in view.study.against if name in groups]
    tested: list[tuple[str, str]] = []
    for second in chosen:
        for first, points in groups.items():
            known = first == second or (second, first) in tested
            if not known and _condition(points) == _condition(groups[second]):
                tested.append((first, second))
    found = (
        compare_pair(
            by_seed(groups[first]),
            by_seed(groups[second]),
            condition=_condition(groups[first]),
            names=(first, second),
        )
        for first, second in tested
    )
    told = [one for one in found if one is not None]
    return judged(told, higher_is_better=view.study.higher_is_better)


def _condition(points: Sequence[Point]) -> str:
    """From what its runs learn and what they promise."""
    return condition_of(words(of_data(tuple(points[0].settings.items()))), points[0].epsilon)
