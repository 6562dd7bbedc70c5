"""The results of a study, read: one point for each run, with what was varied.

A study is a folder with ``results.jsonl``, a JSON object a line, or one with a folder for each run,
of which every one has ``summary.json`` and ``config.toml``.
"""

from __future__ import annotations

import json
import tomllib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

from hushtune.common.config_io import CONFIG, loads_config
from hushtune.common.errors import BadValueError, CheckpointError, MissingFileError
from hushtune.common.files import read_json, read_text
from hushtune.common.privacy.figures import upwards
from hushtune.simulations.reporting.points import (
    EPSILON,
    METRICS,
    RESULTS,
    STUDY_FILE,
    SUMMARY,
    Point,
    Settings,
    Study,
)

_BELOW = ("points", "runs")
_PLACES = ("simulation.policies", "simulation.ledgers")
_MEND = "get a whole copy of the results, or leave that line or folder out"


def read_study(folder: Path) -> Study:
    """The study in a folder.

    Raises MissingFileError where there are no results, CheckpointError for damaged ones, and
    BadValueError for runs that do not share one figure of merit or of which none is done.
    """
    cut = False
    if (folder / RESULTS).is_file():
        points, cut = _from_results(folder)
    else:
        points = _from_folders(folder)
    if not points:
        raise MissingFileError(
            "there are no results of a study here",
            file=folder,
            expected=f"a folder with {RESULTS}, or with a folder for each run",
            remedy="name the folder that the study was written to (its --out)",
        )
    figures = {(p.found["metric"], p.found["task"]) for p in points if p.summary is not None}
    if len(figures) != 1:
        told = ", ".join(f"{metric} of {kind}" for metric, kind in sorted(figures))
        raise BadValueError(
            "a report compares runs by one figure",
            file=folder,
            given=told or "no run that is done",
            expected="runs of one kind and one main metric, at least one of them done",
            remedy="report on each kind for itself" if told else "see what the runs failed of",
        )
    return Study(
        folder=folder,
        points=tuple(_with_spent(points)),
        keys=_varied(points),
        cut=cut,
        against=_against(folder),
    )


def _with_spent(points: Sequence[Point]) -> Iterable[Point]:
    """The points with what runs of their settings spent at most."""
    spent: dict[str, float] = {}
    for point in points:
        if point.summary is not None and point.spent is not None:
            spent[point.combination] = max(point.spent, spent.get(point.combination, 0.0))
    for point in points:
        most = spent.get(point.combination)
        # What is less than that above a figure in two places is rounding, and not spent.
        rounded = None if most is None else float(upwards(max(0.0, most - 1e-9), places=2))
        yield replace(point, at_most=rounded)


