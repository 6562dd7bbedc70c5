"""Text files as they come: marks, encodings, line ends, gzip, and lines that do not end."""

from __future__ import annotations

import gzip
import io
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hushtune.common.errors import BadValueError, EncodingError, UnsupportedDataError
from hushtune.common.tasks import lines
from hushtune.common.tasks.lines import decoded_lines, decoded_pieces
from hushtune.common.tasks.readers import read_file
from hushtune.common.tasks.rows import Columns

COLUMNS = Columns("text", "label")
LETTERS = st.characters(exclude_categories=["Cs"], exclude_characters="\x00\r\n\ufeff")
ENDS = st.sampled_from(["\n", "\r\n"])


def written(folder: Path, content: bytes, name: str = "data.csv") -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


@given(st.lists(st.text(LETTERS, max_size=30), min_size=1, max_size=30), ENDS, st.booleans())
def test_lines_are_the_same_in_every_encoding_and_packing(
    tmp_path_factory: pytest.TempPathFactory, texts: list[str], end: str, closed: bool
) -> None:
    folder = tmp_path_factory.mktemp("lines")
    content = end.join(texts) + (end if closed else "")
    expected = list(io.StringIO(content, newline="\n"))
    for name, raw in (
        ("plain.txt", content.encode()),
        ("marked.txt", content.encode("utf-8-sig")),
        ("wide.txt", content.encode("utf-16")),
        ("big.txt", b"\xfe\xff" + content.encode("utf-16-be")),
        ("packed.txt.gz", gzip.compress(content.encode("utf-16"))),
    ):
        path = written(folder, raw, name)
        assert list(decoded_lines(path)) == expected, name
        assert "".join(decoded_pieces(path)) == content, name


@pytest.mark.parametrize("codec", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
def test_a_table_of_any_line_ends_and_mark(tmp_path: Path, codec: str, end: str) -> None:
    content = end.join(["text,label", f'"two{end}lines",é', "b,c", ""])
    rows = list(read_file(written(tmp_path, content.encode(codec)), COLUMNS))
    assert [(row.text, row.label) for row in rows] == [(f"two{end}lines", "é"), ("b", "c")]
    assert [row.place.rpartition(":")[2] for row in rows] == ["2", "4"]


def test_lines_longer_than_a_piece(tmp_path: Path) -> None:
    """Ends that fall between two pieces of what is read are ends all the same."""
    for size in range(65530, 65540):
        content = "a" * size + "\r\n" + "b" * size + "\r\nc"
        for codec in ("utf-8", "utf-16"):
            path = written(tmp_path, content.encode(codec))
            assert [len(line) for line in decoded_lines(path)] == [size + 2, size + 2, 1]
    returns = written(tmp_path, b"a\r" + b"b" * 70000 + b"\rc")
    assert [len(line) for line in decoded_lines(returns)] == [2, 70001, 1]


@pytest.mark.parametrize(
    ("raw", "row", "given"),
    [
        (b"a\nb\x00c\n", 2, "a zero byte at byte 2 of the row"),
        (b"a\r\xe9\r", 2, "byte 0xe9 at byte 1 of the row"),
        (b"\xff\xfea\x00\n\x00\x00\xd8b\x00", 2, "illegal"),
        (b"\xff\xfea\x00\n\x00b", 2, "truncated data"),
        ("a\nb\nc".encode("utf-32"), 1, "a zero character"),
    ],
)
def test_what_is_no_text_is_named_by_row(tmp_path: Path, raw: bytes, row: int, given: str) -> None:
    path = written(tmp_path, raw)
    with pytest.raises(EncodingError) as caught:
        list(decoded_lines(path))
    assert caught.value.row == row
    assert given in str(caught.value.given)


def test_a_bad_byte_in_one_long_line_is_named_by_its_place(tmp_path: Path) -> None:
    path = written(tmp_path, b"\xef\xbb\xbf[\n" + b" " * 70000 + b"\xe9]", "data.json")
    with pytest.raises(EncodingError) as caught:
        list(decoded_pieces(path))
    assert caught.value.row == 2
    assert "byte 70006 of the file" in str(caught.value.given)


@pytest.mark.parametrize("packed", [False, True])
def test_what_is_no_gzip_or_cut_off(tmp_path: Path, packed: bool) -> None:
    raw = gzip.compress(b"text,label\n" * 99)[:-9] if packed else b"text,label\n"
    with pytest.raises(UnsupportedDataError, match="unpacked"):
        list(read_file(written(tmp_path, raw, "data.csv.gz"), COLUMNS))


@pytest.mark.parametrize("content", ["a\nbbbbbbbbbb", "a\rbbbbbbbbbb"])
@pytest.mark.parametrize("codec", ["utf-8", "utf-16"])
def test_a_line_without_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: str, codec: str
) -> None:
    monkeypatch.setattr(lines, "LONGEST_LINE", 8)
    with pytest.raises(BadValueError, match="longer than") as caught:
        list(decoded_lines(written(tmp_path, content.encode(codec))))
    assert caught.value.row == 2


def test_a_cell_longer_than_pythons_own_limit(tmp_path: Path) -> None:
    text = "word " * 100_000
    path = written(tmp_path, f'text,label\n"{text}",a\n'.encode())
    assert [row.text for row in read_file(path, COLUMNS)] == [text.strip()]
