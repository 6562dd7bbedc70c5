"""Files are read as they are, and every fault names file, row and column."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from types import ModuleType, SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune.common.errors import (
    BadValueError,
    DataError,
    EmptyDataError,
    EncodingError,
    MissingColumnError,
    MissingFileError,
    UnsupportedDataError,
)
from hushtune.common.tasks import tables
from hushtune.common.tasks.packaged.sentences import read_polarity
from hushtune.common.tasks.preview import preview
from hushtune.common.tasks.readers import read_dataset, read_file
from hushtune.common.tasks.rows import Columns, RawRow


def rows_of(path: Path, *, site: str | None = None) -> list[RawRow]:
    return list(read_file(path, Columns("text", "label", site)))


def written(folder: Path, content: str | bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def values(rows: list[RawRow]) -> list[tuple[str | None, str | None]]:
    return [(row.text, row.label) for row in rows]


def refused(path: Path, kind: type[DataError], *, site: str | None = None) -> DataError:
    with pytest.raises(kind) as caught:
        rows_of(path, site=site)
    assert str(path) in str(caught.value)
    return caught.value


def test_csv_with_mark_quotes_blank_lines_and_windows_line_ends(tmp_path: Path) -> None:
    path = written(
        tmp_path,
        b'\xef\xbb\xbfid, text ,label\r\n1,"two\r\nlines, ""q""",a\r\n\r\n2,\xc3\xa9,b\r\n',
    )
    rows = rows_of(path)
    assert values(rows) == [('two\r\nlines, "q"', "a"), ("é", "b")]
    # The record that spans lines 2 and 3 is at 2; the blank line is counted, and no row.
    assert [row.place for row in rows] == [f"{path}:2", f"{path}:5"]


@pytest.mark.parametrize("name", ["data.csv", "data.tsv"])
@pytest.mark.parametrize("mark", [",", ";", "\t", "|"])
def test_the_header_shows_what_separates_cells(tmp_path: Path, name: str, mark: str) -> None:
    """A preview and a run read alike, whatever the file's extension says."""
    lines = [("id", '"text"', "label", "ward"), ("1", f'"a, b; c | d{mark}e"', "x", "north")]
    path = written(tmp_path, "\ufeff\n" + "".join(mark.join(row) + "\r\n" for row in lines), name)
    (row,) = rows_of(path, site="ward")
    assert (row.text, row.label, row.site) == (f"a, b; c | d{mark}e", "x", "north")
    (shown,) = preview(path, columns=Columns("text", "label", "ward"))
    assert (shown.text, shown.label, shown.site, shown.note) == (row.text, "x", "north", None)


