"""Labelled rows from files: CSV, TSV, JSON lines, Parquet, the demo, and `datasets`.

Every reader yields row after row and holds no more than it must, so a file may be larger than
memory. All text is UTF-8. Missing cells (empty, null, the number NaN) give None and are the
caller's to count. Words such as "nan", "NA" and "null" are handed on as they stand.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast

from hushtune.common.errors import BadValueError, EmptyDataError
from hushtune.common.tasks.delimiters import delimiter_of
from hushtune.common.tasks.formats import refuse_format
from hushtune.common.tasks.rows import (
    Columns,
    RawRow,
    check_columns,
    check_file,
    decoded_lines,
    refuse_all_missing,
    to_row,
)
from hushtune.common.tasks.tables import read_parquet, read_table


def read_file(path: Path, columns: Columns) -> Iterator[RawRow]:
    """The rows of one file; the format follows from the extension.

    Args:
        path: a CSV, TSV, JSONL or Parquet file; what separates a CSV's cells follows from its
            header (`delimiters.delimiter_of`).
        columns: which to read.

    Raises:
        MissingFileError, UnsupportedDataError, EncodingError, EmptyDataError, MissingColumnError,
        BadValueError: each names the file and, where there is one, row and column. A column that
        is missing in *all* rows is a BadValueError; in some rows it gives None.
    """
    check_file(path)
    suffix = path.suffix.lower()
    reader = _READERS.get(suffix)
    if reader is None:
        refuse_format(path)
    return refuse_all_missing(reader(path, columns), file=str(path), columns=columns)


def read_dataset(name: str, columns: Columns) -> Iterator[RawRow]:
    """The rows of a data set of the `datasets` library, all of its splits joined.

    Args:
        name: a hub id, or a folder that the library reads or has saved.
        columns: which to read.

    Raises:
        UnsupportedDataError: the library is not installed, or cannot load this.
        MissingColumnError, BadValueError: as in `read_file`.
    """
    return refuse_all_missing(read_table(name, columns), file=name, columns=columns)


def _read_csv(path: Path, columns: Columns) -> Iterator[RawRow]:
    file = str(path)
    # strict: a stray or unclosed quote is an error here, not half a file in one cell.
    delimiter = delimiter_of(path, columns.names)
    reader = csv.reader(decoded_lines(path), delimiter=delimiter, strict=True)
    header: list[str] | None = None
    while True:
        row = reader.line_num + 1
        try:
            cells = next(reader)
        except StopIteration:
            break
        except csv.Error as error:
            raise BadValueError(
                f"the row is not well-formed {path.suffix[1:].upper()}: {error}",
                file=file,
                row=row,
                remedy='look for a quote that is not closed, or not doubled ("") inside a cell',
            ) from None
        if not cells:  # a blank line
            continue
        if header is None:
            header = [name.strip() for name in cells]
            check_columns(header, columns, file=file)
            continue
        if len(cells) != len(header):
            raise BadValueError(
                "the row has another number of cells than the header",
                file=file,
                row=row,
                given=f"{len(cells)} cells",
                expected=f"{len(header)}: {', '.join(header)}",
                remedy="quote cells that hold the delimiter or a line break",
            )
        yield to_row(dict(zip(header, cells, strict=True)), columns, file=file, row=row)
    if header is None:
        raise EmptyDataError("the file is empty", file=file)


def _read_json_lines(path: Path, columns: Columns) -> Iterator[RawRow]:
    file = str(path)
    checked = False
    for number, line in enumerate(decoded_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadValueError(
                f"the line is not JSON: {error}", file=file, row=number, given=line.strip()[:80]
            ) from None
        if not isinstance(value, dict):
            raise BadValueError(
                "the line is not a JSON object",
                file=file,
                row=number,
                given=line.strip()[:80],
                expected=f'{{"{columns.text}": "...", "{columns.label}": "..."}}',
            )
        cells = cast("dict[str, object]", value)
        if not checked:
            check_columns(list(cells), columns, file=file)
            checked = True
        yield to_row(cells, columns, file=file, row=number)


_READERS: Final[Mapping[str, Callable[[Path, Columns], Iterator[RawRow]]]] = MappingProxyType(
    {
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".tab": _read_csv,
        ".jsonl": _read_json_lines,
        ".ndjson": _read_json_lines,
        ".parquet": read_parquet,
    }
)
