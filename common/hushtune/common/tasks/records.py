"""The records of a file as they stand there: which columns, and cell by cell, before it is known
what of them a run reads."""

from __future__ import annotations

import csv
import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from hushtune.common.errors import BadValueError, EmptyDataError
from hushtune.common.tasks.delimiters import delimiter_of
from hushtune.common.tasks.lines import LONGEST_LINE, decoded_lines

Cells = Mapping[str, object]
_DOCUMENT = "-DOCSTART-"
_REMARK = re.compile(r"# [^\t=]*= [^\t]*$")
LONGEST_CELL: Final = 10_000_000
"""Letters of a CSV's cell: a long book has a tenth; a quote that is not closed soon has more."""


@dataclass(frozen=True)
class Records:
    """What a file or a part of a data set holds.

    ``names``: its columns in their order; of JSON those of the first record, as others may lack
    some. ``read``: the records with their row numbers; of a columnar store only the columns that
    are asked for. ``own_names``: whether the names stand in the file, which .txt and .conll lack.
    """

    file: str
    names: tuple[str, ...]
    read: Callable[[Collection[str]], Iterator[tuple[int, Cells]]]
    own_names: bool = True


def csv_records(path: Path, wanted: Collection[str]) -> Records:
    """Of a CSV or TSV file; ``wanted``: columns that tell its delimiter.

    Raises EncodingError, EmptyDataError, and BadValueError for a row that is not well-formed.
    """
    rows = _csv_rows(path, delimiter_of(path, wanted))
    _, header = next(rows, (0, None))
    if header is None:
        raise EmptyDataError("the file is empty", file=path, remedy="name a file with rows")
    names = tuple(name.strip() for name in header)

    def read(_: Collection[str]) -> Iterator[tuple[int, Cells]]:
        for row, cells in rows:
            if len(cells) != len(names):
                raise BadValueError(
                    "the row has another number of cells than the header",
                    file=path,
                    row=row,
                    given=f"{len(cells)} cells",
                    expected=f"{len(names)}: {', '.join(names)}",
                    remedy="quote cells that hold the delimiter or a line break",
                )
            yield row, dict(zip(names, cells, strict=True))

    return Records(str(path), names, read)


def _csv_rows(path: Path, delimiter: str) -> Iterator[tuple[int, list[str]]]:
    """Rows that are not blank, each with the number of its first line."""
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST_CELL))
    # strict: a stray or unclosed quote is an error here, not half a file in one cell.
    reader = csv.reader(decoded_lines(path), delimiter=delimiter, strict=True)
    while True:
        row = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error as error:
            raise BadValueError(
                f"the row is not well-formed CSV or TSV: {error}",
                file=path,
                row=row,
                remedy='look for a quote that is not closed, or not doubled ("") inside a cell',
            ) from None
        if cells:
            yield row, cells


def text_records(path: Path, wanted: Collection[str]) -> Records:
    """A text a line; blank lines are none."""

    def read(_: Collection[str]) -> Iterator[tuple[int, Cells]]:
        for number, line in enumerate(decoded_lines(path), start=1):
            if line.strip():
                yield number, {"text": line}

    return Records(str(path), ("text",), read, own_names=False)


def conll_records(path: Path, wanted: Collection[str]) -> Records:
    """Sentences of lines with a word and, as the last of some columns, its tag.

    Columns are parted by tabs, or else by spaces, as in the data of CoNLL-2003 (Tjong Kim Sang and
    De Meulder); a blank line ends a sentence, and ``# name = value`` is a remark. A sentence has
    the number of its first line. Raises BadValueError for a word without a tag.
    """

    def read(_: Collection[str]) -> Iterator[tuple[int, Cells]]:
        words: list[str] = []
        tags: list[str] = []
        first = size = 0
        for number, line in enumerate(decoded_lines(path), start=1):
            if _REMARK.match(line):
                continue
            parts = _conll_parts(line)
            if parts is None:
                if words:
                    yield first, {"text": words, "label": tags}
                    words, tags, size = [], [], 0
                continue
            if len(parts) < 2:
                raise BadValueError(
                    "a word has no tag",
                    file=path,
                    row=number,
                    given=f"{len(parts)} column",
                    expected="word TAB tag, and a blank line between sentences",
                    remedy="mend the line: each has a word, a tab or a space, and its tag",
                )
            first = first if words else number
            words.append(parts[0])
            tags.append(parts[-1])
            size += len(line)
            if size > LONGEST_LINE:
                raise BadValueError(
                    "a sentence does not end",
                    file=path,
                    row=first,
                    expected="a blank line between sentences",
                    remedy="put a blank line behind each sentence",
                )
        if words:
            yield first, {"text": words, "label": tags}

    return Records(str(path), ("text", "label"), read, own_names=False)


def _conll_parts(line: str) -> list[str] | None:
    """The columns of a line; None where a sentence ends."""
    stripped = line.strip()
    if not stripped or stripped.startswith(_DOCUMENT):
        return None
    if "\t" in stripped:
        return [part.strip() for part in stripped.split("\t")]
    return stripped.split()
