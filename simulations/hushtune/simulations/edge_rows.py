"""The test rows of a run, read anew from the data that its settings name.

They are asked one at a time and without padding, as a device asks.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hushtune.common.config import AugmentConfig, RunConfig
from hushtune.common.config_io import CONFIG, loads_config
from hushtune.common.errors import HushtuneError
from hushtune.common.files import read_json, read_text
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.answer_rows import AnswerRows
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.encoder import Encoder
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.registry import prepare
from hushtune.common.tasks.targets import TokenTargets


@dataclass(frozen=True)
class TestRows:
    """The test rows of a run, with its settings; or why there are none."""

    __test__ = False  # pytest takes it for tests

    held: tuple[RunConfig, LabelledRows] | None
    why_none: str = ""

    @property
    def texts(self) -> tuple[str, ...]:
        """Their canonical inputs."""
        return () if self.held is None else self.held[1].texts

    def prepared(self, encoder: Encoder) -> Prepared | None:
        """Inputs, targets and objective as evaluation has them in a run; None of no rows."""
        return None if self.held is None else prepare(*self.held, encoder)


def no_rows(why: str) -> TestRows:
    """None, and the reason."""
    return TestRows(None, why)


def alone(prepared: Prepared, row: int) -> tuple[Mapping[str, Tensor], Tensor]:
    """Inputs and targets of one row, a batch of its own that nothing is padded in."""
    inputs, targets, one = prepared.inputs, prepared.targets, np.array([row])
    if isinstance(inputs, AnswerRows):
        inputs = inputs.tokens
    if isinstance(inputs, TokenRows):
        ids = _unpadded(inputs, row)
        given: Mapping[str, Tensor] = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    else:
        given = inputs.inputs(one)
    if isinstance(targets, TokenTargets):
        return given, _unpadded(targets.tokens, row)
    return given, targets.take(one)


def _unpadded(tokens: TokenRows, row: int) -> Tensor:
    """``(1, t)``."""
    return tokens.ids[int(tokens.offsets[row]) : int(tokens.offsets[row + 1])].long()[None]


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
    # Of other rows nothing is made ready: of these what is read, and not where it stood.
    texts, answers = (tuple(all_of[row] for row in rows) for all_of in (data.texts, data.answers))
    tested = replace(data, texts=texts, answers=answers, labels=data.labels[rows], sites={})
    train = config.train.model_copy(update={"pixel_megabytes": 0})  # each image is read once or so
    as_they_are = {"augment": AugmentConfig(), "train": train}
    return TestRows((config.model_copy(update=as_they_are), tested))
