"""What a sweep leaves: ``results.jsonl``, a row a point, and the same as a table."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushtune.common.errors import CheckpointError, MissingFileError, RunError
from hushtune.common.files import read_text, write_text
from hushtune.common.json_text import json_text
from hushtune.common.version import source_commit
from hushtune.simulations.reporting.points import site_values, worst_of
from hushtune.simulations.sweep.execute import Outcome
from hushtune.simulations.sweep.points import Point

if TYPE_CHECKING:
    import pandas

RESULTS, TABLE = "results.jsonl", "results.csv"
DONE, FAILED = "done", "failed"
Row = dict[str, Any]
"""point, name, settings, seed, epsilon_asked, status, error, config_hash, code_commit, seconds,
cpu_seconds, bytes_up, bytes_down, summary."""


def row_of(point: Point, outcome: Outcome) -> Row:
    """The row of a point that has ended, whichever way.

    ``seconds`` and ``cpu_seconds`` are those of the process that ended it: of a run that was found
    finished, what its summary tells, and no time of processors.
    """
    row = {
        **_described(point),
        "status": outcome["status"],
        "error": outcome.get("error"),
        "code_commit": outcome.get("code_commit", source_commit()),
        "seconds": outcome.get("seconds"),
        "cpu_seconds": outcome.get("cpu_seconds"),
        "bytes_up": outcome.get("bytes_up"),
        "bytes_down": outcome.get("bytes_down"),
        "summary": outcome.get("summary"),
    }
    return json.loads(json_text(row))  # as whoever reads the file gets it


def described_anew(row: Row, point: Point) -> Row:
    """A row that is there already, by the name and settings that the study has now."""
    return {**row, **_described(point)}


def _described(point: Point) -> Row:
    return {
        "point": point.key,
        "name": point.name,
        "settings": dict(point.settings),
        "seed": point.config.seed,
        "epsilon_asked": point.config.privacy.epsilon,
        "config_hash": point.config_hash,
    }


def read_rows(folder: Path) -> list[Row]:
    """The rows of a sweep's folder; none where there are none yet. CheckpointError if damaged."""
    path = folder / RESULTS
    if not path.is_file():
        return []
    rows: list[Row] = []
    for number, line in enumerate(read_text(path, remedy=_MEND).splitlines(), 1):
        try:
            row = json.loads(line)
            if not isinstance(row["point"], str) or row["status"] not in (DONE, FAILED):
                raise ValueError(f"status {row['status']!r}")
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise CheckpointError(
                f"line {number} of {path} is no row of results",
                given=f"{type(error).__name__}: {error}"[:200],
                remedy=_MEND,
            ) from None
        rows.append(row)
    return rows


_MEND = (
    "remove the file and run the sweep again: what is in points/ is not run anew, and its times "
    "are then those of finding it"
)


def write_rows(folder: Path, rows: Iterable[Row]) -> None:
    """Replace ``results.jsonl`` and ``results.csv``, each as a whole."""
    rows = list(rows)
    write_text(folder / RESULTS, "".join(json_text(row) + "\n" for row in rows))
    flat = [flat_row(row) for row in rows]
    columns = list(dict.fromkeys(key for row in flat for key in row))
    text = io.StringIO()
    table = csv.DictWriter(text, columns, restval="", lineterminator="\n")
    table.writeheader()
    table.writerows(flat)
    write_text(folder / TABLE, text.getvalue())


def flat_row(row: Mapping[str, Any]) -> Row:
    """A row as columns: varied settings by their keys, then figures; lists as JSON.

    ``epsilon`` is the largest of any site, None where nothing was promised. Figures are of the one
    model of all sites, but for ``own_models``: there each site uses its own, if it has one.
    """
    summary: Mapping[str, Any] = row.get("summary") or {}
    told = [site["epsilon"] for site in summary.get("sites", {}).values()]
    known = summary.keys() >= {"sites", "higher_is_better"}
    values, worst = (site_values(summary), worst_of(summary)) if known else ({}, None)
    names = ("point", "name", "status", "seed")
    return {
        **{key: row.get(key) for key in names},
        **{key: _cell(value) for key, value in row["settings"].items()},
        "metric": summary.get("metric"),
        "value": summary.get("value"),
        "macro_f1": summary.get("macro_f1"),
        "own_models": summary.get("personal"),
        "worst_site": worst,
        "worst_value": None if worst is None else values[worst],
        "spread": max(values.values()) - min(values.values()) if values else None,
        "epsilon": max(told) if told and None not in told else None,
        "sites": len(told) or None,
        **{f"baselines.{key}": v for key, v in summary.get("baselines", {}).items()},
        **_forgetting(summary.get("forgetting")),
        **{key: row.get(key) for key in ("bytes_up", "bytes_down", "seconds", "cpu_seconds")},
        "config_hash": row.get("config_hash"),
        "code_commit": row.get("code_commit"),
        "error": None if row.get("error") is None else row["error"]["code"],
    }


def _forgetting(found: Mapping[str, Any] | None) -> Row:
    numbers = (found or {}).items()
    return {f"forgetting.{k}": v for k, v in numbers if isinstance(v, int | float)}


def _cell(value: object) -> object:
    return json.dumps(value) if isinstance(value, list | dict) else value


def rows_frame(folder: Path | str) -> pandas.DataFrame:
    """The results of a sweep's folder as a table, a row a point, as in ``results.csv``.

    Raises MissingFileError where there are none, and RunError where pandas is not installed.
    """
    try:
        import pandas
    except ImportError:
        raise RunError(
            "a table of results needs pandas",
            given="pandas is not installed",
            remedy="pip install 'hushtune[lab]'",
        ) from None
    rows = read_rows(Path(folder))
    if not rows:
        raise MissingFileError(
            "there are no results of a sweep here",
            file=folder,
            remedy="hushtune sweep STUDY.toml --out DIR",
        )
    return pandas.DataFrame([flat_row(row) for row in rows])
