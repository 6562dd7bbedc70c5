"""Pickled tables are read as data; nothing that they name is imported or run."""

from __future__ import annotations

import io
import json
import lzma
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import AssetError, MissingFileError
from hushtune.common.tasks.packaged import tables
from hushtune.common.tasks.packaged.films import read_genres, read_ratings, read_ratings_of_users
from hushtune.common.tasks.packaged.frames import read_frame
from hushtune.common.tasks.packaged.inert import Made, read_inert

from .pickled import Call, Named, pickled, write_frame

NAN = float("nan")


def test_a_pickle_that_would_run_a_command_runs_none(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    hostile = pickled(Call(Named("os", "system"), (f"touch {mark}",)))
    made = read_inert(io.BytesIO(hostile))
    assert made == Made("os.system", (f"touch {mark}",))
    (tmp_path / "t.pkl.compress").write_bytes(lzma.compress(hostile))
    with pytest.raises(AssetError, match="no data frame"):
        list(read_frame(tmp_path / "t.pkl.compress"))
    assert not mark.exists()


@pytest.mark.parametrize(
    "content",
    [b"", b"\x80\x02", pickled([1, 2])[:-1], b"not a pickle", b"\x80\x02R.", b"\x80\x02e."],
    ids=["empty", "cut", "without its end", "text", "nothing to call", "no list"],
)
def test_broken_pickles_are_refused(content: bytes) -> None:
    with pytest.raises(AssetError, match="pickled data"):
        read_inert(io.BytesIO(content))


def test_plain_data_come_out_as_they_went_in() -> None:
    value = {"a": [1, -2, 3.5, None, True, False], "b": (("x",), b"bytes", {}), "ü": [[], ()]}
    assert read_inert(io.BytesIO(pickled(value))) == value


def test_what_pandas_pickles_is_read_the_same(tmp_path: Path) -> None:
    pandas: Any = pytest.importorskip("pandas")
    columns = pandas.Index(["n", "f", "t", "m"], dtype=object)
    frame = pandas.DataFrame([[1, 0.5, "a", 2.0], [2, NAN, None, NAN]], columns=columns)
    frame["t"] = frame["t"].astype(object)
    frame.to_pickle(tmp_path / "t.pkl.compress", compression="xz")
    assert list(read_frame(tmp_path / "t.pkl.compress")) == [
        {"n": 1, "f": 0.5, "t": "a", "m": 2.0},
        {"n": 2, "f": None, "t": None, "m": None},
    ]


def test_a_table_has_typed_cells_and_none_for_missing_ones(tmp_path: Path) -> None:
    path = write_frame(tmp_path / "t", {"a": [1, 2], "b": [0.5, NAN], "c": ["x", NAN]})
    assert list(read_frame(path)) == [{"a": 1, "b": 0.5, "c": "x"}, {"a": 2, "b": None, "c": None}]
    with pytest.raises(MissingFileError):
        list(read_frame(tmp_path / "absent"))
    (tmp_path / "t").write_bytes(b"no xz")
    with pytest.raises(AssetError, match="table that can be read"):
        list(read_frame(tmp_path / "t"))


def test_a_loan_is_a_json_object_of_its_columns(tmp_path: Path) -> None:
    numbers = {name: [1.0, 2.5] for name, kind in tables.CREDIT.items() if kind == "number"}
    texts = {name: ["x", NAN] for name, kind in tables.CREDIT.items() if kind == "category"}
    file = tmp_path / "modeldata" / "credit_data.pkl.compress"
    write_frame(file, {"rownames": [1, 2], **texts, "Status": ["good", "bad"], **numbers})
    first, second = tables.read_credit(tmp_path)
    assert list(json.loads(str(first.text))) == list(tables.CREDIT)
    assert str(first.text).startswith('{"Seniority": 1, "Time": 1,')
    assert json.loads(str(second.text))["Home"] is None
    assert json.loads(str(second.text))["Age"] == 2.5
    assert (first.label, second.label, first.site) == ("good", "bad", None)


def test_small_clinics_are_one_site_and_invalid_tests_none(tmp_path: Path) -> None:
    clinics = ["lab"] * 101 + ["ward"] * 3 + ["mri"]
    count = len(clinics)
    columns: dict[str, list[Any]] = {name: [0] * count for name in tables.TESTS}
    columns |= {"result": ["invalid", "positive"] + ["negative"] * (count - 2)}
    columns |= {"clinic_name": clinics, "subject_id": list(range(count))}
    columns |= {"ct_result": [45.0] * count, "fake_first_name": ["x"] * count}
    write_frame(tmp_path / "medicaldata" / "covid_testing.pkl.compress", columns)
    rows = list(tables.read_tests(tmp_path))
    assert [row.site for row in rows] == ["lab"] * 100 + ["other clinics"] * 4
    assert (rows[0].label, rows[0].group, len({row.group for row in rows})) == (
        "positive",
        "1",
        104,
    )
    assert set(json.loads(str(rows[0].text))) == set(
        tables.TESTS
    )  # no name, no reading of the test


@pytest.mark.parametrize(
    ("read", "file", "kinds", "label", "site"),
    [
        (tables.read_lending, "modeldata/lending_club", tables.LENDING, "Class", "addr_state"),
        (tables.read_rates, "openintro/loans_full_schema", tables.RATES, "interest_rate", "state"),
    ],
)
def test_states_are_sites(
    tmp_path: Path, read: Any, file: str, kinds: Any, label: str, site: str
) -> None:
    states = ["CA"] * 100 + ["ND"]
    columns: dict[str, list[Any]] = {name: [0.5] * 101 for name in kinds}
    columns |= {site: states, label: [9.5] * 101}
    write_frame(tmp_path / f"{file}.pkl.compress", columns)
    rows = list(read(tmp_path))
    assert [row.site for row in rows] == ["CA"] * 100 + ["other states"]
    assert rows[0].label == "9.5"
    assert list(json.loads(str(rows[0].text))) == list(kinds)


def test_schools_are_sites_or_groups(tmp_path: Path) -> None:
    columns = {"school": [12, 13], "sx": ["Male", "Female"], "minrty": ["No", "Yes"]}
    numbers = {"ses": [0.1, -0.2], "meanses": [0.0, 0.0], "mAch": [5.876, -2.0]}
    sectors = {"sector": ["Public", "Catholic"]}
    write_frame(tmp_path / "mlmRev" / "Hsb82.pkl.compress", {**columns, **numbers, **sectors})
    of_schools = list(tables.read_pupils(tmp_path))
    assert [(row.site, row.group, row.label) for row in of_schools] == [
        ("school 12", None, "5.876"),
        ("school 13", None, "-2.0"),
    ]
    assert list(json.loads(str(of_schools[0].text))) == ["ses", "minrty", "sx", "sector"]
    of_sectors = [(row.site, row.group) for row in tables.read_pupils_of_sectors(tmp_path)]
    assert of_sectors == [("Public", "12"), ("Catholic", "13")]


def films(folder: Path, rows: list[tuple[Any, ...]]) -> Path:
    names = ("rownames", "movieId", "title", "year", "genres", "userId", "rating", "timestamp")
    values = [list(column) for column in zip(*rows, strict=True)]
    write_frame(folder / "dslabs" / "movielens.pkl.compress", dict(zip(names, values, strict=True)))
    return folder


def test_liked_films_are_those_of_before_the_best_and_latest_first(tmp_path: Path) -> None:
    films(
        tmp_path,
        [
            (1, 10, "Now", 1999.0, "War", 1, 1.0, 50),
            (2, 11, "Same second", 1999.0, "War", 1, 5.0, 50),
            (3, 12, "Later", 1999.0, "War", 1, 5.0, 60),
            (4, 13, "Good, early", 1999.0, "War", 1, 4.0, 10),
            (5, 14, "Best, early", 1999.0, "War", 1, 5.0, 11),
            (6, 15, "Best, late", 1999.0, "War", 1, 5.0, 12),
            (7, 16, "Not liked", 1999.0, "War", 1, 3.5, 13),
            (8, 17, "Of another", 1999.0, "War", 2, 5.0, 1),
            (9, 18, NAN, NAN, "War", 1, 5.0, 2),
        ],
    )
    rows = {json.loads(str(row.text))["title"]: row for row in read_ratings(tmp_path)}
    assert len(rows) == 8  # not the one without a title
    now = json.loads(str(rows["Now"].text))
    assert list(now) == ["rater", "title", "genres", "year", "liked"]
    assert now["liked"] == "Best, late; Best, early; Good, early"
    assert json.loads(str(rows["Same second"].text))["liked"] == now["liked"]
    later = json.loads(str(rows["Later"].text))["liked"]
    assert later == "Same second; Best, late; Best, early; Good, early"
    assert json.loads(str(rows["Of another"].text))["liked"] is None
    assert (rows["Now"].label, rows["Now"].group, rows["Now"].site) == ("1.0", "1", None)
    sites = {(row.site, row.group) for row in read_ratings_of_users(tmp_path)}
    assert sites == {("user 1", "1"), ("user 2", "2")}


def test_a_rater_is_told_by_what_the_user_gave_before(tmp_path: Path) -> None:
    given = [4.0, 4.0, 4.0, 4.0, 4.0, 1.0, 0.5, 0.5, 0.5, 5.0]
    rows = [(n, n, f"F{n}", 2000.0, "War", 1, stars, n) for n, stars in enumerate(given)]
    films(tmp_path, [*rows, (50, 50, "Other", 2000.0, "War", 2, 5.0, 1)])
    told = [json.loads(str(row.text))["rater"] for row in read_ratings(tmp_path)]
    # Means before each: none until five are known, then 4, 3.5, 3.07, 2.75 and 2.5.
    usual = ["generous", "balanced", "strict", "very strict", "very strict"]
    assert told == [*[None] * 5, *usual, None]


def test_no_more_than_five_films_are_listed(tmp_path: Path) -> None:
    films(tmp_path, [(n, n, f"F{n}", 2000.0, "War", 1, 4.0, n) for n in range(1, 9)])
    *_, last = read_ratings(tmp_path)
    assert json.loads(str(last.text))["liked"] == "F7; F6; F5; F4; F3"


def test_each_film_is_once_with_its_genres(tmp_path: Path) -> None:
    films(
        tmp_path,
        [
            (1, 1, "A", 1949.0, "War|Drama", 1, 4.0, 1),
            (2, 1, "A", 1949.0, "War|Drama", 2, 4.0, 2),
            (3, 2, "B", 1950.0, "(no genres listed)", 1, 4.0, 3),
            (4, 3, "C", 2009.0, "Sci-Fi", 1, 4.0, 4),
            (5, 4, "D", NAN, "Sci-Fi", 1, 4.0, 5),
        ],
    )
    assert [(row.text, row.label, row.site) for row in read_genres(tmp_path)] == [
        ("A (1949)", "Drama|War", "before 1950"),
        ("B (1950)", "|", "1950s"),
        ("C (2009)", "Sci-Fi", "2000s"),
    ]
