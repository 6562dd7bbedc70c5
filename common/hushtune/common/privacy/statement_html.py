"""The page `privacy.html`: a run's privacy statement as one file for a browser and for paper.

The page is a Jinja template with autoescaping, so that no text of a site can become markup; it
holds no script, and its content security policy lets a browser fetch nothing.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from hushtune.common.pages import page_environment
from hushtune.common.privacy import figures, statement_secure, statement_verify
from hushtune.common.privacy.statement_markdown import crossing, shared_origin
from hushtune.common.privacy.statement_sentence import counted_word, unit_word

FALSE_ALARMS = (0.001, 0.01, 0.1)
"""Shares of false alarms for which the page says how many records a test can recognise."""


def render_html(content: Mapping[str, Any]) -> str:
    """The page `privacy.html` for what `statement` returned: UTF-8, self-contained."""
    environment = page_environment("hushtune.common.privacy")
    environment.filters |= {
        "upwards": figures.epsilon_text,
        "at_most": figures.at_most,
        "at_least": figures.at_least,
        "percent": figures.percent,
        "times": _times,
        "number": figures.number_text,
        "spans": figures.spans,
        "rounds_text": _rounds_text,
        "words": lambda key: str(key).replace("_", " "),
    }
    told = [(name, site) for name, site in content["sites"].items() if site["guarantee"]]
    return environment.get_template("statement.html.j2").render(
        content,
        false_alarms=FALSE_ALARMS,
        tests=[(name, _tests(site)) for name, site in told if site["epsilon"] > 0],
        charts={name: _chart(site) for name, site in told if site["epsilon"] > 0},
        spent={name: _share(site["lifetime"]) for name, site in told},
        two_sites=_two_sites([site for _, site in told]) if content["guarantee"] else None,
        tensors=_tensors(content["sites"]),
        widths=_widths(content["sites"]),
        verify=statement_verify,
        secure=statement_secure,
        one=unit_word(content["unit"]),
        counted=counted_word(content["unit"]),
        commands=statement_verify.commands(content),
        # What is the same at all sites, as a rule, is told once.
        origin=shared_origin(content),
        declared=crossing(content).out,
        ordered=crossing(content).into,
    )


def _times(factor: float) -> str:
    return figures.upwards(factor, places=1)


def _rounds_text(rounds: Mapping[str, int]) -> str:
    return figures.rounds_text(rounds["first"], rounds["last"])


def _tests(site: Mapping[str, Any]) -> dict[str, Any]:
    """What the best test of whether a record was used can reach."""
    epsilon, delta = site["epsilon"], site["delta"]
    found = [
        figures.most_true_positives(epsilon, delta, false_positives=share) for share in FALSE_ALARMS
    ]
    return {
        "found": found,
        "odds": [share / false for share, false in zip(found, FALSE_ALARMS, strict=True)],
        "advantage": figures.most_advantage(epsilon, delta),
    }


def _share(lifetime: Mapping[str, Any]) -> float | None:
    """The part of the lifetime budget that is spent; above 1 where it is exceeded."""
    limit, spent = lifetime["limit_epsilon"], lifetime["epsilon"]
    return None if limit is None or spent is None else spent / limit


def _two_sites(sites: Sequence[Mapping[str, Any]]) -> dict[str, float] | None:
    """What somebody with records at two sites lost at most: the two largest figures together."""
    if len(sites) < 2:
        return None
    return {
        key: math.fsum(sorted((site[key] for site in sites), reverse=True)[:2])
        for key in ("epsilon", "delta")
    }


def _tensors(sites: Mapping[str, Mapping[str, Any]]) -> list[tuple[str, int]]:
    """Every tensor that crossed any site's border, with its number of values, by name."""
    sizes: dict[str, int] = {}
    for site in sites.values():
        for moved in (*site["released"]["updates"], *site["received"]):
            sizes |= moved["tensors"]
    return sorted(sizes.items())


def _widths(sites: Mapping[str, Mapping[str, Any]]) -> str:
    """As what the values of the tensors crossed the border."""
    updates = [moved for site in sites.values() for moved in site["released"]["updates"]]
    rounded = sorted({moved["encoding"] for moved in updates} - {"float32"})
    if not rounded:
        return "float32, four bytes a value"
    return f"updates rounded to {', '.join(rounded)}, else float32"


@dataclass(frozen=True)
class _Tick:
    at: float
    label: str


@dataclass(frozen=True)
class _Chart:
    """The delta-epsilon curve in the units of its drawing; `mark` is the pair that is promised."""

    points: Sequence[tuple[float, float]]
    mark: tuple[float, float]
    across: Sequence[_Tick]
    up: Sequence[_Tick]


_LEFT, _RIGHT, _TOP, _BOTTOM = 44.0, 344.0, 12.0, 180.0


def _chart(site: Mapping[str, Any]) -> _Chart:
    """Epsilon over delta, delta on a logarithmic axis."""
    mark = (site["delta"], site["epsilon"])
    told = [(at["delta"], at["epsilon"]) for at in site["curve"] if at["epsilon"] is not None]
    curve = sorted({*told, mark})
    low, high = math.log10(curve[0][0]), math.log10(curve[-1][0])
    step = _step(max(epsilon for _, epsilon in curve))
    most = step * math.ceil(max(epsilon for _, epsilon in curve) / step)

    def place(delta: float, epsilon: float) -> tuple[float, float]:
        across = (math.log10(delta) - low) / (high - low)
        up = epsilon / most
        return (
            round(_LEFT + across * (_RIGHT - _LEFT), 1),
            round(_BOTTOM - up * (_BOTTOM - _TOP), 1),
        )

    return _Chart(
        points=[place(*point) for point in curve],
        mark=place(*mark),
        across=[_Tick(place(delta, 0)[0], f"{delta:g}") for delta, _ in told],
        up=[
            _Tick(place(curve[0][0], index * step)[1], f"{index * step:g}")
            for index in range(round(most / step) + 1)
        ],
    )


def _step(most: float) -> float:
    """A round distance between ticks that gives at most about five of them."""
    scale = 10.0 ** math.floor(math.log10(most / 4))
    return next(factor * scale for factor in (1, 2, 5, 10) if most / (factor * scale) <= 5)
