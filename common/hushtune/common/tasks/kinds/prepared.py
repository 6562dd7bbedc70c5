"""A table of rows made ready for a model: inputs, targets and what outputs are held against."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.tasks.activations import InputRows
from hushtune.common.tasks.augment import AugmentedRows
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.objectives import Objective
from hushtune.common.tasks.supervised import EVALUATION_BATCH
from hushtune.common.tasks.targets import TargetRows


@dataclass(frozen=True)
class Prepared:
    """All that a task needs beside its model.

    ``evaluation_batch``: rows judged at once. ``augmented``: the inputs as training changes them.
    ``notes``: what is odd of the rows, a sentence each.
    """

    inputs: InputRows
    targets: TargetRows
    objective: Objective
    evaluation_batch: int = EVALUATION_BATCH
    augmented: AugmentedRows | None = None
    notes: tuple[str, ...] = ()


Prepare = Callable[[RunConfig, LabelledRows, Any], Prepared]
"""Makes rows ready, with what encodes the inputs of their kind."""
