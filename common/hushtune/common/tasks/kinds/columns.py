"""A table's rows as numbers, for a small network that reads its columns as they are."""

from __future__ import annotations

from hushtune.common.config import RunConfig
from hushtune.common.kinds import Targets
from hushtune.common.tasks.column_rows import ColumnEncoder
from hushtune.common.tasks.data import LabelledRows
from hushtune.common.tasks.kinds.classification import classes, objective
from hushtune.common.tasks.kinds.prepared import Prepared
from hushtune.common.tasks.kinds.regression import numbers
from hushtune.common.tasks.objectives import Regression

_EVALUATION_BATCH = 256


def prepare(config: RunConfig, data: LabelledRows, encoder: ColumnEncoder) -> Prepared:
    """Scaled and one-hot columns, and classes or numbers."""
    rows, notes = encoder.rows(data.texts)
    if config.task.of.targets is Targets.NUMBER:
        targets, over = numbers(data), Regression(*config.task.bounds)
    else:
        targets, over = classes(data), objective(config, data.label_names)
    return Prepared(rows, targets, over, _EVALUATION_BATCH, notes=notes)
