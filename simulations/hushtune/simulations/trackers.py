"""A run's figures in TensorBoard or MLflow: those of metrics.jsonl and summary.json, no others.

They are read from the run's folder, also while it goes on, so that no tracker can change or stop a
run. Both libraries are extras. A run that is tracked again replaces what it had there.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import shutil
import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG, loads_config
from hushtune.common.errors import (
    ConfigError,
    HushtuneError,
    OutputExistsError,
    RunError,
)
from hushtune.common.files import read_json, read_json_lines, read_text
from hushtune.simulations.outputs import METRICS, SUMMARY

EXPERIMENT = "hushtune"
_EVENTS = "events.out.tfevents."
_LIBRARIES = {"tensorboard": ("tensorboard",), "mlflow": ("mlflow", "sqlalchemy", "alembic")}
_FORMS = "tensorboard:FOLDER, or mlflow:URI, such as mlflow:sqlite:///mlflow.db"
_NO_RUN = "name a run's folder: hushtune simulate --out DIR makes one"
_SECONDS = 1.0
"""Between two looks at a run that goes on."""


class Tracker(Protocol):
    """Where a run's figures go, one run at a time."""

    def begin(self, name: str, settings: Mapping[str, str]) -> None:
        """A run begins, or begins again: what was there of it goes."""
        ...

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """Figures of a round."""
        ...

    def end(self, *, finished: bool) -> None:
        """Nothing more is told of the run."""
        ...


def scalars(row: Mapping[str, Any], *, prefix: str = "") -> dict[str, float]:
    """All finite numbers of nested JSON, by their keys joined with ``/``.

    >>> scalars({"loss": 0.5, "sites": {"east": {"loss": 1}}, "phase": "warmup", "round": 1})
    {'loss': 0.5, 'sites/east/loss': 1.0}
    """
    found: dict[str, float] = {}
    for key, value in row.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            found |= scalars(value, prefix=f"{name}/")
        elif type(value) in (int, float) and math.isfinite(value) and name != "round":
            found[name] = float(value)
    return found


def tracker(where: str) -> Tracker:
    """Of ``tensorboard:FOLDER`` or ``mlflow:URI``. Raises ConfigError."""
    kind, _, place = where.partition(":")
    if kind not in _LIBRARIES or not place:
        raise ConfigError(
            "there is no such tracker", given=where, expected=_FORMS, remedy="name one of the two"
        )
    if any(find_spec(name) is None for name in _LIBRARIES[kind]):
        raise ConfigError(
            f"{kind} is not installed",
            given=where,
            expected=f"the libraries {', '.join(_LIBRARIES[kind])}",
            remedy="pip install 'hushtune[trackers]'",
        )
    return TensorBoard(Path(place)) if kind == "tensorboard" else MLflow(place)


def track(folder: Path | str, to: Sequence[str], *, follow: bool = False) -> int:
    """Hand a run's figures on, and return how many rounds there were.

    ``to``: places as of ``tracker``. ``follow``: wait for rounds to come until the run is finished.
    Raises CheckpointError where there is no run, RunError for what a tracker does not take.
    """
    folder = Path(folder).resolve()
    places, done = [tracker(where) for where in to], 0
    settings = flat_settings(loads_config(read_text(folder / CONFIG, remedy=_NO_RUN)))
    for place in places:
        with _failing(place):
            place.begin(run_name(folder), settings)
    while True:
        over = not follow or (folder / SUMMARY).is_file()  # looked at before the rows
        rows = _rows(folder)
        for place in places:
            with _failing(place):
                for row in rows[done:]:
                    place.add(scalars(row), row["round"])
        done = len(rows)
        if over:
            break
        time.sleep(_SECONDS)
    finished = (folder / SUMMARY).is_file()
    for place in places:
        with _failing(place):
            if finished:
                summary = read_json(folder / SUMMARY, remedy=_NO_RUN)
                place.add(_last(summary), summary["rounds"])
            place.end(finished=finished)
    return done


def run_name(folder: Path) -> str:
    """The folder's name and, as others may have the same, six digits of where it is."""
    where = hashlib.sha256(str(folder.resolve()).encode()).hexdigest()[:6]
    return f"{folder.name}-{where}"


