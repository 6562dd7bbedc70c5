"""The rows of a table as the inputs of a network on columns."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hushtune.common.columns import Column, encoded
from hushtune.common.errors import CheckpointError
from hushtune.common.files import read_json
from hushtune.common.tasks.units import Rows

COLUMNS_FILE = "columns.json"


@dataclass(frozen=True, eq=False)
class ColumnRows:
    """One vector a row: each is as wide as every other."""

    values: Tensor  # (n, inputs)

    @cached_property
    def lengths(self) -> Rows:
        """One position a row, ``(n,)``."""
        return np.ones(len(self.values), dtype=np.int64)

    @cached_property
    def widths(self) -> Rows:
        """As ``lengths``."""
        return self.lengths

    def inputs(self, rows: Rows) -> Mapping[str, Tensor]:
        """``features (b, inputs)``."""
        return {"features": self.values[torch.from_numpy(rows)]}


@dataclass(frozen=True)
class ColumnEncoder:
    """What a tokenizer is to texts: public ranges and lists, saved beside the network."""

    columns: tuple[Column, ...]

    def rows(self, texts: Sequence[str]) -> tuple[ColumnRows, tuple[str, ...]]:
        """Canonical rows as inputs, and a line for each thing that is odd of a column."""
        values, notes = encoded(self.columns, texts)
        return ColumnRows(torch.from_numpy(values)), notes

    def save_pretrained(self, folder: str) -> None:
        """Write ``columns.json``."""
        told = {"columns": [column.to_dict() for column in self.columns]}
        text = json.dumps(told, indent=2, ensure_ascii=False)
        (Path(folder) / COLUMNS_FILE).write_text(text + "\n", encoding="utf-8")


def load_columns(folder: Path, *, remedy: str) -> ColumnEncoder:
    """What ``save_pretrained`` wrote; raises CheckpointError."""
    raw = read_json(folder / COLUMNS_FILE, remedy=remedy)
    try:
        return ColumnEncoder(tuple(Column.from_dict(column) for column in raw["columns"]))
    except (KeyError, TypeError, ValueError) as error:
        raise CheckpointError(
            f"the file {folder / COLUMNS_FILE} is damaged",
            given=str(error)[:200],
            expected="a name with low and high, or with values, for each column",
            remedy=remedy,
        ) from error
