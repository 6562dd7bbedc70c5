"""A column of labels in place of the text is recognised, and the text's own column proposed."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import pytest

from hushtune.common.config import DataConfig
from hushtune.common.errors import EmptyDataError
from hushtune.common.tasks.data import load_data

from ...conftest import made_up_rows

ROWS = [
    {"site": site, "id": f"{index:04}", "stars": str(1 + index % 4), "review": text, "mood": label}
    for index, (site, text, label) in enumerate(made_up_rows({"north": 60, "south": 40}))
]


def write(path: Path) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        if path.suffix == ".jsonl":
            file.writelines(json.dumps(row) + "\n" for row in ROWS)
        else:
            mark = "\t" if path.suffix == ".tsv" else ";" if path.stem == "semicolons" else ","
            writer = csv.DictWriter(file, ROWS[0].keys(), delimiter=mark)
            writer.writeheader()
            writer.writerows(ROWS)
    return path


@pytest.mark.parametrize("name", ["rows.csv", "semicolons.csv", "rows.tsv", "rows.jsonl"])
@pytest.mark.parametrize("text", ["stars", "mood"])
def test_a_column_of_labels_is_said_to_be_one(tmp_path: Path, name: str, text: str) -> None:
    """All rows contradict or repeat one another, so that a site, or all, are left with none."""
    config = DataConfig(file=write(tmp_path / name), text=text, label="mood", site="site")
    with pytest.raises(EmptyDataError, match="after cleaning") as caught:
        load_data(config, seed=0)
    said = str(caught.value.remedy)
    assert f"data.text = {text!r} looks like a column of labels" in said
    assert "set data.text to the column with the sentences, perhaps 'review'" in said


def test_nothing_is_proposed_where_no_column_is_likely(tmp_path: Path) -> None:
    rows = [f"{'ns'[i % 2]},{i % 3},{i % 2}\n" for i in range(60)]
    (tmp_path / "rows.csv").write_text("site,text,label\n" + "".join(rows), encoding="utf-8")
    config = DataConfig(file=tmp_path / "rows.csv", site="site")
    with pytest.raises(EmptyDataError) as caught:
        load_data(config, seed=0)
    assert "looks like a column of labels" in str(caught.value.remedy)
    assert "perhaps" not in str(caught.value.remedy)


def test_real_copies_are_not_taken_for_labels(tmp_path: Path) -> None:
    sentences = [text for _, text, _ in made_up_rows({"a": 40})]
    rows = [f"{site},{s},{i % 2}\n" for site in "ns" for i, s in enumerate(sentences)]
    (tmp_path / "rows.csv").write_text("site,text,label\n" + "".join(rows), encoding="utf-8")
    config = DataConfig(file=tmp_path / "rows.csv", site="site")
    with pytest.raises(EmptyDataError, match="site 's' has no rows left") as caught:
        load_data(config, seed=0)
    assert "copies of another site's" in str(caught.value.remedy)
