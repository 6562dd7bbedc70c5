"""A study and its points: what one run came to, and what was varied."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hushtune.common.privacy.plan import Trust

RESULTS, SUMMARY, METRICS = "results.jsonl", "summary.json", "metrics.jsonl"
STUDY_FILE = "study.toml"
BASE = "base.toml"
"""What a study with a configuration file of its own began with."""
EPSILON = "privacy.epsilon"

Settings = Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a study, done or failed.

    ``settings``: what was varied, by dotted key, without the seed. ``summary``: of a run that is
    done. ``error``: code and text of one that failed. ``seconds`` on the clock and of the
    processors; ``bytes_up`` and ``bytes_down`` of the whole federation; None where not on record.
    ``asked``: the epsilon that its settings ask for; ``at_most``: what no run with these settings
    has spent more than, whatever its seed.
    """

    name: str
    settings: Settings
    seed: int
    summary: Mapping[str, Any] | None
    error: tuple[str, str] | None = None
    config_hash: str | None = None
    code_commit: str | None = None
    seconds: float | None = None
    cpu_seconds: float | None = None
    bytes_up: int | None = None
    bytes_down: int | None = None
    asked: float | None = None
    at_most: float | None = None

    @property
    def found(self) -> Mapping[str, Any]:
        """The summary of a run that is done."""
        assert self.summary is not None
        return self.summary

    @property
    def combination(self) -> str:
        """Its settings, the same in all runs that differ by seed alone."""
        return repr(sorted(self.settings.items()))

    @property
    def is_private(self) -> bool:
        """Whether noise was added."""
        return self.found["trust"] != Trust.OFF

    @property
    def is_seeded(self) -> bool:
        """Whether noise was added that the run's seed repeats, which promises nothing."""
        return self.is_private and self.spent is None

    @property
    def epsilon(self) -> float | None:
        """What was asked for, or where that is not on record the most that any seed spent, in two
        places; None without privacy. By seed it differs what is spent, in the last digits, or by
        more where it is drawn which sites take part: the condition is one all the same."""
        if not self.is_private:
            return None
        varied = self.settings.get(EPSILON)
        asked = self.asked if varied is None else varied
        return self.at_most if asked is None else float(asked)

    @property
    def spent(self) -> float | None:
        """The largest epsilon of any site; None where nothing was promised."""
        told = [row["epsilon"] for row in self.found["sites"].values()]
        return None if not told or None in told else max(told)

    @property
    def worst_site(self) -> str:
        """Where the one model of all sites fares worst, by the figure of merit."""
        return worst_of(self.found)

    @property
    def num_bytes(self) -> int | None:
        """Both ways."""
        if self.bytes_up is None or self.bytes_down is None:
            return None
        return self.bytes_up + self.bytes_down


@dataclass(frozen=True, kw_only=True)
class Study:
    """All points; ``keys``: the dotted settings with more than one value, epsilon first;
    ``against``: the combinations that all others are tested against, by name."""

    folder: Path
    points: tuple[Point, ...]
    keys: tuple[str, ...]
    cut: bool = False
    against: tuple[str, ...] = ()

    @property
    def done(self) -> tuple[Point, ...]:
        """The points with a result."""
        return tuple(point for point in self.points if point.summary is not None)

    @property
    def failed(self) -> tuple[Point, ...]:
        """The others."""
        return tuple(point for point in self.points if point.summary is None)

    @property
    def metric(self) -> str:
        """The figure of merit, the same in all runs."""
        return str(self.done[0].found["metric"])

    @property
    def higher_is_better(self) -> bool:
        """Which way is better."""
        return bool(self.done[0].found["higher_is_better"])

    @property
    def kind(self) -> str:
        """The kind of supervision."""
        return str(self.done[0].found["task"])


def site_values(summary: Mapping[str, Any]) -> dict[str, float]:
    """The figure of merit of the one model of all sites, on each site's own test rows."""
    return {site: float(row["value"]) for site, row in summary["sites"].items()}


def worst_of(summary: Mapping[str, Any]) -> str:
    """The site where that is worst."""
    values, sign = site_values(summary), 1.0 if summary["higher_is_better"] else -1.0
    return min(values, key=lambda site: (sign * values[site], site))
