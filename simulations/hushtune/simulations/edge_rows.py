"""The test rows of a run, read anew from the data that its settings name."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG, loads_config
from hushtune.common.errors import HushtuneError
from hushtune.common.files import read_json, read_text
from hushtune.common.kinds import Targets
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.units import Rows


@dataclass(frozen=True)
class TestRows:
    """Inputs as strings and each one's target as ``edge_measure.judge_of`` reads it; or why there
    are none."""

    __test__ = False  # pytest takes it for tests

    texts: tuple[str, ...]
    targets: NDArray[Any]  # (n, ...)
    why_none: str = ""


def no_rows(why: str) -> TestRows:
    """None, and the reason."""
    return TestRows((), np.zeros(0, dtype=np.int64), why)


def rows_of_run(folder: Path, labels: tuple[str, ...], *, site: str | None = None) -> TestRows:
    """The test rows of a run's folder, of all sites or of one, if they are those of the run.

    ``labels``: the model's. Whatever hinders is told and ends nothing: the model can be written
    without them.
    """
    if not (folder / CONFIG).is_file():
        return no_rows("the folder is that of an adapter, which knows no data")
    try:
        config = loads_config(read_text(folder / CONFIG, remedy="name the folder of a whole run"))
        if config.data.source == "sites":
            return no_rows("the rows are at their sites")
        return _rows(folder, config, labels, site)
    except HushtuneError as error:
        return no_rows(f"the run's data cannot be read: {str(error).splitlines()[0]}")


def _rows(folder: Path, config: RunConfig, labels: tuple[str, ...], site: str | None) -> TestRows:
    kind = config.task.of
    if kind.targets in (Targets.TAGS, Targets.ANSWER):
        return no_rows(f"answers of {kind.name} are not judged one by one")
    data = load_data(
        config.data,
        config.task,
        seed=config.seed,
        records_per_group=config.privacy.records_per_group,
    )
    sites = sorted(data.sites) if site is None else [site]
    counts = {name: len(split.test) for name, split in data.sites.items()}
    summary = read_json(folder / "summary.json", remedy="name the folder of a whole run")
    known = {name: row["test_rows"] for name, row in summary["sites"].items()}
    if data.label_names != labels or counts != known:
        return no_rows("the data are no longer those of the run")
    rows = np.concatenate([data.sites[name].test for name in sites])
    if not len(rows):
        return no_rows("there are none")
    return TestRows(tuple(data.texts[row] for row in rows), _targets(data, rows))


def _targets(data: LabelledRows, rows: Rows) -> NDArray[Any]:
    if data.kind.targets is Targets.NUMBER:
        return np.array([float(data.answers[row]) for row in rows])
    if data.kind.targets is Targets.CLASSES:
        has = [set(data.answers[row].split("|")) for row in rows]
        return np.array([[name in mine for name in data.label_names] for mine in has])
    return data.labels[rows]
