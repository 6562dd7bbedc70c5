"""One record as it was read: its cells checked, its text decoded, its place known.

Rows are numbered as an editor numbers lines (the header of a CSV is row 1; a record that spans
lines has the number of its first line); rows of Parquet files and data sets count from 1.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Final

from hushtune.common.config_data import DataConfig
from hushtune.common.errors import (
    BadValueError,
    DataError,
    EmptyDataError,
    EncodingError,
    MissingColumnError,
    MissingFileError,
    UnsupportedDataError,
)
from hushtune.common.kinds import Inputs, Kind
from hushtune.common.tasks.image_files import canonical

_INTEGRAL: Final = re.compile(r"[+-]?\d+\.0*")


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; without ``site`` the rows' site is None, so with ``group``.

    ``second``: of the second text of a pair. ``columns``: of a table, read in place of the text.
    ``images``: the text is the path of an image, from the folder of the table.
    """

    text: str
    label: str
    site: str | None = None
    group: str | None = None
    second: str | None = None
    columns: tuple[str, ...] = ()
    images: bool = False

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that make up an input."""
        return self.columns or (self.text, *((self.second,) if self.second else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that a file must have."""
        others = (name for name in (self.site, self.group) if name)
        return tuple(dict.fromkeys((*self.inputs, self.label, *others)))

    def setting(self, name: str) -> str:
        """Which setting names a column."""
        if name in self.columns:
            return "data.columns"
        return next(f"data.{key}" for key, column in asdict(self).items() if column == name)


