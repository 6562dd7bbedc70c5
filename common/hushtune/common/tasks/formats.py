"""Which files of rows are read, by their extension, and what to do with others."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, NoReturn

from hushtune.common.errors import UnsupportedDataError

TABLES: Final = (".csv", ".tsv", ".tab")
JSON_LINES: Final = (".jsonl", ".ndjson")
PACKED: Final = ".gz"
FORMATS: Final = (*TABLES, *JSON_LINES, ".json", ".txt", ".conll", ".parquet")
"""All but Parquet, which is packed within, may also end with ``PACKED``."""


def format_of(path: Path) -> str:
    """The extension that says what a file is, in small letters and without ``.gz``.

    >>> format_of(Path("a.CSV")), format_of(Path("b.jsonl.gz")), format_of(Path("c"))
    ('.csv', '.jsonl', '')
    """
    suffix = path.suffix.lower()
    return Path(path.stem).suffix.lower() if suffix == PACKED else suffix


def check_format(path: Path) -> str:
    """``format_of`` a file that is read; UnsupportedDataError for any other."""
    found = format_of(path)
    packed = path.suffix.lower() == PACKED
    if found not in FORMATS or (packed and found == ".parquet"):
        refuse_format(path)
    return found


def refuse_format(path: Path) -> NoReturn:
    """Raise UnsupportedDataError for a file of another format."""
    suffix = path.suffix.lower()
    raise UnsupportedDataError(
        "the format of this file is not known from its extension",
        file=path,
        given="".join(path.suffixes[-2:]).lower() if suffix == PACKED else suffix or "no extension",
        expected=", ".join(FORMATS) + f", and {TABLES[0]}{PACKED} and the like",
        remedy=_ADVICE.get(suffix, "convert the file to CSV with a header"),
    )


_ADVICE: Final[Mapping[str, str]] = MappingProxyType(
    {
        ".xlsx": "save the sheet as CSV (UTF-8)",
        ".xls": "save the sheet as CSV (UTF-8)",
        ".gz": "name it by what is in it, such as rows.csv.gz; Parquet is packed within",
        ".zip": "unpack the file first",
        ".conllu": "write word TAB tag, a blank line after each sentence, and name it .conll",
    }
)
