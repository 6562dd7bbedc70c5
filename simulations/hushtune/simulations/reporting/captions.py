"""Which pictures a report has, when, and what is written below each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from matplotlib.figure import Figure

from hushtune.simulations.reporting.combinations import combinations_of
from hushtune.simulations.reporting.draw_costs import (
    bars_left_out,
    draw_communication,
    draw_front,
)
from hushtune.simulations.reporting.draw_points import MOST_ROWS, draw_points
from hushtune.simulations.reporting.draw_sites import draw_sites, draw_spread
from hushtune.simulations.reporting.draw_utility import (
    draw_map,
    draw_settings,
    draw_utility,
    settings_drawn,
)
from hushtune.simulations.reporting.intervals import Estimate
from hushtune.simulations.reporting.references import data_of, far_off
from hushtune.simulations.reporting.views import (
    MOST_LINES,
    MOST_PANELS,
    View,
    is_of_data,
    utility,
    words,
)


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A picture: when a study has it, how it is drawn and what is said of it."""

    name: str
    title: str
    draw: Callable[[View], Figure]
    caption: Callable[[View], str]
    has: Callable[[View], bool]


def _always(_: View) -> bool:
    return True


def _means(view: View) -> list[Estimate]:
    lines = [line for panel in view.panels for line in panel.lines]
    return [found for line in lines for found in line.curve(utility).values()]


def _seeds(view: View) -> str:
    counts = sorted({found.n for found in _means(view)})
    told = f"{counts[0]}" if len(counts) == 1 else f"{counts[0]} to {counts[-1]}"
    many = "seed" if counts[-1] == 1 else "seeds"
    return f"n = {told} {many}"


_NONE = ", without intervals"


def _with_intervals(view: View) -> str:
    """Whether means have intervals: of one seed or two there is none."""
    found = {each.half is None for each in _means(view)}
    if found == {True}:
        return _NONE
    return " with 95 % intervals by Student's t" + (", of three or more" if True in found else "")


def _left_out(view: View) -> str:
    """What a picture had no room for."""
    told: list[str] = []
    if len(view.panels) > MOST_PANELS:
        told.append(f"{len(view.panels) - MOST_PANELS} more combinations of settings")
    if len(view.lines) > MOST_LINES:
        told.append(f"{len(view.lines) - MOST_LINES} more lines")
    return f" Not drawn for want of room: {' and '.join(told)}; means.csv has them." if told else ""


def _beside(view: View) -> str:
    if data_of([view.panels[0]]) is None:
        return "Lines are of different data; what each is compared with is in the table above."
    far = " What looks at no input is too far off to be drawn." if far_off(view) else ""
    return (
        "Grey and black lines: baselines on a panel's own data, trained as the runs of the line "
        f"that the table above names.{far}"
    )


def _utility(view: View) -> str:
    return (
        f"Means over seeds{_with_intervals(view)} ({_seeds(view)}). "
        f"{_beside(view)}{_left_out(view)}"
    )


def _map(view: View) -> str:
    told = _with_intervals(view)
    half = "" if told == _NONE else "; \N{PLUS-MINUS SIGN}: half their width"
    return (
        f"Means over seeds{told} ({_seeds(view)}{half}). In a frame: the best mean of each "
        "epsilon, which need not be told apart from the next."
    )


def _settings(view: View) -> str:
    more = " Epsilons beyond the seventh are left out." if len(view.epsilons) > MOST_LINES else ""
    return (
        "Each mean is over those combinations of all other settings, and seeds, that every value "
        "of the setting has; intervals are over three seeds or more. Values are set at equal "
        f"distances.{more}"
    )


def _points(view: View) -> str:
    rest = len(combinations_of(view)) - MOST_ROWS
    return (
        f"Means over seeds{_with_intervals(view)} ({_seeds(view)}); a tick is one run. "
        "Grey: baselines, as far as all runs learned from the same data."
        + (f" Of {rest} more combinations means.csv has the figures." if rest > 0 else "")
    )


def _front(view: View) -> str:
    return (
        "Each mark is the mean of one combination of settings. Large marks with a rim: no other "
        "combination has both less epsilon, or at the same epsilon fewer bytes, and a better mean; "
        "what has no privacy is in no front by epsilon. Intervals are in "
        "the first picture: a mark on the line need not be better than one just below it. "
        "Baselines are as in the first picture; the second panel has those alone that no epsilon "
        "changes, or that have one."
        + (f" Of the data of {words(view.panels[0].data)} alone." if view.panels[0].data else "")
    )


def _whose(view: View) -> str:
    """Which runs a picture with room for one panel shows."""
    if len(view.panels) == 1:
        return ""
    return f" Of the runs with {view.main.title} alone; sites.csv and means.csv have all."


def _sites(view: View) -> str:
    interval = "" if _with_intervals(view) == _NONE else ", with its interval"
    whose = _whose(view)
    return (
        f"The federated model on each site's own test rows, means over seeds ({_seeds(view)}). "
        f"Dashed: each run's worst site, which need not be the same one{interval}.{whose}"
    )


def _spread(view: View) -> str:
    whose = _whose(view)
    return (
        f"Means over seeds{_with_intervals(view)} ({_seeds(view)}), of the worst site's figure and "
        f"of the distance between the best and the worst site, which is never below 0.{whose}"
    )


def _communication(view: View) -> str:
    rest = bars_left_out(view)
    return (
        "Means over the seeds and epsilons of a line. Bytes are those of the messages, counted at "
        "the server; seconds are of the machine that the study ran on, baselines included where "
        "they were trained, and their whole is what the table of all runs has, but of runs that "
        "were resumed or found finished. The run that comes first prepares the rows and the model "
        "for those that share them."
        + (f" Of {rest} more lines runs.csv has the figures." if rest else "")
    )


def caption_of(kind: Kind, view: View) -> str:
    """What is written below a picture; of noise from a seed it says that it promises nothing."""
    told = kind.caption(view)
    if any(point.is_seeded for point in view.study.done):
        told += " NO PRIVACY where noise came from a seed: those epsilons are promised to nobody."
    return told


PICTURES: tuple[Kind, ...] = (
    Kind(
        name="utility",
        title="Utility against epsilon",
        draw=draw_utility,
        caption=_utility,
        has=_always,
    ),
    Kind(
        name="map",
        title="Utility as a map",
        draw=draw_map,
        caption=_map,
        has=lambda view: view.primary is not None,
    ),
    Kind(
        name="points",
        title="Every combination",
        draw=draw_points,
        caption=_points,
        has=lambda view: len(combinations_of(view)) > 1,
    ),
    Kind(
        name="front",
        title="What no other setting beats",
        draw=draw_front,
        caption=_front,
        has=lambda view: view.primary is None or not is_of_data(view.primary),
    ),
    Kind(
        name="settings",
        title="Utility by setting",
        draw=draw_settings,
        caption=_settings,
        has=lambda view: bool(settings_drawn(view) and (view.others or len(view.epsilons) < 2)),
    ),
    Kind(
        name="sites",
        title="Every site",
        draw=draw_sites,
        caption=_sites,
        has=_always,
    ),
    Kind(
        name="spread",
        title="The worst site, and how even it is",
        draw=draw_spread,
        caption=_spread,
        has=lambda view: len(view.study.done[0].found["sites"]) > 1,
    ),
    Kind(
        name="communication",
        title="Communication and time",
        draw=draw_communication,
        caption=_communication,
        has=_always,
    ),
)
