"""What a row lacks is left out and counted, or refused with file, row and column."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config import DataConfig
from hushtune.common.errors import BadValueError
from hushtune.common.tasks.data import LabelledRows, load_data

Cells = dict[str, Any]
COLUMNS = {"text": "review", "label": "stars", "site": "ward", "group": "patient"}
NAMES: dict[str, tuple[Any, ...]] = {"label": ("bad", "good"), "site": ("x", "y")}
NUMBERS: dict[str, tuple[Any, ...]] = {"label": (1, 2), "site": (10, 20)}


def cells(names: dict[str, tuple[Any, ...]]) -> list[Cells]:
    """Forty rows; labels in turn, sites by halves, a patient each two rows."""
    return [
        {
            "review": f"review number {i}",
            "stars": names["label"][i % 2],
            "ward": names["site"][i // 20],
            "patient": i // 2 if names is NUMBERS else f"p{i // 2}",
        }
        for i in range(40)
    ]


def loaded(folder: Path, rows: list[Cells], name: str, **options: Any) -> LabelledRows:
    path = folder / name
    if name.endswith(".jsonl"):
        path.write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    else:
        lines = [",".join(str(cell) for cell in row.values()) for row in rows]
        path.write_text("\n".join([",".join(rows[0]), *lines]) + "\n", encoding="utf-8")
    config = DataConfig(**{"file": path, **COLUMNS, **options})
    return load_data(config, seed=0, records_per_group=8)


@pytest.mark.parametrize("role", ["label", "site", "group"])
@pytest.mark.parametrize(
    ("name", "nan", "row"), [("a.csv", "NaN", 9), ("a.csv", "nan", 9), ("a.jsonl", float("nan"), 8)]
)
def test_nan_among_numbers_is_refused_or_dropped(
    tmp_path: Path, role: str, name: str, nan: Any, row: int
) -> None:
    rows = cells(NUMBERS)
    rows[7][COLUMNS[role]] = nan
    with pytest.raises(BadValueError, match="NaN stands among numbers") as caught:
        loaded(tmp_path, rows, name)
    error = caught.value
    assert (error.file, error.row, error.column) == (str(tmp_path / name), row, COLUMNS[role])
    assert 'data.missing = "drop"' in str(error.remedy)
    data = loaded(tmp_path, rows, name, missing="drop")
    assert data.report.lines() == [f"1 row left out: no {role} (such as {name}:{row})"]
    assert "review number 7" not in data.texts
    assert len(data.texts) == 39


@pytest.mark.parametrize("names", [NAMES, NUMBERS], ids=["names", "numbers"])
@pytest.mark.parametrize(("name", "empty"), [("a.csv", ""), ("a.jsonl", None)])
def test_an_empty_label_is_left_out_and_counted(
    tmp_path: Path, names: Any, name: str, empty: Any
) -> None:
    rows = cells(names)
    rows[3]["stars"] = rows[4]["stars"] = empty
    data = loaded(tmp_path, rows, name)
    (line,) = data.report.lines()
    assert line.startswith("2 rows left out: no label")
    assert len(data.label_names) == 2


@pytest.mark.parametrize(("name", "nan"), [("a.csv", "NaN"), ("a.jsonl", float("nan"))])
def test_nan_among_names_of_labels_is_no_label(tmp_path: Path, name: str, nan: Any) -> None:
    rows = cells(NAMES)
    rows[3]["stars"] = nan
    data = loaded(tmp_path, rows, name)
    (line,) = data.report.lines()
    assert line.startswith("1 row left out: no label")
    assert data.label_names == ("bad", "good")


def test_nan_in_a_column_that_is_not_read_is_no_harm(tmp_path: Path) -> None:
    rows = cells(NUMBERS)
    rows[3]["ward"] = "nan"
    data = loaded(tmp_path, rows, "a.csv", partition="iid", sites=2)
    assert data.report.lines() == []


@pytest.mark.parametrize("role", ["label", "site"])
def test_a_column_of_nan_alone_is_refused(tmp_path: Path, role: str) -> None:
    rows = [{**row, COLUMNS[role]: "nan"} for row in cells(NAMES)]
    with pytest.raises(BadValueError, match="NaN") as caught:
        loaded(tmp_path, rows, "a.csv")
    assert (caught.value.row, caught.value.column) == (2, COLUMNS[role])


WORDS = ["NA", "N/A", "null", "None", "<NA>"]


@pytest.mark.parametrize("name", ["a.csv", "a.jsonl"])
@pytest.mark.parametrize("word", ["nan", *WORDS])
def test_a_text_or_the_name_of_a_site_or_group_may_be_any_word(
    tmp_path: Path, name: str, word: str
) -> None:
    rows = cells({**NAMES, "site": ("EU", word)})
    rows[3]["review"] = word
    rows[4]["patient"] = word
    data = loaded(tmp_path, rows, name)
    assert sum(data.report.dropped.values()) == 0
    assert word in data.texts
    assert set(data.sites) == {"EU", word}
    assert data.report.notes == [
        f"{word!r} (20 rows) is taken as the name of a site",
        f"{word!r} (1 row) is taken as the name of a group",
    ]


@pytest.mark.parametrize("word", WORDS)
def test_a_class_may_have_such_a_name_and_the_run_says_so(tmp_path: Path, word: str) -> None:
    data = loaded(tmp_path, cells({**NAMES, "label": (word, "some")}), "a.csv")
    assert set(data.label_names) == {word, "some"}
    assert data.report.lines() == [f"{word!r} (20 rows) is taken as the name of a label"]


@pytest.mark.parametrize("role", ["label", "site"])
@pytest.mark.parametrize("word", WORDS)
def test_among_numbers_such_a_word_is_no_number(tmp_path: Path, role: str, word: str) -> None:
    rows = cells(NUMBERS)
    rows[7][COLUMNS[role]] = rows[27][COLUMNS[role]] = word
    with pytest.raises(BadValueError, match=f"^'{word}' stands among numbers") as caught:
        loaded(tmp_path, rows, "a.csv")
    assert (caught.value.row, caught.value.column) == (9, COLUMNS[role])
    assert len(loaded(tmp_path, rows, "a.csv", missing="drop").texts) == 38


def test_the_only_site_may_be_called_na(tmp_path: Path) -> None:
    data = loaded(tmp_path, [{**row, "ward": "NA"} for row in cells(NAMES)], "a.csv")
    assert list(data.sites) == ["NA"]
