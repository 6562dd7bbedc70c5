"""JSON, plain text, CoNLL and list cells: read as they are, faults named by file and row."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import (
    BadValueError,
    DataError,
    EmptyDataError,
    LabelError,
    MissingColumnError,
    UnsupportedDataError,
)
from hushtune.common.tasks.data import load_data
from hushtune.common.tasks.guess import header
from hushtune.common.tasks.readers import read_file
from hushtune.common.tasks.rows import Columns

ROWS = [{"text": "a", "label": 1}, {"text": "b", "label": "x"}]


def written(folder: Path, content: str | bytes, name: str) -> Path:
    path = folder / name
    path.write_bytes(content.encode() if isinstance(content, str) else content)
    return path


def pairs(path: Path, kind: str = "text-classification") -> list[tuple[str | None, str | None]]:
    rows = read_file(path, Columns("text", "label", kind=kind))
    return [(row.text, row.label) for row in rows]


def refused(path: Path, kind: type[DataError], task: str = "text-classification") -> DataError:
    with pytest.raises(kind) as caught:
        pairs(path, task)
    assert str(path) in str(caught.value)
    return caught.value


# --------------------------------------------------------------------------------- JSON ----


@pytest.mark.parametrize("indent", [None, 0, 2])
@pytest.mark.parametrize("packed", [False, True])
def test_a_list_of_objects(tmp_path: Path, indent: int | None, packed: bool) -> None:
    content = ("\n \n" + json.dumps(ROWS, indent=indent) + "\n").encode("utf-8-sig")
    name = "data.json" + (".gz" if packed else "")
    path = written(tmp_path, gzip.compress(content) if packed else content, name)
    assert pairs(path) == [("a", "1"), ("b", "x")]
    assert header(path) == ("text", "label")
    rows = list(read_file(path, Columns("text", "label")))
    assert [row.place for row in rows] == [f"{path}:1", f"{path}:2"]


def test_json_lines_by_the_wrong_name(tmp_path: Path) -> None:
    lines = "\n".join(map(json.dumps, ROWS))
    assert pairs(written(tmp_path, lines, "data.json")) == [("a", "1"), ("b", "x")]
    error = refused(written(tmp_path, json.dumps(ROWS), "data.jsonl"), BadValueError)
    assert ".json" in str(error.remedy)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False) | st.text(),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(), inner, max_size=3),
    max_leaves=8,
)


@given(
    st.lists(st.dictionaries(st.text(), JSON, max_size=4), min_size=1, max_size=12),
    st.sampled_from([None, 1]),
    st.integers(1, 40),
)
def test_objects_are_found_whatever_pieces_they_come_in(
    tmp_path_factory: pytest.TempPathFactory, rows: list[object], indent: int | None, size: int
) -> None:
    from hushtune.common.tasks import lines, records_json

    path = written(tmp_path_factory.mktemp("json"), json.dumps(rows, indent=indent), "data.json")
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(lines, "_PIECE", size)
        found = records_json.json_records(path, ())
        read = [cells for _, cells in found.read(())]
    assert read == json.loads(json.dumps(rows))


@pytest.mark.parametrize(
    ("content", "row"),
    [
        ('[{"text": "a", "label": 1}, 3]', 2),
        ('[{"text": "a", "label": 1} {"text": "b"}]', 1),
        ('[{"text": "a", "label": 1}, {"text": "b", "lab', 2),
        ('[{"text": "a", "label": 1}', 1),
        ('[{"text": "a", "label": 1}] {}', 1),
        ('[{"text": "a", "label": tru}]' + " " * 99, 1),
        ('{"data": [\n{"text": "a"}]}', 1),
        ('"text"', 1),
        ("[" + '{"a":' * 100_000, 1),
    ],
)
def test_broken_json(tmp_path: Path, content: str, row: int) -> None:
    assert refused(written(tmp_path, content, "data.json"), BadValueError).row == row


@pytest.mark.parametrize("content", ["", "  \n", "[]", "[ \n ]"])
def test_json_without_rows(tmp_path: Path, content: str) -> None:
    refused(written(tmp_path, content, "data.json"), EmptyDataError)


def test_a_column_that_json_lacks(tmp_path: Path) -> None:
    path = written(tmp_path, json.dumps([{"txt": "a", "label": 1}]), "data.json")
    assert "did you mean 'txt'" in str(refused(path, MissingColumnError))


@pytest.mark.parametrize("name", ["data.csv.gz", "data.tsv.gz", "data.jsonl.gz"])
def test_packed_tables(tmp_path: Path, name: str) -> None:
    content = {
        "data.csv.gz": "text;label\na;1\nb;x\n",
        "data.tsv.gz": "text\tlabel\na\t1\nb\tx\n",
        "data.jsonl.gz": "\n".join(map(json.dumps, ROWS)),
    }[name]
    assert pairs(written(tmp_path, gzip.compress(content.encode()), name)) == [
        ("a", "1"),
        ("b", "x"),
    ]


# ------------------------------------------------------------------- texts and sentences ----


def test_a_text_a_line(tmp_path: Path) -> None:
    path = written(tmp_path, "one\r\n\r\n  two words \r\n", "data.txt")
    rows = list(read_file(path, Columns("text", "label", kind="causal-lm")))
    assert [(row.text, row.label, row.place) for row in rows] == [
        ("[]", "one", f"{path}:1"),
        ("[]", "two words", f"{path}:3"),
    ]
    refused(path, UnsupportedDataError)
    refused(path, UnsupportedDataError, "seq2seq")
    with pytest.raises(UnsupportedDataError, match="'hospital'"):
        list(read_file(path, Columns("text", "label", "hospital", kind="causal-lm")))


CONLL = """-DOCSTART- -X- O O

