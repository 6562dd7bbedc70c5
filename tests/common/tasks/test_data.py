"""Rows are cleaned, counted and split, and no test row of any site trains anywhere."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.config import DataConfig
from hushtune.common.errors import (
    BadValueError,
    DataError,
    EmptyDataError,
    LabelError,
    MissingColumnError,
    TooFewRowsError,
)
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.splits import Split, split_units
from hushtune.common.tasks.units import Units

Pairs = Sequence[tuple[str, str]]


def many(word: str, count: int = 20, labels: Sequence[str] = ("no", "yes")) -> Pairs:
    """``count`` rows with distinct texts, their labels in turn."""
    return [(f"{word} {i}", labels[i % len(labels)]) for i in range(count)]


def loaded(
    folder: Path, by_site: Mapping[str, Pairs], /, *, seed: int = 0, **settings: Any
) -> LabelledRows:
    files = {}
    for site, rows in by_site.items():
        files[site] = folder / f"{site}.csv"
        lines = [f'"{text}",{label}' for text, label in rows]
        files[site].write_text("text,label\n" + "\n".join(lines) + "\n", encoding="utf-8")
    return load_data(DataConfig(files=files, **settings), seed=seed)


def parts(split: Split) -> list[list[int]]:
    return [part.tolist() for part in (split.train, split.validation, split.test)]


def all_rows(data: LabelledRows) -> list[int]:
    return [row for split in data.sites.values() for part in parts(split) for row in part]


def texts(data: LabelledRows, rows: Sequence[int]) -> set[str]:
    return {" ".join(data.texts[row].split()) for row in rows}


@settings(deadline=None, max_examples=80)
@given(
    labels=st.lists(st.integers(0, 3), min_size=10, max_size=120),
    validation=st.sampled_from([0.0, 0.05, 0.1, 0.3]),
    test=st.sampled_from([0.2, 0.35, 0.5]),
    seed=st.integers(0, 2**32),
)
def test_split_uses_every_row_once_and_keeps_the_labels_shares(
    labels: list[int], validation: float, test: float, seed: int
) -> None:
    table = np.array(labels, dtype=np.int64)
    rows = np.arange(len(labels), dtype=np.int64)

    def split() -> Split:
        random = np.random.default_rng(seed)
        return split_units(
            Units.single(rows), table, validation=validation, test=test, random=random
        )

    try:
        dealt = split()
    except TooFewRowsError:
        assert len(labels) < 4 * len(set(labels)) or len(labels) <= 12
        return
    assert sorted(row for part in parts(dealt) for row in part) == rows.tolist()
    assert parts(dealt) == parts(split())
    for label, count in Counter(labels).items():
        here = [int((table[part] == label).sum()) for part in (dealt.train, dealt.test)]
        assert here[0] >= 1  # every label of a site trains there
        assert abs(here[1] - count * test) <= 4
    if validation == 0:
        assert len(dealt.validation) == 0


@settings(deadline=None, max_examples=30)
@given(
    sites=st.lists(
        st.lists(st.tuples(st.integers(0, 40), st.sampled_from("ny")), max_size=30),
        min_size=1,
        max_size=3,
    ),
    inconsistent=st.sampled_from(["drop", "keep"]),
    seed=st.integers(0, 1000),
)
def test_no_test_row_of_any_site_trains_anywhere(
    tmp_path_factory: pytest.TempPathFactory,
    sites: list[list[tuple[int, str]]],
    inconsistent: str,
    seed: int,
) -> None:
    """Whatever is repeated or contradicted, within a site or between sites, and however spaced."""
    folder = tmp_path_factory.mktemp("sites")
    pairs = {
        f"s{number}": [
            *many(f"own {number}", labels="ny"),
            *((f"shared {' ' * (i % 3)} {word}", y) for i, (word, y) in enumerate(rows)),
        ]
        for number, rows in enumerate(sites)
    }
    data = loaded(folder, pairs, seed=seed, inconsistent=inconsistent)
    rows = all_rows(data)
    assert sorted(rows) == list(range(len(data.texts)))
    trained = [row for split in data.sites.values() for row in split.train.tolist()]
    tested = [row for split in data.sites.values() for row in split.test.tolist()]
    assert not texts(data, trained) & texts(data, tested)
    # Everything that was read is kept or counted.
    assert data.report.read == len(rows) + sum(data.report.dropped.values())
    again = loaded(folder, pairs, seed=seed, inconsistent=inconsistent)
    assert [parts(split) for split in again.sites.values()] == [
        parts(split) for split in data.sites.values()
    ]


def test_a_text_at_two_sites_stays_at_the_first_by_name(tmp_path: Path) -> None:
    data = loaded(
        tmp_path,
        {"south": [*many("s"), ("both", "yes")], "north": [*many("n"), ("both", "yes")]},
    )
    assert list(data.sites) == ["north", "south"]
    north = [row for part in parts(data.sites["north"]) for row in part]
    assert "both" in texts(data, north)
    assert sum(text == "both" for text in data.texts) == 1
    assert sum(data.report.dropped.values()) == 1
    assert [place for places in data.report.examples.values() for place in places] == [
        "south.csv:22"
    ]


def test_contradictions_are_dropped_kept_or_refused(tmp_path: Path) -> None:
    rows = {"one": [*many("a"), ("odd", "yes"), ("odd", "no"), ("odd", "yes")]}
    assert "odd" not in loaded(tmp_path, rows).texts
    kept = loaded(tmp_path, rows, inconsistent="keep")
    assert "odd" in kept.texts
    with pytest.raises(LabelError) as caught:
        loaded(tmp_path, rows, inconsistent="error")
    assert f"{tmp_path / 'one.csv'}:22" in str(caught.value)
    assert f"{tmp_path / 'one.csv'}:23" in str(caught.value)


def test_rows_without_text_or_label_are_counted_with_places(tmp_path: Path) -> None:
    data = loaded(tmp_path, {"one": [*many("a"), ("", "yes"), ("b", ""), ("c", "NaN")]})
    assert len(data.texts) == 20
    assert sorted(data.report.dropped.values()) == [1, 2]
    assert any("one.csv:22" in line for line in data.report.lines())
    assert not any(str(tmp_path) in line for line in data.report.lines())


def test_whole_number_labels_and_names(tmp_path: Path) -> None:
    rows = [*many("a", labels=("1", "2.0")), *many("b", labels=("1.0", "2"))]
    data = loaded(tmp_path, {"one": rows})
    assert data.label_names == ("1", "2")
    assert Counter(data.labels.tolist()) == {0: 20, 1: 20}


def test_site_column(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    lines = [f"{t},{y},{s}" for s in ("north", "south") for t, y in many(s)]
    path.write_text("review,rating,hospital\n" + "\n".join(lines))
    config = DataConfig(file=path, site="hospital", text="review", label="rating")
    assert list(load_data(config, seed=0).sites) == ["north", "south"]
    with pytest.raises(MissingColumnError, match="did you mean 'hospital'"):
        load_data(config.model_copy(update={"site": "hospitals"}), seed=0)


def test_row_without_a_site_is_named(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    lines = [f"{t},{y},{s}" for s in ("north", "south") for t, y in many(s, 10)]
    path.write_text("text,label,site\n" + "\n".join([*lines, "c,no,"]))
    with pytest.raises(DataError) as caught:
        load_data(DataConfig(file=path, site="site"), seed=0)
    assert f"file {path}, row 22, column 'site'" in str(caught.value)
    dropped = load_data(DataConfig(file=path, site="site", missing="drop"), seed=0)
    assert dropped.report.lines() == ["1 row left out: no site (such as all.csv:22)"]


def test_one_file_with_other_columns_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.csv").write_text("text,label\nx,yes\n")
    (tmp_path / "b.csv").write_text("review,label\ny,no\n")
    config = DataConfig(files={"a": tmp_path / "a.csv", "b": tmp_path / "b.csv"})
    with pytest.raises(MissingColumnError) as caught:
        load_data(config, seed=0)
    assert str(tmp_path / "b.csv") in str(caught.value)


def test_label_at_one_site_only(tmp_path: Path) -> None:
    sites = {"north": many("n"), "south": [*many("s"), ("x", "maybe"), ("y", "maybe")]}
    with pytest.raises(LabelError) as caught:
        loaded(tmp_path, sites)
    assert "maybe" in str(caught.value)
    assert "south" in str(caught.value)
    only = {"south": sites["south"]}  # a single site is a federation of its own
    assert loaded(tmp_path, only).label_names == ("maybe", "no", "yes")
    dealt = loaded(tmp_path, sites, partition="iid", sites=2)
    assert len(dealt.sites) == 2


def test_label_that_occurs_once(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="'maybe' occurs once") as caught:
        loaded(tmp_path, {"one": [*many("a"), ("x", "maybe")]})
    assert f"{tmp_path / 'one.csv'}:22" in str(caught.value)


def test_one_label_only(tmp_path: Path) -> None:
    with pytest.raises(LabelError, match="one label only"):
        loaded(tmp_path, {"one": many("a", labels=("yes",))})


def test_nothing_left(tmp_path: Path) -> None:
    with pytest.raises((EmptyDataError, BadValueError)):
        loaded(tmp_path, {"one": [("", "yes"), ("a", "")]})


def test_site_too_small_to_test(tmp_path: Path) -> None:
    with pytest.raises(TooFewRowsError, match="'south'"):
        loaded(tmp_path, {"north": many("n"), "south": many("s", 2)})


def test_subsample_is_seeded_and_bounded(tmp_path: Path) -> None:
    sites = {"north": many("n", 60), "south": many("s", 12)}
    data = loaded(tmp_path, sites, max_rows_per_site=20)
    sizes = [sum(len(part) for part in parts(split)) for split in data.sites.values()]
    assert sizes == [20, 12]
    other = loaded(tmp_path, sites, max_rows_per_site=20, seed=1)
    assert parts(other.sites["north"]) != parts(data.sites["north"])


def test_rows_that_no_part_has_are_left_out_and_nothing_else_changes(tmp_path: Path) -> None:
    whole = loaded(tmp_path, {"north": many("n", 60), "south": many("s", 25)}, max_rows_per_site=20)
    assert len(whole.texts) == 85
    used = whole.without_unused()
    assert len(used.texts) == len(used.answers) == len(used.labels) == 40
    assert sorted(all_rows(used)) == list(range(40))
    for site, split in whole.sites.items():
        for before, after in zip(parts(split), parts(used.sites[site]), strict=True):
            for kept in ("texts", "answers", "labels"):
                old, new = getattr(whole, kept), getattr(used, kept)
                assert [old[row] for row in before] == [new[row] for row in after]
        assert used.used(site) == whole.used(site)
    assert used.fingerprints == whole.fingerprints
    assert parts(used.without_unused().sites["north"]) == parts(used.sites["north"])


def test_a_subsample_keeps_what_labels_must_have(tmp_path: Path) -> None:
    """Of a rare label a subsample may leave no row, one row, or rows of one site."""
    rare = {
        "north": [*many("n", 60), *many("rare n", 3, labels=("maybe",))],
        "south": [*many("s", 60), *many("rare s", 3, labels=("maybe",))],
    }
    refused: list[LabelError] = []
    for seed in range(40):
        try:
            data = loaded(tmp_path, rare, max_rows_per_site=20, seed=seed)
        except LabelError as error:
            refused.append(error)
            continue
        holders = [
            [data.label_names[data.labels[row]] for part in parts(split) for row in part]
            for split in data.sites.values()
        ]
        assert all("maybe" in labels for labels in holders)
    for what in ("has no row left", "occurs once only", "occurs at site"):
        assert any(error.message.startswith(f"label 'maybe' {what}") for error in refused), what
    for error in refused:
        assert str(error.given).endswith("of the rows left by data.max_rows_per_site")
        assert str(error.remedy).startswith("raise data.max_rows_per_site")
    assert loaded(tmp_path, rare).label_names == ("maybe", "no", "yes")


def test_a_dealt_subsample_may_have_a_label_at_one_site_but_not_lose_it(tmp_path: Path) -> None:
    rows = {"one": [*many("n", 60), *many("rare", 2, labels=("maybe",))]}
    dealt = {"partition": "iid", "sites": 2}
    assert "maybe" in loaded(tmp_path, rows, **dealt).label_names
    with pytest.raises(LabelError, match=r"'maybe' (has no row left|occurs once)"):
        loaded(tmp_path, rows, max_rows_per_site=10, **dealt)


def test_fingerprint_knows_rows_whatever_is_done_with_them(tmp_path: Path) -> None:
    """Order, split, subsample and another site's equal rows are no other data set."""
    sites = {"north": many("n"), "south": many("s")}
    marks = loaded(tmp_path, sites).fingerprints
    assert len(set(marks.values())) == 2
    assert all(len(bytes.fromhex(mark)) == 32 for mark in marks.values())
    turned = {**sites, "north": sites["north"][::-1]}
    shared = {**sites, "alike": [*many("a"), *sites["north"][:5]]}
    for other, changes in (
        (sites, {}),
        (sites, {"seed": 3}),
        (sites, {"max_rows_per_site": 20}),
        (turned, {}),
        (shared, {}),
    ):
        assert loaded(tmp_path, other, **changes).fingerprints["north"] == marks["north"]
    fewer = {**sites, "north": sites["north"][:-1]}
    assert loaded(tmp_path, fewer).fingerprints["north"] != marks["north"]