def test_the_usual_delimiter_is_kept_where_it_gives_the_columns(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label,a;b;c;d;e\nx;y,1,2\n")
    assert values(rows_of(path)) == [("x;y", "1")]


@pytest.mark.parametrize("header", ["id;Text;rating", "id;text, in full;label;rating"])
def test_a_column_that_semicolons_do_not_give_is_missed_by_name(
    tmp_path: Path, header: str
) -> None:
    path = written(tmp_path, f"{header}\n" + ";".join("abcd") + "\n")
    error = refused(path, MissingColumnError)
    assert error.column == "text"
    assert error.given == header.replace(";", ", ")


def test_tsv_and_site_column(tmp_path: Path) -> None:
    path = written(tmp_path, "text\tlabel\thospital\na, b\tx\tnorth\nc\ty\t\n", "data.tsv")
    assert [row.site for row in rows_of(path, site="hospital")] == ["north", None]


def test_labels_of_any_spelling_of_whole_numbers_are_equal(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\na,1\nb,1.0\nc, 2.00 \nd,3.5\ne,big\n")
    assert [row.label for row in rows_of(path)] == ["1", "1", "2", "3.5", "big"]
    lines = '{"text": "a", "label": 1}\n{"text": "b", "label": 1.0}\n{"text": "c", "label": true}'
    path = written(tmp_path, lines, "data.jsonl")
    assert [row.label for row in rows_of(path)] == ["1", "1", "true"]


def test_missing_cells_are_none_and_not_text(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\na,\n  ,x\nb, \nc,y\n")
    assert values(rows_of(path)) == [("a", None), (None, "x"), ("b", None), ("c", "y")]
    lines = '{"text": NaN, "label": 1}\n{"text": "b", "label": null}\n\n{"text": "c"}\n'
    path = written(tmp_path, lines + '{"text": "d", "label": "z"}', "data.jsonl")
    expected = [(None, "1"), ("b", None), ("c", None), ("d", "z")]
    assert values(rows_of(path)) == expected


@pytest.mark.parametrize("word", ["nan", "NaN", "NA", "N/A", "null", "None", "<NA>"])
@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "data.parquet"])
def test_words_that_others_take_for_missing_are_handed_on(
    tmp_path: Path, name: str, word: str
) -> None:
    path = tmp_path / name
    cells = {"text": word, "label": word, "ward": word, "who": word}
    if name == "data.jsonl":
        written(tmp_path, json.dumps(cells), name)
    elif name == "data.parquet":
        arrow = pytest.importorskip("pyarrow")
        parquet = pytest.importorskip("pyarrow.parquet")
        parquet.write_table(arrow.table({key: [value] for key, value in cells.items()}), path)
    else:
        tab = "\t" if name == "data.tsv" else ","
        written(tmp_path, f"{tab.join(cells)}\n{tab.join(cells.values())}\n", name)
    (row,) = read_file(path, Columns("text", "label", "ward", "who"))
    assert (row.text, row.label, row.site, row.group, row.nan) == (word, word, word, word, ())


def test_the_number_nan_is_told_from_nothing(tmp_path: Path) -> None:
    lines = '{"text": "a", "label": NaN, "ward": null}\n{"text": "b", "label": 1, "ward": NaN}\n'
    rows = rows_of(written(tmp_path, lines, "data.jsonl"), site="ward")
    assert [row.nan for row in rows] == [("label",), ("site",)]
    assert [(row.label, row.site) for row in rows] == [(None, None), ("1", None)]


@pytest.mark.parametrize("column", ["text", "label"])
def test_a_column_without_any_value_is_an_error(tmp_path: Path, column: str) -> None:
    cells = {"text": "a", "label": "b"} | {column: ""}
    path = written(tmp_path, f"text,label\n{cells['text']},{cells['label']}\n")
    assert refused(path, BadValueError).column == column


def test_missing_file_proposes_its_neighbour(tmp_path: Path) -> None:
    written(tmp_path, "text,label\n", "hospitals.csv")
    error = refused(tmp_path / "hospital.csv", MissingFileError)
    assert "hospitals.csv" in str(error)


@pytest.mark.parametrize("name", ["data.csv", "data.tsv", "data.jsonl", "data.parquet"])
def test_empty_file(tmp_path: Path, name: str) -> None:
    refused(written(tmp_path, "", name), EmptyDataError)


@pytest.mark.parametrize("content", ["text,label\n", "\n\ntext,label", "\ufefftext,label\n\n"])
def test_header_only(tmp_path: Path, content: str) -> None:
    refused(written(tmp_path, content), EmptyDataError)


def test_missing_column_proposes_the_nearest(tmp_path: Path) -> None:
    path = written(tmp_path, "id,Texts,label\n1,a,b\n")
    error = refused(path, MissingColumnError)
    assert error.column == "text"
    assert "did you mean 'Texts'" in str(error)
    path = written(tmp_path, "text,label,hospitl\na,b,c\n")
    assert "did you mean 'hospitl'" in str(refused(path, MissingColumnError, site="hospital"))
    path = written(tmp_path, '{"txt": "a", "label": 1}', "data.jsonl")
    assert "did you mean 'txt'" in str(refused(path, MissingColumnError))


def test_column_named_twice(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "text,label,text\na,b,c\n"), BadValueError)
    assert (error.row, error.column, error.given) == (1, "text", "columns 1 and 3")
    # A doubled name that nobody reads is no harm.
    assert len(rows_of(written(tmp_path, "text,label,x,x\na,b,c,d\n"))) == 1


def test_ragged_row(tmp_path: Path) -> None:
    error = refused(written(tmp_path, 'text,label\n"a\nb",x\nc,y,z\n'), BadValueError)
    assert error.row == 4
    assert error.given == "3 cells"


@pytest.mark.parametrize("bad", ['"open,x\n' + "y,z\n" * 3, '"a"b,x\n', '"' + "a" * 200_000])
def test_broken_quotes(tmp_path: Path, bad: str) -> None:
    error = refused(written(tmp_path, "text,label\nfine,x\n" + bad), BadValueError)
    assert error.row == 3
    assert "quote" in str(error)


def test_byte_that_is_not_utf8(tmp_path: Path) -> None:
    content = "text,label\nna\u00efve,x\n".encode() + "caf\u00e9,y\n".encode("latin-1")
    error = refused(written(tmp_path, content), EncodingError)
    assert error.row == 3
    assert error.given == "byte 0xe9 at byte 4 of the row"
    assert "iconv" in str(error)


def test_utf16_without_its_mark(tmp_path: Path) -> None:
    error = refused(written(tmp_path, "text,label\na,b\n".encode("utf-16-le")), EncodingError)
    assert "UTF-16" in str(error)


@pytest.mark.parametrize("bad", ['{"text": "a", "lab', "[1, 2]", '{"text": ["a"], "label": 1}'])
def test_broken_json_line(tmp_path: Path, bad: str) -> None:
    path = written(tmp_path, '{"text": "a", "label": 1}\n' + bad + "\n", "data.jsonl")
    assert refused(path, BadValueError).row == 2


@pytest.mark.parametrize("cells", ['{"text": 3, "label": 1}', '{"text": "a", "label": Infinity}'])
def test_numbers_that_are_neither_text_nor_class(tmp_path: Path, cells: str) -> None:
    error = refused(written(tmp_path, cells, "data.jsonl"), BadValueError)
    assert error.row == 1
    assert error.column in ("text", "label")


