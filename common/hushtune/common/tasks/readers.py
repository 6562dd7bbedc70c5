"""Labelled rows from files: CSV, TSV, JSON, text, CoNLL, Parquet, the demo, and `datasets`.

Every reader yields row after row and holds no more than it must, so a file may be larger than
memory. All text is UTF-8, or UTF-16 with its mark. Missing cells (empty, null, the number NaN)
give None and are the caller's to count. Words such as "nan", "NA" and "null" are handed on as
they stand.
"""

from __future__ import annotations

import html
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.errors import BadValueError, UnsupportedDataError
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.tasks.assets import fetch
from hushtune.common.tasks.formats import JSON_LINES, TABLES, check_format, format_of
from hushtune.common.tasks.forms import answer_rows, telling
from hushtune.common.tasks.lines import decoded_lines
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

_NEUTRAL_BELOW: Final = 0.5


def read_file(path: Path, columns: Columns) -> Iterator[RawRow]:
    """The rows of one file; the format follows from the extension.

    Args:
        path: a file of one of ``formats.FORMATS``, or its gzip; what separates a CSV's cells
            follows from its header (`delimiters.delimiter_of`).
        columns: which to read.

    Raises:
        MissingFileError, UnsupportedDataError, EncodingError, EmptyDataError, MissingColumnError,
        BadValueError: each names the file and, where there is one, row and column. A column that
        is missing in *all* rows is a BadValueError; in some rows it gives None.
    """
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


def read_demo() -> Iterator[RawRow]:
    """The demo's rated sentences, fetched if need be; see `read_rated_sentences`."""
    return read_rated_sentences(fetch("rated-sentences"))


def read_rated_sentences(folder: Path) -> Iterator[RawRow]:
    """The demo's four sites: lines of id, mean score in -4..4 and text, split by tabs.

    A score of at least 0.5 is "positive", of at most -0.5 "negative"; rows between, neither, are
    no part of the task and left out. HTML entities of the crawled texts are unescaped, twice, for
    sixteen rows were escaped twice.

    Source: Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of
    Social Media Text, ICWSM 2014.
    """
    for site, name in DEMO_FILES.items():
        path = folder / name
        check_file(path)
        for number, line in enumerate(decoded_lines(path), start=1):
            parts = line.rstrip("\r\n").split("\t", 2)
            try:
                _, cell, text = parts
                score = float(cell)
            except ValueError:
                raise BadValueError(
                    "a line is not id, score and text split by tabs", file=path, row=number
                ) from None
            if abs(score) < _NEUTRAL_BELOW:
                continue
            label = "positive" if score > 0 else "negative"
            clean = " ".join(html.unescape(html.unescape(text)).split())
            yield RawRow(clean or None, label, site, f"{path}:{number}")


DEMO_FILES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "amazon": "amazonReviewSnippets_GroundTruth.txt",
        "movie": "movieReviewSnippets_GroundTruth.txt",
        "nyt": "nytEditorialSnippets_GroundTruth.txt",
        "tweets": "tweets_GroundTruth.txt",
    }
)


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