EU\tNNP\tB-ORG
rejects\tVBZ\tO

# id = 2
Peter B-PER
# O
"""


def test_sentences_of_words_with_tags(tmp_path: Path) -> None:
    path = written(tmp_path, CONLL, "data.conll")
    rows = list(read_file(path, Columns("words", "tags", kind="token-classification")))
    assert [(row.text, row.label, row.place.rpartition(":")[2]) for row in rows] == [
        ("EU rejects", "B-ORG O", "3"),
        ("Peter #", "B-PER O", "7"),
    ]
    refused(path, UnsupportedDataError)
    bare = written(tmp_path, "EU\tB-ORG\nrejects\n", "data.conll")
    assert refused(bare, BadValueError, "token-classification").row == 2


def test_lists_of_words_and_tags(tmp_path: Path) -> None:
    kind = "token-classification"
    lists = '{"text": ["EU", "rejects"], "label": ["B", 0]}\n{"text": "a  b", "label": "x y"}'
    assert pairs(written(tmp_path, lists, "data.jsonl"), kind) == [
        ("EU rejects", "B 0"),
        ("a b", "x y"),
    ]
    table = 'text,label\n"[""EU"", ""x""]","[""B"", ""O""]"\n[sic] yes,O O\n'
    assert pairs(written(tmp_path, table, "data.csv"), kind)[0] == ("EU x", "B O")
    assert pairs(written(tmp_path, table, "data.csv"), kind)[1] == ("[sic] yes", "O O")
    bad = written(tmp_path, '{"text": ["New York", "x"], "label": ["B", "O"]}', "data.jsonl")
    error = refused(bad, BadValueError, kind)
    assert (error.row, error.column) == (1, "text")


def test_a_sentence_with_another_number_of_tags(tmp_path: Path) -> None:
    path = written(tmp_path, 'text,label\n"a b",x y\n"c d",x\n', "data.csv")
    config = DataConfig(files={"north": path})
    with pytest.raises(
        LabelError, match=r"data\.csv, row 3, column .label.\n  given: 2 words, 1 tags"
    ):
        load_data(config, TaskConfig(kind="token-classification"), seed=0)


def test_several_labels_from_lists_and_bars(tmp_path: Path) -> None:
    kind = "multi-label"
    lines = [["b", "a", "b"], [], "b | a", "|", None, [2, 1.0]]
    content = "\n".join(json.dumps({"text": f"t{i}", "label": v}) for i, v in enumerate(lines))
    found = [label for _, label in pairs(written(tmp_path, content, "data.jsonl"), kind)]
    assert found == ["a|b", "|", "a|b", "|", None, "1|2"]
    table = 'text,label\na,b|a\nb,"[""x"", ""y""]"\nc,|\nd,\n'
    found = [label for _, label in pairs(written(tmp_path, table, "data.csv"), kind)]
    assert found == ["a|b", "x|y", "|", None]
    bad = written(tmp_path, '{"text": "a", "label": ["x|y"]}', "data.jsonl")
    assert refused(bad, BadValueError, kind).column == "label"


def test_lists_in_parquet(tmp_path: Path) -> None:
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    path = tmp_path / "data.parquet"
    columns = {"text": [["a", "b"]], "label": [["x", "y"]], "other": [[1]]}
    parquet.write_table(arrow.table(columns), path)
    assert pairs(path, "token-classification") == [("a b", "x y")]
    chat = [[{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]]
    parquet.write_table(arrow.table({"messages": chat}), path)
    assert pairs(path, "causal-lm") == [('[{"role": "user", "content": "q"}]', "a")]


def test_tags_of_a_data_set_are_called_by_their_names(tmp_path: Path) -> None:
    from hushtune.common.tasks.readers import read_dataset

    datasets = pytest.importorskip("datasets")
    names = datasets.ClassLabel(names=["O", "B-PER"])
    made = datasets.Dataset.from_dict(
        {"tokens": [["Peter", "left"]], "ner_tags": [[1, 0]]},
        features=datasets.Features(
            {
                "tokens": datasets.Sequence(datasets.Value("string")),
                "ner_tags": datasets.Sequence(names),
            }
        ),
    )
    made.save_to_disk(str(tmp_path / "set"))
    columns = Columns("tokens", "ner_tags", kind="token-classification")
    (row,) = read_dataset(str(tmp_path / "set"), columns)
    assert (row.text, row.label) == ("Peter left", "B-PER O")


# ---------------------------------------------------------------------------- HTML, rows ----


def test_html_entities_are_kept_or_turned_into_characters(tmp_path: Path) -> None:
    lines = [f'"this &amp; that {i}",{"no" if i % 2 else "R&amp;D"}' for i in range(12)]
    path = written(tmp_path, "text,label\n" + "\n".join(lines), "data.csv")
    kept = load_data(DataConfig(files={"north": path}), seed=0)
    assert kept.texts[0] == "this &amp; that 0"
    (note,) = kept.report.lines()
    assert "12 rows: HTML entities" in note
    assert "data.unescape_html = true" in note
    clean = load_data(DataConfig(files={"north": path}, unescape_html=True), seed=0)
    assert clean.texts[0] == "this & that 0"
    assert clean.label_names == ("R&D", "no")
    assert clean.report.lines() == []
    assert kept.fingerprints != clean.fingerprints


def test_a_few_entities_are_not_worth_a_line(tmp_path: Path) -> None:
    lines = [f"text {i},{'no' if i % 2 else 'yes'}" for i in range(300)]
    content = "text,label\n" + "\n".join([*lines, "a &lt; b,no"])
    path = written(tmp_path, content, "data.csv")
    assert load_data(DataConfig(files={"north": path}), seed=0).report.lines() == []
