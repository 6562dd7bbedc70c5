"""What a run refuses of a row, a preview shows in its very words; what it leaves out, too."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import DataError
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.preview import preview
from hushtune.common.tasks.rows import Columns

NUMBERS = {"kind": "text-regression", "range": [0.0, 10.0]}
TAGS = {"kind": "token-classification"}


def written(folder: Path, content: str) -> Path:
    path = folder / "rows.csv"
    path.write_text(content, encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("content", "task", "data", "row", "column", "said"),
    [
        ("text,label\na b,7\nc,11\nd,2\n", NUMBERS, {}, 3, "label", "HT207"),
        ("text,label\na b,7\nc,lots\nd,2\n", NUMBERS, {}, 3, "label", "HT207"),
        ("text,label\na b,7\nc,nan\nd,2\n", NUMBERS, {}, 3, "label", "HT207"),
        ("text,label\na b,X Y\nc,X\nd e,X\n", TAGS, {}, 4, "label", "2 words, 1 tags"),
        ("text,label\na,X\nb,Q\n", TAGS, {"labels": ("X", "Y")}, 3, "label", "'Q'"),
        ("text,l\na,X\nb,Yess\n", {}, {"labels": ("X", "Yes"), "label": "l"}, 3, "l", "'Yes'?"),
        ("text,label,ward\na,X,n\nb,Y,\n", {}, {"site": "ward"}, 3, "ward", "no site"),
        ("text,label,ward\na,X,n\nb,Y,\n", {}, {"split_by": "ward"}, 3, "ward", "no block"),
        ("text,label,ward\na,X,n\nb,Y,\n", {}, {"group": "ward"}, 3, "ward", "no group"),
    ],
)
def test_a_row_that_a_run_refuses_is_shown_with_the_run_s_own_error(
    tmp_path: Path, content: str, task: Any, data: Any, row: int, column: str, said: str
) -> None:
    path = written(tmp_path, content)
    settings = TaskConfig.model_validate(task)
    given = {"file": path, **({"partition": "iid", "sites": 1} if "site" not in data else {})}
    config = DataConfig(**given, **data)
    with pytest.raises(DataError) as caught:
        load_data(config, settings, seed=0)
    assert (caught.value.row, caught.value.column) == (row, column)
    assert caught.value.remedy
    (bad,) = (shown for shown in preview(config, task=settings) if shown.refused)
    assert bad.place == f"{path}:{row}"
    assert bad.note == f"a run stops here: {caught.value.code} {caught.value}"
    assert said in str(bad.note)


def test_which_text_of_a_pair_is_missing(tmp_path: Path) -> None:
    rows = "".join(f"a {i},b {i},{'xy'[i % 2]}\n" for i in range(20))
    path = written(tmp_path, f"first,second,label\nc,,x\n,d,y\n,,x\n{rows}")
    task = TaskConfig.model_validate({"kind": "text-pair-classification"})
    config = DataConfig(file=path, text="first", second="second", partition="iid", sites=1)
    reasons = ["no text in 'second'", "no text in 'first'", "no text in 'first' and 'second'"]
    shown = preview(config, task=task, rows=4)
    assert [row.note for row in shown] == [*(f"left out: {reason}" for reason in reasons), None]
    assert set(load_data(config, task, seed=0).report.dropped) == set(reasons)


def test_of_a_file_by_itself(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label,ward\na,1,x\nb,nan,x\nc,2,\n,2,x\nd,30,x\n")
    columns = Columns("text", "label", "ward", kind="text-regression")
    shown = preview(path, columns=columns, bounds=(0.0, 10.0))
    assert [row.refused for row in shown] == [False, True, True, False, True]
    assert shown[3].note == "left out: no text"
    # Without a range any number will do.
    assert not preview(path, columns=columns)[4].refused
    dropping = DataConfig(file=path, site="ward", missing="drop")
    assert [row.note for row in preview(dropping)] == [
        None,
        *(f"left out: no {what}" for what in ("label", "site", "text")),
        None,
    ]
