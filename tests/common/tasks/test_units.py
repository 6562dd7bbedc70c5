"""Units of rows: patients and users are dealt, split, capped and drawn as wholes."""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.config import DataConfig
from hushtune.common.errors import BadValueError, ConfigError, LabelError, MissingColumnError
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.units import Units

codes_strategy = st.lists(st.integers(0, 9), min_size=1, max_size=60)


@given(codes=codes_strategy, seed=st.integers(0, 1000))
def test_units_hold_every_row_once_with_its_code(codes: list[int], seed: int) -> None:
    table = np.array(codes, dtype=np.int64)
    rows = np.random.default_rng(seed).permutation(len(codes)).astype(np.int64)
    units = Units.by_code(rows, table)
    assert sorted(units.rows) == sorted(rows)
    assert len(units) == len(set(codes))
    for place in range(len(units)):
        mine = units.rows[units.starts[place] : units.starts[place + 1]]
        assert len(set(table[mine])) == 1
        assert len(mine) == Counter(codes)[int(table[mine[0]])]
    assert units.is_single == (max(Counter(codes).values()) == 1)


@given(codes=codes_strategy, data=st.data())
def test_taking_units_takes_them_whole_and_in_order(codes: list[int], data: st.DataObject) -> None:
    table = np.array(codes, dtype=np.int64)
    units = Units.by_code(np.arange(len(codes)), table)
    places = data.draw(st.lists(st.integers(0, len(units) - 1), unique=True))
    taken = units.take(np.array(places, dtype=np.int64))
    assert len(taken) == len(places)
    expected = [
        row for p in places for row in units.rows[units.starts[p] : units.starts[p + 1]].tolist()
    ]
    assert taken.rows.tolist() == expected
    assert taken.sizes.tolist() == units.sizes[np.array(places, dtype=np.int64)].tolist()


@given(codes=codes_strategy, limit=st.integers(1, 5), seed=st.integers(0, 100))
def test_no_unit_keeps_more_rows_than_it_may(codes: list[int], limit: int, seed: int) -> None:
    units = Units.by_code(np.arange(len(codes)), np.array(codes, dtype=np.int64))
    capped = units.at_most(limit, np.random.default_rng(seed))
    assert capped.sizes.tolist() == np.minimum(units.sizes, limit).tolist()
    assert set(capped.rows) <= set(units.rows)
    again = units.at_most(limit, np.random.default_rng(seed))
    assert capped.rows.tolist() == again.rows.tolist()


def test_the_majority_label_of_a_unit() -> None:
    units = Units.by_code(np.arange(6), np.array([1, 0, 1, 0, 1, 2]))
    assert units.majority(np.array([5, 2, 5, 3, 4, 7])).tolist() == [2, 5, 7]


def test_none_is_none() -> None:
    empty = np.empty(0, dtype=np.int64)
    assert len(Units.single(empty)) == len(Units.by_code(empty, empty)) == 0
    assert len(Units.single(np.arange(3)).take(empty)) == 0
    assert len(Units.by_code(np.arange(3), np.array([0, 0, 1])).take(empty).rows) == 0


# ------------------------------------------------------------------------------- from files ----


def loaded(folder: Path, num_groups: int, *, cap: int = 8, **options: Any) -> LabelledRows:
    """Two sites, groups of 1 to 5 rows, with the same names of groups at both sites."""
    path = folder / "rows.csv"
    lines = ["ward,patient,text,label"]
    for site in ("east", "north"):
        for group in range(num_groups):
            for visit in range(1 + group % 5):
                label = ("bad", "good")[(group // 5) % 2]
                lines.append(f"{site},p{group},{site} text {group} {visit},{label}")
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = DataConfig(**{"file": path, "site": "ward", "group": "patient", **options})
    return load_data(config, seed=3, records_per_group=cap)


@settings(deadline=None, max_examples=10)
@given(num_groups=st.integers(20, 60), test=st.sampled_from([0.2, 0.4]))
def test_a_group_is_in_one_part_of_one_site(
    tmp_path_factory: pytest.TempPathFactory, num_groups: int, test: float
) -> None:
    data = loaded(tmp_path_factory.mktemp("g"), num_groups, test_fraction=test)
    seen: dict[int, tuple[str, str]] = {}
    assert data.groups is not None
    for site, split in data.sites.items():
        for part in ("train", "validation", "test"):
            for row in getattr(split, part):
                where = seen.setdefault(int(data.groups[row]), (site, part))
                assert where == (site, part)
    assert len(seen) == 2 * num_groups  # p3 of one ward is not p3 of the other


def test_a_group_keeps_so_many_rows_and_the_rest_is_reported(tmp_path: Path) -> None:
    data = loaded(tmp_path, 40, cap=2)
    for split in data.sites.values():
        rows = np.concatenate([split.train, split.validation, split.test])
        assert data.units(rows).sizes.max() == 2
    over = 2 * sum(max(0, 1 + group % 5 - 2) for group in range(40))
    (line,) = data.report.lines()
    assert line.startswith(f"{over} rows left out: more than privacy.records_per_group")


def test_a_label_that_the_rows_kept_of_each_group_lack_is_named(tmp_path: Path) -> None:
    lines = ["ward,patient,text,label"]
    for site in ("east", "north"):
        for group in range(20):
            label = ("bad", "good")[group % 2]
            lines += [f"{site},p{group},{site} {group} {visit},{label}" for visit in range(8)]
        lines.append(f"{site},p0,{site} odd,odd")
    path = tmp_path / "rows.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    config = DataConfig(file=path, site="ward", group="patient")
    assert "odd" in load_data(config, seed=0, records_per_group=9).label_names
    with pytest.raises(LabelError, match="'odd'") as caught:
        load_data(config, seed=0, records_per_group=1)
    assert "raise privacy.records_per_group" in str(caught.value.remedy)


@pytest.mark.parametrize("partition", ["iid", "dirichlet", "shards"])
def test_groups_are_dealt_whole(tmp_path: Path, partition: str) -> None:
    data = loaded(tmp_path, 60, site=None, partition=partition, sites=3, alpha=5.0)
    assert data.groups is not None
    homes: dict[int, set[str]] = {}
    for site, split in data.sites.items():
        for row in np.concatenate([split.train, split.validation, split.test]):
            homes.setdefault(int(data.groups[row]), set()).add(site)
    assert all(len(sites) == 1 for sites in homes.values())


def test_a_row_without_a_group_is_an_error_that_names_it(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("site,id,text,label\na,1,x,good\na,,y,bad\nb,2,z,good\nb,3,w,bad\n")
    with pytest.raises(BadValueError, match=r"names no group") as caught:
        load_data(DataConfig(file=path, site="site", group="id"), seed=0)
    assert "rows.csv, row 3, column 'id'" in str(caught.value)
    with pytest.raises(MissingColumnError, match="'nobody'"):
        load_data(DataConfig(file=path, site="site", group="nobody"), seed=0)


@pytest.mark.parametrize(
    "changes", [{"privacy__unit": "group"}, {"data__group": "patient"}], ids=str
)
def test_the_unit_and_its_column_come_together(settings: Any, changes: dict[str, str]) -> None:
    with pytest.raises(ConfigError, match="column that names them"):
        settings.config(**changes)