def test_dealt_rows_have_the_fingerprint_of_all_of_them(tmp_path: Path) -> None:
    """Another seed deals a row to another site, which must not begin with a new budget there."""
    path = tmp_path / "all.csv"
    path.write_text("text,label\n" + "".join(f"{text},{label}\n" for text, label in many("n", 90)))
    config = DataConfig(file=path, partition="iid", sites=3)
    found = [load_data(config, seed=seed).fingerprints for seed in (0, 1)]
    assert len(set(found[0].values())) == 1
    assert found[0] == found[1]


def test_what_a_run_uses_is_told_by_its_rows_and_groups(tmp_path: Path) -> None:
    sites = {"north": many("n"), "south": many("s")}
    used = loaded(tmp_path, sites).used("north")
    assert loaded(tmp_path, sites, seed=3).used("north") == used
    assert loaded(tmp_path, sites, max_rows_per_site=15).used("north") != used
    path = tmp_path / "grouped.csv"
    found: list[str] = []
    for patients in (range(60), [number // 2 for number in range(60)]):
        lines = [
            f"{text},{label},{patient}"
            for (text, label), patient in zip(many("n", 60), patients, strict=True)
        ]
        path.write_text("text,label,patient\n" + "\n".join(lines) + "\n")
        config = DataConfig(file=path, group="patient", partition="iid", sites=1)
        found.append(load_data(config, seed=0).used("site-0"))
    assert found[0] != found[1]


def test_demo_data(tmp_path: Path) -> None:
    config = DataConfig(source="demo", validation_fraction=0.0, test_fraction=0.2)
    data = load_data(config, seed=0)
    assert list(data.sites) == ["amazon", "movie", "nyt", "tweets"]
    assert data.label_names == ("negative", "positive")
    assert data.report.read == 19_459
    assert len(data.texts) == 19_459 - sum(data.report.dropped.values()) > 19_300
    num_train = sum(len(split.train) for split in data.sites.values())
    assert abs(num_train - 0.8 * len(data.texts)) < 3
    assert 0.52 < float((data.labels == 1).mean()) < 0.54
    assert not any("&amp;" in text for text in data.texts)
    for split in data.sites.values():  # the same shares of labels in training and test
        shares = [float((data.labels[part] == 1).mean()) for part in (split.train, split.test)]
        assert abs(shares[0] - shares[1]) < 0.002


def test_site_that_loses_every_row_is_an_error(tmp_path: Path) -> None:
    rows = many("a")
    with pytest.raises(DataError, match="south"):
        loaded(tmp_path, {"north": rows, "south": rows})


def test_first_site_by_name_keeps_a_shared_text_however_the_file_is_ordered(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    lines = [f"{t},{y},{s}" for s in ("south", "north") for t, y in [("both", "yes"), *many(s)]]
    path.write_text("text,label,site\n" + "\n".join(lines))
    data = load_data(DataConfig(file=path, site="site"), seed=0)
    north = [row for part in parts(data.sites["north"]) for row in part]
    assert "both" in texts(data, north)


def test_row_without_a_site_is_named_at_a_single_site_too(tmp_path: Path) -> None:
    path = tmp_path / "all.csv"
    lines = [f"{t},{y},north" for t, y in many("n", 10)]
    path.write_text("text,label,site\n" + "\n".join([*lines, "c,no,"]))
    with pytest.raises(BadValueError, match="names no site") as caught:
        load_data(DataConfig(file=path, site="site"), seed=0)
    assert f"file {path}, row 12, column 'site'" in str(caught.value)
