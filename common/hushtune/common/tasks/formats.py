"""Which files of rows are read, by their extension, and what to do with others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from hushtune.common.errors import UnsupportedDataError

FORMATS: Final = (".csv", ".tsv", ".tab", ".jsonl", ".ndjson", ".parquet")


def refuse_format(path: Path) -> NoReturn:
    """Raise UnsupportedDataError for a file of another format."""
    suffix = path.suffix.lower()
    raise UnsupportedDataError(
        "the format of this file is not known from its extension",
        file=path,
        given=suffix or "no extension",
        expected=", ".join(FORMATS),
        remedy=_ADVICE.get(suffix, "convert the file to CSV with a header"),
    )


_ADVICE: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".json": "write one JSON object a line and name the file .jsonl",
        ".xlsx": "save the sheet as CSV (UTF-8)",
        ".xls": "save the sheet as CSV (UTF-8)",
        ".gz": "unpack the file first",
        ".zip": "unpack the file first",
    }
)
