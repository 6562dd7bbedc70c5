"""Which character separates the cells of a CSV or TSV file, by its header."""

from __future__ import annotations

import csv
from collections.abc import Collection
from pathlib import Path

from hushtune.common.tasks.formats import format_of
from hushtune.common.tasks.lines import decoded_lines

_OTHERS = (",", ";", "\t", "|")


def delimiter_of(path: Path, columns: Collection[str]) -> str:
    """The character that gives the header most of the wanted columns.

    Spreadsheets write ";" where a comma is the decimal mark. It is a comma (for .tsv and .tab a
    tab) unless another one finds more of ``columns``; or, where none finds any, unless the whole
    header would be one cell. Raises EncodingError.
    """
    default = "\t" if format_of(path) in (".tsv", ".tab") else ","
    line = next((line for line in decoded_lines(path) if line.strip()), "")
    headers = {mark: _header(line, mark) for mark in (default, *_OTHERS)}
    found = {mark: len(set(columns).intersection(names)) for mark, names in headers.items()}
    if not any(found.values()) and len(headers[default]) <= 1:
        return max(headers, key=lambda mark: len(headers[mark]))
    return max(found, key=found.__getitem__)


def _header(line: str, delimiter: str) -> list[str]:
    try:
        return [name.strip() for name in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []
