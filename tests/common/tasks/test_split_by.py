"""Rows of one value of ``data.split_by`` are in one part, at whatever sites, and it costs nothing
of what a privacy unit is."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.config import DataConfig
from hushtune.common.config_io import load_config
from hushtune.common.errors import BadValueError, ConfigError, MissingColumnError, TooFewRowsError
from hushtune.common.tasks.data import LabelledRows, load_data

PARTS = ("train", "validation", "test")


def written(folder: Path, sites: dict[str, list[int]]) -> Path:
    """A row for each number, which is the document that it is of."""
    path = folder / "all.csv"
    lines = [
        f"{site} {i} words,{'no' if i % 2 else 'yes'},{site},d{document}"
        for site, documents in sites.items()
        for i, document in enumerate(documents)
    ]
    path.write_text("text,label,ward,document\n" + "\n".join(lines), encoding="utf-8")
    return path


def documents_by_part(data: LabelledRows) -> dict[str, set[int]]:
    assert data.blocks is not None
    return {
        part: {int(data.blocks[i]) for split in data.sites.values() for i in getattr(split, part)}
        for part in PARTS
    }


@settings(deadline=None, max_examples=60)
@given(
    st.lists(st.lists(st.integers(0, 40), min_size=12, max_size=60), min_size=1, max_size=3),
    st.integers(0, 99),
)
def test_no_value_is_in_two_parts_whatever_sites_share_it(
    tmp_path_factory: pytest.TempPathFactory, documents: list[list[int]], seed: int
) -> None:
    folder = tmp_path_factory.mktemp("split")
    path = written(folder, {f"s{i}": found for i, found in enumerate(documents)})
    try:
        data = load_data(DataConfig(file=path, site="ward", split_by="document"), seed=seed)
    except TooFewRowsError:
        return
    found = documents_by_part(data)
    assert not found["train"] & found["test"]
    assert not found["train"] & found["validation"]
    assert not found["validation"] & found["test"]
    rows = [i for split in data.sites.values() for part in PARTS for i in getattr(split, part)]
    assert sorted(rows) == list(range(len(data.texts)))


def test_without_it_documents_are_in_several_parts(tmp_path: Path) -> None:
    """What the tests above would not notice if nothing were to be kept together."""
    path = written(tmp_path, {"north": [i // 6 for i in range(120)]})
    plain = load_data(DataConfig(file=path, site="ward"), seed=0)
    kept = load_data(DataConfig(file=path, site="ward", split_by="document"), seed=0)
    split, document = plain.sites["north"], kept.blocks
    assert document is not None
    assert set(document[split.train].tolist()) & set(document[split.test].tolist())
    # The privacy unit stays a row, and the ledger's name of the data what it was.
    assert len(kept.units(kept.sites["north"].train)) == len(kept.sites["north"].train)
    assert kept.groups is None
    assert kept.fingerprints == plain.fingerprints
    assert plain.blocks is None


def test_the_fractions_are_kept_where_documents_are_of_one_size(tmp_path: Path) -> None:
    path = written(tmp_path, {"north": [i // 4 for i in range(400)]})
    split = load_data(DataConfig(file=path, site="ward", split_by="document"), seed=0).sites[
        "north"
    ]
    assert (len(split.test), len(split.validation)) == (80, 40)


def test_dealt_rows_keep_their_documents_together(tmp_path: Path) -> None:
    path = written(tmp_path, {"north": [i // 4 for i in range(400)]})
    config = DataConfig(file=path, partition="iid", sites=4, split_by="document")
    data = load_data(config, seed=0)
    assert data.blocks is not None
    at = [
        {int(data.blocks[i]) for part in PARTS for i in getattr(split, part)}
        for split in data.sites.values()
    ]
    assert len(set.union(*at)) == sum(map(len, at)) == 100
    assert all(np.diff(split.train).min() > 0 for split in data.sites.values())


def test_sites_that_share_their_documents_may_have_nothing_left_to_test(tmp_path: Path) -> None:
    north = [i // 5 for i in range(100)]
    config = DataConfig(file=written(tmp_path, {"north": north}), site="ward", split_by="document")
    data = load_data(config, seed=0)
    trained = sorted({north[i] for i in data.sites["north"].train})[:8]
    written(tmp_path, {"north": north, "south": [trained[i // 4] for i in range(32)]})
    with pytest.raises(TooFewRowsError, match=r"south.*test part.*\n?.*data\.split_by"):
        load_data(config, seed=0)


def test_a_row_that_names_no_document(tmp_path: Path) -> None:
    path = written(tmp_path, {"north": list(range(20))})
    path.write_text(path.read_text() + "\nlast,no,north,\n")
    config = DataConfig(file=path, site="ward", split_by="document")
    with pytest.raises(BadValueError, match="column 'document'") as caught:
        load_data(config, seed=0)
    assert caught.value.row == 22
    dropped = load_data(config.model_copy(update={"missing": "drop"}), seed=0)
    assert dropped.report.dropped == {"no block": 1}
    with pytest.raises(MissingColumnError, match=r"did you mean 'document'[\s\S]*data\.split_by"):
        load_data(config.model_copy(update={"split_by": "documents"}), seed=0)


def test_folds_test_each_document_in_one_fold_at_whatever_sites(tmp_path: Path) -> None:
    documents = [i // 3 for i in range(120)]
    path = written(tmp_path, {"north": documents, "south": [*documents, *range(50, 90)]})
    tested: list[set[int]] = []
    for fold in (1, 2, 3):
        config = DataConfig(file=path, site="ward", split_by="document", folds=3, fold=fold)
        found = documents_by_part(load_data(config, seed=0))
        assert not found["train"] & found["test"]
        assert not found["train"] & found["validation"]
        assert not found["validation"] & found["test"]
        tested.append(found["test"])
    assert len(set.union(*tested)) == sum(map(len, tested)) == 80


def test_a_site_that_is_left_out_shares_no_document(tmp_path: Path) -> None:
    north, south = [i // 3 for i in range(60)], [30 + i // 3 for i in range(60)]
    settings = {"site": "ward", "split_by": "document", "left_out": "south"}
    path = written(tmp_path, {"north": north, "south": south})
    data = load_data(DataConfig.model_validate({"file": path, **settings}), seed=0)
    assert len(data.left_out) == 60
    path = written(tmp_path, {"north": north, "south": [0, *south]})
    with pytest.raises(ConfigError, match=r"data\.split_by[\s\S]*south: 1 of 21 values"):
        load_data(DataConfig.model_validate({"file": path, **settings}), seed=0)


def test_shots_are_rows_and_not_documents(tmp_path: Path) -> None:
    path = written(tmp_path, {"north": [i // 4 for i in range(400)]})
    config = DataConfig(file=path, site="ward", split_by="document", shots=5)
    assert len(load_data(config, seed=0).sites["north"].train) == 10


@pytest.mark.parametrize("where", ["source=demo", "source=movie-stars", "folder=images"])
def test_what_has_no_columns_names_no_document(where: str) -> None:
    with pytest.raises(ConfigError, match=r"has no columns"):
        load_config(overrides=[f"data.{where}", "data.split_by=document"])


def test_a_group_is_in_one_part_already() -> None:
    with pytest.raises(ConfigError, match=r"data\.split_by"):
        load_config(
            overrides=[
                *("data.file=a.csv", "data.site=ward", "data.group=patient"),
                *("data.split_by=document", "privacy.unit=group"),
            ]
        )


@pytest.mark.parametrize(
    "setting",
    ["data.sampling=balanced", "data.balance=true", "train.sampler=balanced", "data.oversample=2"],
)
def test_drawing_rare_classes_more_often_is_refused_with_the_reason(setting: str) -> None:
    """It is not a misspelt key: what is meant would break the promise."""
    with pytest.raises(ConfigError) as caught:
        load_config(overrides=["data.source=demo", setting])
    assert setting.partition("=")[0] in str(caught.value)
    assert "one public rate" in str(caught.value)
    assert "data.class_weights" in str(caught.value.remedy)
