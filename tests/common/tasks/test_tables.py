"""Tables of the `datasets` library."""

from __future__ import annotations

from pathlib import Path

import pytest

from hushtune.common.tasks.readers import read_dataset
from hushtune.common.tasks.rows import Columns


def test_classes_are_called_by_their_names_in_every_column(tmp_path: Path) -> None:
    """Such a column holds numbers: sites 0 and 1 would stand in ledgers and statements."""
    datasets = pytest.importorskip("datasets")
    values = {"text": ["fine", "dull"], "label": [1, 0], "site": [0, 1], "patient": [1, 1]}
    features = {
        "text": datasets.Value("string"),
        "label": datasets.ClassLabel(names=["bad", "good"]),
        "site": datasets.ClassLabel(names=["east", "north"]),
        "patient": datasets.ClassLabel(names=["ann", "bob"]),
    }
    made = datasets.Dataset.from_dict(values, features=datasets.Features(features))
    made.save_to_disk(str(tmp_path / "set"))
    columns = Columns(text="text", label="label", site="site", group="patient")
    rows = list(read_dataset(str(tmp_path / "set"), columns))
    found = [(row.text, row.label, row.site, row.group) for row in rows]
    assert found == [("fine", "good", "east", "bob"), ("dull", "bad", "north", "bob")]