def columns_of(config: DataConfig, kind: Kind | None = None) -> Columns:
    """The columns that the settings [data] name; the site's where one table holds all sites.

    ``kind``: of the supervision; None for one of texts.
    """
    one_table = config.files is None and config.partition == "natural"
    return Columns(
        text=config.text,
        label=config.label,
        site=config.site if one_table else None,
        group=config.group,
        second=config.second,
        columns=config.columns,
        images=kind is not None and kind.inputs is Inputs.IMAGE,
    )


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record as read; None is a missing value, ``place`` is ``file:row``.

    ``text`` and ``label`` are canonical: see ``hushtune.common.kinds``.

    ``nan``: which of label, site and group are None because the cell held the number NaN. The word
    NaN is handed on as it stands: in a column of names it is one.
    """

    text: str | None
    label: str | None
    site: str | None
    place: str
    group: str | None = None
    nan: tuple[str, ...] = ()


def check_file(path: Path) -> None:
    """MissingFileError unless ``path`` is a file; the nearest name in its folder is proposed."""
    if path.is_file():
        return
    if path.is_dir():
        raise UnsupportedDataError(
            "this is a folder, not a file", file=path, remedy="name one of the files in it"
        )
    siblings = [p.name for p in path.parent.iterdir()] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, siblings, n=1)
    raise MissingFileError(
        "there is no such data file",
        file=path,
        remedy=f"did you mean {path.parent / near[0]}?" if near else "check the path",
    )


def check_columns(found: Sequence[str], columns: Columns, *, file: str) -> None:
    """Every wanted column is there exactly once; else an error that proposes the nearest name."""
    for name in columns.names:
        count = found.count(name)
        if count > 1:
            raise BadValueError(
                f"{count} columns have the same name, so which to read is not clear",
                file=file,
                row=1,
                column=name,
                remedy="rename all but one of them",
            )
        if count == 0:
            folded = {other.casefold(): other for other in found}
            near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
            raise MissingColumnError(
                f"there is no column {name!r}"
                + (f"; did you mean {folded[near[0]]!r}?" if near else ""),
                file=file,
                column=name,
                given=", ".join(found) or "no columns",
                remedy=f"set {columns.setting(name)} to a column of the file",
            )


def to_row(cells: Mapping[str, object], columns: Columns, *, file: str, row: int) -> RawRow:
    """A row from raw cells; BadValueError for a cell that is no text, class or site name."""
    for name in () if columns.columns else columns.inputs:
        text = cells.get(name)
        if isinstance(text, int | float) and not _is_nan(text):
            raise BadValueError(
                "the text is a number",
                file=file,
                row=row,
                column=name,
                given=text,
                expected="text",
                remedy=f"set {columns.setting(name)} to the column with the sentences",
            )
    read: dict[str, str | None] = {}
    for name in columns.names:
        try:
            read[name] = _cell(cells.get(name))
        except ValueError as error:
            raise BadValueError(
                str(error), file=file, row=row, column=name, given=repr(cells.get(name))[:80]
            ) from None
    label = read[columns.label]
    if label is not None and _INTEGRAL.fullmatch(label):
        label = str(
            int(label.split(".")[0])
        )  # "1.0": whole numbers, written out by a tool with NaNs
    site = None if columns.site is None else read[columns.site]
    group = None if columns.group is None else read[columns.group]
    nan = tuple(
        role
        for role in ("label", "site", "group")
        if (name := getattr(columns, role)) is not None and _is_nan(cells.get(name))
    )
    text = _input(read, columns)
    if columns.images and text is not None:
        text = canonical(Path(file).parent / text, file=file, row=row)
    return RawRow(text, label, site, f"{file}:{row}", group, nan)


def _input(read: Mapping[str, str | None], columns: Columns) -> str | None:
    """The canonical form of a row's input; None where a text is missing, or all of a table's."""
    if columns.columns:
        cells = {name: read[name] for name in columns.columns}
        return json_of(cells) if any(cell is not None for cell in cells.values()) else None
    texts = [read[name] for name in columns.inputs]
    if None in texts:
        return None
    return texts[0] if columns.second is None else json_of(texts)


def json_of(value: object) -> str:
    """The canonical JSON of an input: letters as they are, keys in their order."""
    return json.dumps(value, ensure_ascii=False)


def refuse_all_missing(rows: Iterator[RawRow], *, file: str, columns: Columns) -> Iterator[RawRow]:
    """The rows as they are; at their end, an error if there were none or a column had nothing."""
    num_rows = num_texts = num_labels = 0
    for row in rows:
        num_rows += 1
        num_texts += row.text is not None
        num_labels += row.label is not None
        yield row
    if num_rows == 0:
        raise EmptyDataError("the file has no rows", file=file)
    for name, count in ((", ".join(columns.inputs), num_texts), (columns.label, num_labels)):
        if count == 0:
            raise BadValueError(
                f"every one of the {num_rows} rows lacks a value (empty or NaN)",
                file=file,
                column=name,
                remedy="name another column, or fill this one",
            )


def decoded_lines(path: Path) -> Iterator[str]:
    """The lines of a UTF-8 file with their line ends, without a byte order mark.

    Raises:
        EncodingError: names the row and the byte (both from 1) of the first bad one.
    """
    with path.open("rb") as stream:
        mark = stream.read(3)
        if mark[:2] in (b"\xff\xfe", b"\xfe\xff"):
            raise _encoding_error(path, 1, "a UTF-16 byte order mark", "UTF-16")
        stream.seek(3 if mark == b"\xef\xbb\xbf" else 0)
        for number, raw in enumerate(stream, start=1):
            if b"\x00" in raw:
                what = f"a zero byte at byte {raw.index(0) + 1} of the row"
                raise _encoding_error(path, number, what, "UTF-16")
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                what = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the row"
                raise _encoding_error(path, number, what, "WINDOWS-1252") from None


def _cell(value: object) -> str | None:
    """A cell as text; None if it is missing; ValueError if it can be neither."""
    if value is None or _is_nan(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("the value is infinite")
        return str(int(value)) if value.is_integer() else repr(value)
    if isinstance(value, str):
        text = value.strip()
        if any("\ud800" <= letter <= "\udfff" for letter in text):  # JSON can escape such halves
            raise ValueError("the text holds half a character, which is not Unicode")
        return text or None
    raise ValueError(f"the value is a {type(value).__name__}, not text or a number")


def _is_nan(value: object) -> bool:
    return isinstance(value, float) and math.isnan(value)


def _encoding_error(path: Path, row: int, what: str, guess: str) -> DataError:
    return EncodingError(
        "the file is not UTF-8 throughout",
        file=path,
        row=row,
        given=what,
        remedy=f"find out its encoding and convert it, e.g. "
        f"iconv -f {guess} -t UTF-8 {path.name} > utf8-{path.name}; if only some rows differ, "
        "mend those rows",
    )