@pytest.mark.parametrize("name", ["data.xlsx", "data", "data.gz", "data.parquet.gz"])
def test_unsupported_extension(tmp_path: Path, name: str) -> None:
    assert ".csv" in str(refused(written(tmp_path, "x", name), UnsupportedDataError))
    refused(tmp_path, UnsupportedDataError)  # a folder


def test_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    nan = float("nan")
    columns = {"text": ["a", None, "c"], "label": [1.0, 2.0, nan], "other": [1, 2, 3]}
    parquet.write_table(arrow.table(columns), path)
    assert values(rows_of(path)) == [("a", "1"), (None, "2"), ("c", None)]
    assert rows_of(path)[2].place == f"{path}:3"
    refused(path, MissingColumnError, site="hospital")
    refused(written(tmp_path, "text,label\n", "csv.parquet"), UnsupportedDataError)


@pytest.mark.parametrize("module", ["pyarrow", "datasets"])
def test_library_that_is_not_installed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    monkeypatch.setitem(sys.modules, f"{module}.parquet", None)
    rows = (
        read_file(written(tmp_path, "x", "x.parquet"), Columns("text", "label"))
        if module == "pyarrow"
        else read_dataset("some/set", Columns("text", "label"))
    )
    with pytest.raises(UnsupportedDataError, match=f"pip install {module}"):
        next(rows)


class _Table(list[dict[str, object]]):
    """As much of a `datasets.Dataset` as is used: rows, column names, features, a selection."""

    def __init__(self, rows: list[dict[str, object]], names: list[str] | None) -> None:
        super().__init__(rows)
        self.column_names = list(rows[0])
        self.features = {"label": SimpleNamespace(names=names) if names else SimpleNamespace()}

    def select_columns(self, names: list[str]) -> list[dict[str, object]]:
        return [{name: row[name] for name in names} for row in self]


def test_dataset_joins_splits_and_names_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    names = ["bad", "good"]
    train = _Table([{"text": "a", "label": 1, "x": 0}, {"text": "b", "label": 0, "x": 0}], names)
    hidden = _Table([{"text": "c", "label": -1, "x": 0}], names)
    monkeypatch.setattr(tables, "find_on_hub", lambda *_: None)
    library = ModuleType("datasets")
    library.load_dataset = lambda name: {"train": train, "test": hidden}  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    rows = list(read_dataset("some/set", Columns("text", "label")))
    assert values(rows) == [("a", "good"), ("b", "bad"), ("c", None)]
    assert rows[2].place == "some/set[test]:1"
    with pytest.raises(MissingColumnError, match="did you mean 'text'"):
        list(read_dataset("some/set", Columns("texts", "label")))


def test_dataset_that_cannot_be_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    def load(name: str) -> None:
        raise ConnectionError(f"no route to {name}")

    monkeypatch.setattr(tables, "find_on_hub", lambda *_: None)
    library = ModuleType("datasets")
    library.load_dataset = load  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "datasets", library)
    with pytest.raises(UnsupportedDataError, match="no route to some/set"):
        list(read_dataset("some/set", Columns("text", "label")))


def test_rated_sentences_are_cut_at_half_a_point(tmp_path: Path) -> None:
    lines = "1\t0.49\tso so\r\n2\t-0.5\ta &amp; b\r\n3\t1.2\t x  y"
    for name in ("amazonReviewSnippets", "movieReviewSnippets", "nytEditorialSnippets", "tweets"):
        written(tmp_path, lines, f"{name}_GroundTruth.txt")
    rows = list(read_polarity(tmp_path))
    assert values(rows[:2]) == [("a & b", "negative"), ("x y", "positive")]
    assert sorted({str(row.site) for row in rows}) == ["amazon", "movie", "nyt", "tweets"]
    written(tmp_path, "1\t0.9 no second tab", "tweets_GroundTruth.txt")
    with pytest.raises(BadValueError, match="id, score and text"):
        list(read_polarity(tmp_path))
    written(tmp_path, "1\thigh\ttext", "tweets_GroundTruth.txt")
    with pytest.raises(BadValueError, match="score"):
        list(read_polarity(tmp_path))


@given(
    st.lists(
        st.tuples(st.text(min_size=1), st.sampled_from(["yes", "no"])), min_size=1, max_size=20
    )
)
def test_json_lines_give_back_what_was_written(
    tmp_path_factory: pytest.TempPathFactory, pairs: list[tuple[str, str]]
) -> None:
    pairs = [("first", "yes"), *pairs]
    content = "\n".join(json.dumps({"text": text, "label": label}) for text, label in pairs)
    path = written(tmp_path_factory.mktemp("json"), content, "data.jsonl")
    assert values(rows_of(path)) == [(text.strip() or None, label) for text, label in pairs]


def test_preview_shows_rows_as_read_and_as_tokens(tmp_path: Path) -> None:
    path = written(tmp_path, "text,label\nsome words,x\nmore,\n" + "and,y\n" * 9)
    shown = preview(path, tokenize=str.split, rows=2)
    assert [row.tokens for row in shown] == [("some", "words"), ("more",)]
    assert [row.note for row in shown] == [None, "left out: no label"]
    assert shown[1].place == f"{path}:3"
