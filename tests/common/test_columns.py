"""Columns as numbers: by public ranges and lists alone, and refused where these are missing."""

from __future__ import annotations

import json
from collections import Counter
from typing import Any

import numpy as np
import pytest

from hushtune.common.columns import Column, digest, encoded
from hushtune.common.config_columns import column_names, columns_known, public_columns
from hushtune.common.config_io import load_config
from hushtune.common.errors import ConfigError
from hushtune.common.tasks.sources import SOURCES

AGE, JOB = Column("age", (0.0, 120.0)), Column("job", values=("clerk", "nurse"))
TREE = (
    "task.kind=tabular-classification",
    "data.file=rows.csv",
    "data.site=site",
    'data.columns=["age", "job"]',
)
PUBLIC = ("data.column_ranges={age=[0, 120]}", 'data.column_values={job=["clerk", "nurse"]}')


def config(*overrides: str) -> Any:
    return load_config(overrides=[*TREE, *overrides])


def rows(*cells: dict[str, Any]) -> list[str]:
    return [json.dumps(row) for row in cells]


@pytest.mark.parametrize(
    ("column", "cell", "expected"),
    [
        (AGE, 0, [-1, 0]),
        (AGE, "60", [0, 0]),
        (AGE, 120.0, [1, 0]),
        (AGE, 1000, [1, 0]),
        (AGE, "-inf", [-1, 0]),
        (AGE, None, [0, 1]),
        (AGE, "", [0, 1]),
        (AGE, float("nan"), [0, 1]),
        (AGE, "young", [0, 1]),
        (JOB, "nurse", [0, 1, 0]),
        (JOB, " clerk ", [1, 0, 0]),
        (JOB, "pilot", [0, 0, 0]),
        (JOB, None, [0, 0, 1]),
        (Column("floor", values=("1", "2")), 2.0, [0, 1, 0]),
    ],
)
def test_a_cell_is_a_number_by_what_is_public(
    column: Column, cell: Any, expected: list[float]
) -> None:
    found = column.encode(cell, Counter())
    assert found == expected
    assert len(found) == column.width


def test_what_is_odd_is_counted_and_no_cell_is_told() -> None:
    _, notes = encoded(
        (AGE, JOB),
        rows({"age": 500, "job": "pilot"}, {"age": "old", "job": "pilot"}, {"age": -1, "job": ""}),
    )
    assert notes == (
        "1 row with a cell of column 'age' that is no number, and read as missing",
        "2 rows with a cell of column 'age' that is outside its range, and moved to its end",
        "2 rows with a cell of column 'job' that is not in its list, and read as none of it",
    )


def test_a_row_s_inputs_do_not_depend_on_other_rows() -> None:
    """As they would, were a column scaled by the mean or the largest value of the rows."""
    mine = {"age": 30, "job": "nurse"}
    alone, _ = encoded((AGE, JOB), rows(mine))
    among, _ = encoded((AGE, JOB), rows(mine, {"age": 119, "job": "clerk"}, {"age": 1e9}))
    np.testing.assert_array_equal(alone[0], among[0])


def test_columns_go_through_json_and_another_range_is_another_base() -> None:
    again = [Column.from_dict(json.loads(json.dumps(c.to_dict()))) for c in (AGE, JOB)]
    assert again == [AGE, JOB]
    assert digest(again, 32) == digest((AGE, JOB), 32)
    assert digest((Column("age", (0.0, 100.0)), JOB), 32) != digest((AGE, JOB), 32)
    assert digest((AGE, JOB), 16) != digest((AGE, JOB), 32)


def test_a_network_on_columns_is_trained_whole() -> None:
    found = config("model.name=columns", *PUBLIC)
    assert found.train.warmup_rounds == 0
    assert public_columns(found.data) == (AGE, JOB)
    assert columns_known(found.task, found.data)
    all_rounds = config("model.name=columns", "train.warmup_rounds=20", *PUBLIC)
    assert all_rounds.train.warmup_rounds == 20


REFUSED = {
    "no range": (("data.column_ranges={}", PUBLIC[1]), "data.column_ranges", "nothing for age"),
    "no list": ((PUBLIC[0], "data.column_values={}"), "data.column_ranges", "nothing for job"),
    "another column": (
        (*PUBLIC, "data.column_ranges={age=[0, 1], income=[0, 1]}"),
        "data.column_ranges",
        "income",
    ),
    "upside down": (("data.column_ranges={age=[9, 1]}",), "data.column_ranges", "9"),
    "twice": ((*PUBLIC, 'data.column_values={age=["1"]}'), "data.column_values", "a list"),
    "no values": (("data.column_values={job=[]}",), "data.column_values", ""),
    "equal values": (('data.column_values={job=["a", "a"]}',), "data.column_values", "a, a"),
    "factors": ((*PUBLIC, "aggregation.rule=fedsvd"), "aggregation.rule", "fedsvd"),
    "ranks": ((*PUBLIC, "aggregation.rule=flora"), "aggregation.rule", "flora"),
    "modules": ((*PUBLIC, 'adapter.targets=["q"]'), "adapter.targets", "q"),
    "half a warm-up": ((*PUBLIC, "train.warmup_rounds=5"), "train.warmup_rounds", "5"),
    "a family's head": ((*PUBLIC, "model.head=own"), "model.head", "own"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_does_not_go_with_columns_is_refused(case: str) -> None:
    overrides, key, given = REFUSED[case]
    with pytest.raises(ConfigError) as found:
        config("model.name=columns", *overrides)
    assert key in str(found.value)
    assert given in str(found.value)


@pytest.mark.parametrize("kind", ["text-classification", "text-pair-classification"])
def test_a_text_has_no_columns(kind: str) -> None:
    usual = [f"task.kind={kind}", "data.file=a.csv", "data.site=site"]
    usual += ["data.second=b"] if "pair" in kind else []
    for more in (["model.name=columns"], ["data.column_ranges={age=[0, 1]}"]):
        with pytest.raises(ConfigError):
            load_config(overrides=[*usual, *more])


@pytest.mark.parametrize(
    "name", ["lending-club", "covid-tests", "loan-rates", "pupils", "pupils-of-sectors"]
)
def test_of_named_tables_every_column_is_public(name: str) -> None:
    source = SOURCES[name]
    found = load_config(overrides=[f"data.source={name}", "model.name=columns"]).data
    columns = public_columns(found)
    assert tuple(column.name for column in columns) == tuple(source.columns) == column_names(found)
    for column in columns:
        numbers = source.columns[column.name] == "number"
        assert (column.bounds is not None) == numbers, column.name
    assert set(source.ranges) | set(source.values) >= set(source.columns)


def test_a_named_table_without_public_columns_is_refused_by_the_column() -> None:
    with pytest.raises(ConfigError, match="Seniority"):
        load_config(
            overrides=[
                *("data.source=bank-credit", "model.name=columns"),
                *("data.partition=iid", "data.sites=3"),
            ]
        )


def test_settings_go_before_what_the_source_says() -> None:
    found = load_config(overrides=["data.source=pupils", "data.column_ranges={ses=[-5, 5]}"])
    assert public_columns(found.data)[0] == Column("ses", (-5.0, 5.0))
