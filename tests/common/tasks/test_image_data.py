"""Rows of images: from folders and tables, copies found by their bytes, a data set that moves."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import (
    BadValueError,
    EmptyDataError,
    MissingFileError,
    UnsupportedDataError,
)
from hushtune.common.tasks.data import LabelledRows, load_data
from hushtune.common.tasks.preview import preview
from hushtune.common.tasks.rows import Columns

from ...conftest import write_csv
from ...pictures import picture, picture_folder

TASK = TaskConfig(kind="image-classification")


def loaded(**data: object) -> LabelledRows:
    return load_data(DataConfig(**data), TASK, seed=0)  # pyright: ignore[reportArgumentType]


def test_a_folder_of_sites_and_classes_is_read(tmp_path: Path) -> None:
    data = loaded(folder=picture_folder(tmp_path / "images", each=5))
    assert set(data.sites) == {"north", "south"}
    assert data.label_names == ("dark", "light")
    assert len(data.texts) == 20
    for text, label in zip(data.texts, data.labels, strict=True):
        assert Path(text.partition(":")[2]).parent.name == data.label_names[label]


def test_a_folder_of_classes_is_dealt_by_a_partition_and_can_be_a_site_s(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", each=8)
    dealt = loaded(folder=folder / "north", partition="iid", sites=2)
    assert set(dealt.sites) == {"site-0", "site-1"}
    assert len(dealt.texts) == 16
    files = loaded(files={"a": folder / "north", "b": folder / "south"})
    assert set(files.sites) == {"a", "b"}
    assert len(files.texts) == 32


def test_paths_in_a_table_are_taken_from_its_folder(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", each=4)
    rows = [
        (path.parent.parent.name, path.relative_to(tmp_path), path.parent.name)
        for path in sorted(folder.rglob("*.png"))
    ]
    table = write_csv(tmp_path / "rows.csv", rows, header=("site", "path", "label"))
    from_table = loaded(file=table, site="site", text="path")
    from_folder = loaded(folder=folder)
    assert from_table.texts == from_folder.texts
    assert from_table.fingerprints == from_folder.fingerprints


def test_copies_are_one_image_wherever_they_lie(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", each=5)
    shutil.copy(folder / "north/dark/000.png", folder / "north/dark/copy.png")
    shutil.copy(folder / "north/dark/001.png", folder / "south/dark/copy.png")
    shutil.copy(folder / "south/light/002.png", folder / "south/dark/contradiction.png")
    data = loaded(folder=folder)
    assert len(data.texts) == 19  # the contradicted image is left out as well
    told = " ".join(data.report.lines())
    assert "repeated at another site" in told
    assert "another label" in told


def test_a_data_set_that_is_moved_is_the_same_one(tmp_path: Path) -> None:
    """Otherwise a copy of the folder would begin with a new budget."""
    here = picture_folder(tmp_path / "here", each=5)
    before = loaded(folder=here)
    there = tmp_path / "elsewhere" / "there"
    there.parent.mkdir()
    shutil.move(here, there)
    after = loaded(folder=there)
    assert after.fingerprints == before.fingerprints
    assert after.used("north") == before.used("north")
    picture(there / "north" / "dark" / "more.png", 99, light=False)
    assert loaded(folder=there).fingerprints["north"] != before.fingerprints["north"]


def test_what_is_wrong_with_a_folder_is_told(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match="SITE/CLASS/FILE"):
        loaded(folder=tmp_path / "none")
    (tmp_path / "empty").mkdir()
    with pytest.raises(EmptyDataError, match="no images"):
        loaded(folder=tmp_path / "empty")
    folder = picture_folder(tmp_path / "images", each=2)
    (folder / ".hidden").write_text("", encoding="utf-8")
    loaded(folder=folder)
    for name in ("notes.txt", "north/notes.txt", "north/dark/notes.txt"):
        (folder / name).write_text("", encoding="utf-8")
        with pytest.raises(UnsupportedDataError, match=r"notes\.txt"):
            loaded(folder=folder)
        (folder / name).unlink()
    with pytest.raises(UnsupportedDataError, match=r"set it and data\.sites"):
        loaded(folder=folder / "north")  # classes where sites are expected
    (folder / "south" / "light" / "bad.png").write_bytes(b"?")
    with pytest.raises(BadValueError, match=r"no image(?s:.*)bad\.png"):
        loaded(folder=folder)


def test_a_bad_path_in_a_table_names_its_row(tmp_path: Path) -> None:
    picture(tmp_path / "a.png", 1, light=True)
    table = write_csv(tmp_path / "t.csv", [("n", "a.png", "x"), ("n", "b.png", "y")])
    with pytest.raises(MissingFileError, match=r"t\.csv, row 3(?s:.*)b\.png"):
        loaded(file=table, site="site")


def test_a_preview_tells_size_and_class(tmp_path: Path) -> None:
    folder = picture_folder(tmp_path / "images", each=2)
    columns = Columns("path", "label", site="site", kind=TASK.kind)
    (first, second) = preview(folder, rows=2, columns=columns)
    assert (first.size, first.label, first.site) == ((20, 18), "dark", "north")
    assert second.tokens is None
    (row,) = preview(DataConfig(folder=folder), task=TASK, rows=1)
    assert (row.size, row.site) == ((20, 18), "north")
