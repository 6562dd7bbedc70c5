"""Labelled rows from files: CSV, TSV, JSON, text, CoNLL, Parquet, folders of images, and
`datasets`.

Every reader yields row after row and holds no more than it must, so a file may be larger than
memory. All text is UTF-8, or UTF-16 with its mark. Missing cells (empty, null, the number NaN)
give None and are the caller's to count. Words such as "nan", "NA" and "null" are handed on as
they stand.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.errors import UnsupportedDataError
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.tasks.formats import JSON_LINES, TABLES, check_format, format_of
from hushtune.common.tasks.forms import answer_rows, telling
from hushtune.common.tasks.image_folder import read_image_folder
from hushtune.common.tasks.records import Records, conll_records, csv_records, text_records
from hushtune.common.tasks.records_json import json_line_records, json_records
from hushtune.common.tasks.rows import (
    Columns,
    RawRow,
    check_columns,
    check_file,
    refuse_all_missing,
    to_row,
)
from hushtune.common.tasks.tables import parquet_records, table_records


def read_file(path: Path, columns: Columns) -> Iterator[RawRow]:
    """The rows of one file; the format follows from the extension.

    Args:
        path: a file of one of ``formats.FORMATS``, or its gzip; what separates a CSV's cells
            follows from its header (`delimiters.delimiter_of`). Of images also a folder with one
            for each class.
        columns: which to read.

    Raises:
        MissingFileError, UnsupportedDataError, EncodingError, EmptyDataError, MissingColumnError,
        BadValueError: each names the file and, where there is one, row and column. A column that
        is missing in *all* rows is a BadValueError; in some rows it gives None.
    """
    if columns.images and path.is_dir():
        return read_image_folder(path, sites=False)
    check_file(path)
    check_format(path)
    return refuse_all_missing(_file_rows(path, columns), file=str(path), columns=columns)


def _file_rows(path: Path, columns: Columns) -> Iterator[RawRow]:
    answers = columns.of.targets is Targets.ANSWER
    records = open_records(path, telling(columns) if answers else columns.names)
    if not records.own_names:
        columns = _without_names(path, columns)
    yield from rows_of(records, columns)


def open_records(path: Path, wanted: Collection[str] = ()) -> Records:
    """The records of a file, whatever a run makes of them; ``wanted``: columns that tell the
    delimiter of a CSV."""
    check_file(path)
    return _OPEN[check_format(path)](path, wanted)


def rows_of(records: Records, columns: Columns) -> Iterator[RawRow]:
    """What a kind of supervision makes of records."""
    if columns.of.targets is Targets.ANSWER:
        yield from answer_rows(records, columns)
        return
    check_columns(records.names, columns, file=records.file)
    for row, cells in records.read(columns.names):
        yield to_row(cells, columns, file=records.file, row=row)


def _without_names(path: Path, columns: Columns) -> Columns:
    """The columns of a format that has none of its own; UnsupportedDataError for a kind that it
    is not for, and where a column would have to say whose a row is."""
    kind, tags = columns.of, columns.of.targets is Targets.TAGS
    fits = tags if format_of(path) == ".conll" else kind.inputs is Inputs.MESSAGES
    if not fits:
        raise UnsupportedDataError(
            f"such a file has no columns, so {kind.name} cannot read it",
            file=path,
            given=format_of(path),
            expected=".conll for token-classification, .txt for causal-lm",
            remedy="write a table, or set task.kind to what the file is for",
        )
    if columns.owners:
        raise UnsupportedDataError(
            f"such a file has no columns, so none is called {columns.owners[0]!r}",
            file=path,
            given=format_of(path),
            remedy="name one file a site in data.files, or write a table with that column",
        )
    return replace(columns, text="text", label="label", form="text")


def read_dataset(name: str, columns: Columns) -> Iterator[RawRow]:
    """The rows of a data set of the `datasets` library, all of its splits joined.

    Args:
        name: a hub id, or a folder that the library reads or has saved.
        columns: which to read.

    Raises:
        UnsupportedDataError: the library is not installed, or cannot load this.
        MissingColumnError, BadValueError: as in `read_file`.
    """
    rows = (row for records in table_records(name) for row in rows_of(records, columns))
    return refuse_all_missing(rows, file=name, columns=columns)


_OPEN: Final[Mapping[str, Callable[[Path, Collection[str]], Records]]] = MappingProxyType(
    {
        **dict.fromkeys(TABLES, csv_records),
        **dict.fromkeys(JSON_LINES, json_line_records),
        ".json": json_records,
        ".txt": text_records,
        ".conll": conll_records,
        ".parquet": parquet_records,
    }
)