def _rows(folder: Path) -> list[dict[str, Any]]:
    """The whole lines of metrics.jsonl, which may be being written; none where it is not there."""
    if not (folder / METRICS).is_file():
        return []
    return read_json_lines(folder / METRICS, remedy=_NO_RUN, growing=True)


def _last(summary: Mapping[str, Any]) -> dict[str, float]:
    """What stands in no round's line: the figures on test rows, and what they are compared with."""
    kept = ("metrics", "baselines", "head_by_layer", "sites", "worst_site", "forgetting", "seconds")
    return scalars({key: summary[key] for key in kept if summary.get(key)}, prefix="final/")


def flat_settings(config: RunConfig) -> dict[str, str]:
    """Each setting by its dotted key, as ``--set`` takes it."""
    found: dict[str, str] = {}
    for name, value in config.model_dump(mode="json").items():
        part = value if isinstance(value, dict) else {"": value}
        for key, inner in part.items():
            found[f"{name}.{key}" if key else name] = json.dumps(inner, ensure_ascii=False)
    return found


@contextmanager
def _failing(place: Tracker) -> Generator[None]:
    """What a tracker's library raises becomes a RunError."""
    try:
        yield
    except HushtuneError:
        raise
    except Exception as error:
        raise RunError(
            f"{type(place).__name__} did not take the run's figures",
            given=str(error).strip()[:300],
            expected=_FORMS,
            remedy="look at the folder or the address, and track the run again",
        ) from error


class TensorBoard:
    """Event files in a folder of the run's name; final."""

    def __init__(self, root: Path) -> None:
        self._root = root

    def begin(self, name: str, settings: Mapping[str, str]) -> None:
        """See Tracker."""
        from torch.utils.tensorboard.writer import SummaryWriter

        folder = self._root / name
        if folder.is_dir():
            foreign = [p.name for p in folder.iterdir() if not p.name.startswith(_EVENTS)]
            if foreign:
                raise OutputExistsError(
                    "the run's place in TensorBoard's folder holds something else",
                    given=str(folder / foreign[0]),
                    remedy="name another folder",
                )
            shutil.rmtree(folder)
        self._writer = SummaryWriter(str(folder))
        lines = "\n".join(f"    {key} = {value}" for key, value in settings.items())
        self._writer.add_text("settings", lines, 0)

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        for name, value in scalars.items():
            self._writer.add_scalar(name, value, step)
        self._writer.flush()

    def end(self, *, finished: bool) -> None:
        """See Tracker."""
        self._writer.close()


class MLflow:
    """A run of the experiment ``hushtune`` in a tracking store; final."""

    def __init__(self, uri: str) -> None:
        self._uri = uri

    def begin(self, name: str, settings: Mapping[str, str]) -> None:
        """See Tracker."""
        # Its own seven retries with ever longer pauses are minutes in which nothing is said.
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
        os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "20")
        from mlflow.tracking import MlflowClient

        self._client = MlflowClient(tracking_uri=self._uri)
        known = self._client.get_experiment_by_name(EXPERIMENT)
        place = self._client.create_experiment(EXPERIMENT) if known is None else known.experiment_id
        for old in self._client.search_runs([place], f"attributes.run_name = '{_named(name)}'"):
            self._client.delete_run(old.info.run_id)
        self._run = self._client.create_run(place, run_name=_named(name)).info.run_id
        for key, value in settings.items():
            self._client.log_param(self._run, key, value[:500])

    def add(self, scalars: Mapping[str, float], step: int) -> None:
        """See Tracker."""
        from mlflow.entities import Metric
        from mlflow.utils.time import get_current_time_millis

        now = get_current_time_millis()
        told = [Metric(_named(key), value, now, step) for key, value in scalars.items()]
        for begin in range(0, len(told), 1000):  # the most that a call takes
            self._client.log_batch(self._run, metrics=told[begin : begin + 1000])

    def end(self, *, finished: bool) -> None:
        """See Tracker."""
        self._client.set_terminated(self._run, None if finished else "KILLED")


def _named(key: str) -> str:
    """A name that MLflow takes: letters, digits and ``_-. :/``."""
    return re.sub(r"[^\w\-. :/]", "_", key, flags=re.ASCII)