def _against(folder: Path) -> tuple[str, ...]:
    """What the study's own file names, where one lies there that says so."""
    try:
        found: Any = tomllib.loads((folder / STUDY_FILE).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return ()
    names = found.get("against", [])
    return tuple(filter(None, map(str, names))) if isinstance(names, list) else ()


def _from_results(folder: Path) -> tuple[list[Point], bool]:
    """The points by name, the last line of each; and whether the last line is still being
    written."""
    text = read_text(folder / RESULTS, remedy=_MEND)
    lines = text.split("\n")
    cut = bool(lines.pop().strip())  # what follows the last line's end
    points: dict[str, Point] = {}
    for number, line in enumerate(lines, 1):
        if line.strip():
            point = _point(line, number, folder)
            points[point.name] = point
    return list(points.values()), cut


def _point(line: str, number: int, folder: Path) -> Point:
    try:
        row = json.loads(line)
        done, error = row["status"] == "done", row.get("error") or {}
        summary = _checked(row["summary"]) if done else None
        return Point(
            name=str(row["name"]),
            settings={str(key): _leaf(value) for key, value in dict(row["settings"]).items()},
            seed=int(row["seed"]),
            summary=summary,
            error=None if done else (str(error.get("code", "")), str(error.get("text", ""))),
            config_hash=row.get("config_hash"),
            code_commit=row.get("code_commit"),
            seconds=row.get("seconds"),
            cpu_seconds=row.get("cpu_seconds"),
            bytes_up=row.get("bytes_up"),
            bytes_down=row.get("bytes_down"),
            asked=row.get("epsilon_asked"),
        )
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise CheckpointError(
            f"line {number} of {folder / RESULTS} is no result",
            given=f"{type(error).__name__}: {error}"[:200],
            expected="an object with name, settings, seed, status, and summary or error",
            remedy=_MEND,
        ) from None


def _checked(summary: Mapping[str, Any]) -> Mapping[str, Any]:
    """A summary with all that a report cannot do without; KeyError or TypeError."""
    for key in ("metric", "higher_is_better", "task", "trust", "baselines", "worst_site"):
        summary[key]
    float(summary["value"])
    for row in summary["sites"].values():
        float(row["value"])
        row["epsilon"]
    return summary


def _from_folders(folder: Path) -> list[Point]:
    """A point for each folder of a run, with the settings in which they differ."""
    if not folder.is_dir():
        return []
    below = (path for name in _BELOW for path in (folder / name).glob("*"))
    runs = sorted(path for path in (*folder.iterdir(), *below) if path.is_dir())
    found: list[tuple[Path, dict[str, Any], Mapping[str, Any]]] = []
    for run in runs:
        if (run / SUMMARY).is_file() and (run / CONFIG).is_file():
            config = loads_config(read_text(run / CONFIG, remedy=_MEND))
            try:
                summary = _checked(read_json(run / SUMMARY, remedy=_MEND))
            except (KeyError, TypeError, ValueError) as error:
                raise CheckpointError(
                    f"the file {run / SUMMARY} is no summary of a run",
                    given=f"{type(error).__name__}: {error}"[:200],
                    remedy=_MEND,
                ) from None
            found.append((run, _flat(config.model_dump(mode="json")), summary))
    differ = _differing([settings for _, settings, _ in found])
    return [
        _with_traffic(
            Point(
                name=run.name,
                settings={key: settings.get(key) for key in differ},
                seed=int(settings["seed"]),
                summary=summary,
                config_hash=summary.get("config_hash"),
                asked=float(settings[EPSILON]),
                seconds=summary.get("seconds", {}).get("total"),
            ),
            run,
        )
        for run, settings, summary in found
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """The leaves of a configuration by dotted key; lists as JSON."""
    found: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            found |= _flat(cast("Mapping[str, Any]", value), f"{prefix}{key}.")
        else:
            found[prefix + key] = _leaf(value)
    return found


def _leaf(value: Any) -> Any:
    """A value that can tell runs apart: lists and tables as JSON."""
    return json.dumps(value, ensure_ascii=False) if isinstance(value, list | dict) else value


def _differing(all_settings: Sequence[Settings]) -> list[str]:
    keys = {key: None for settings in all_settings for key in settings}
    return [
        key
        for key in keys
        if key != "seed"
        and key not in _PLACES
        and len({repr(settings.get(key)) for settings in all_settings}) > 1
    ]


def _with_traffic(point: Point, run: Path) -> Point:
    """The bytes of all rounds, of a run whose folder is there."""
    if not (run / METRICS).is_file():
        return point
    try:
        lines = read_text(run / METRICS, remedy=_MEND).splitlines()
        rows = [json.loads(line) for line in lines if line.strip()]
        up, down = (sum(int(row[key]) for row in rows) for key in ("bytes_up", "bytes_down"))
    except (ValueError, KeyError, TypeError):
        return point
    return replace(point, bytes_up=up, bytes_down=down)


def _varied(points: Iterable[Point]) -> tuple[str, ...]:
    """The settings that have more than one value among the points that are done.

    What has no privacy has no epsilon, and that alone makes no trust model a varied one.
    """
    done = [point for point in points if point.summary is not None]
    private = [point for point in done if point.is_private]
    keys = {key: None for point in done for key in point.settings}
    found = [
        key
        for key in keys
        if len({repr(p.settings.get(key)) for p in (private if _is_privacy(key) else done)}) > 1
    ]
    return tuple(sorted(found, key=lambda key: key != EPSILON))


def _is_privacy(key: str) -> bool:
    return key.startswith("privacy.")
