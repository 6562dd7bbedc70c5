"""One record as it was read: its cells checked, its text decoded, its place known.

Rows are numbered as an editor numbers lines (the header of a CSV is row 1; a record that spans
lines has the number of its first line); rows of Parquet files and data sets count from 1.
"""

from __future__ import annotations

import difflib
import json
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Final

from hushtune.common.config_data import DataConfig
from hushtune.common.config_task import TaskConfig
from hushtune.common.errors import (
    BadValueError,
    EmptyDataError,
    MissingColumnError,
    MissingFileError,
    UnsupportedDataError,
)
from hushtune.common.kinds import KINDS, Inputs, Kind, Targets
from hushtune.common.tasks.cells import (
    cell_text,
    is_nan,
    target_text,
    unescaped,
    words_text,
)
from hushtune.common.tasks.image_files import canonical
from hushtune.common.tasks.lines import decoded_lines as decoded_lines  # noqa: PLC0414

_SHORT_NAME: Final = 40


@dataclass(frozen=True, slots=True)
class Columns:
    """Names of the columns to read; without ``site`` the rows' site is None, so with ``group``.

    ``second``: of the second text of a pair. ``columns``: of a table, read in place of the text.
    ``block``: of what must not be parted by a split. ``kind``, ``form`` and ``unescape_html``: what
    is made of the cells; of images the text is a path, from the folder of the table.
    """

    text: str
    label: str
    site: str | None = None
    group: str | None = None
    second: str | None = None
    columns: tuple[str, ...] = ()
    block: str | None = None
    kind: str = "text-classification"
    form: str = "auto"
    unescape_html: bool = False

    @property
    def of(self) -> Kind:
        """What is public of the kind of supervision."""
        return KINDS[self.kind]

    @property
    def images(self) -> bool:
        """Whether the text is the path of an image."""
        return self.of.inputs is Inputs.IMAGE

    @property
    def inputs(self) -> tuple[str, ...]:
        """The columns that make up an input."""
        return self.columns or (self.text, *((self.second,) if self.second else ()))

    @property
    def names(self) -> tuple[str, ...]:
        """The columns that a file must have."""
        return tuple(dict.fromkeys((*self.inputs, self.label, *self.owners)))

    @property
    def owners(self) -> tuple[str, ...]:
        """The columns that say whose a row is."""
        return tuple(name for name in (self.site, self.group, self.block) if name)

    def setting(self, name: str) -> str:
        """Which setting names a column."""
        if name in self.columns:
            return "data.columns"
        if name == self.block:
            return "data.split_by"
        return next(f"data.{key}" for key, column in asdict(self).items() if column == name)


def columns_of(config: DataConfig, task: TaskConfig | None = None) -> Columns:
    """The columns that the settings name; the site's where one table holds all sites.

    ``task``: text classification unless it says otherwise.
    """
    one_table = config.files is None and config.partition == "natural"
    return Columns(
        text=config.text,
        label=config.label,
        site=config.site if one_table else None,
        group=config.group,
        second=config.second,
        columns=config.columns,
        block=config.split_by,
        kind=(task or TaskConfig()).kind,
        form=config.form,
        unescape_html=config.unescape_html,
    )


@dataclass(frozen=True, slots=True)
class RawRow:
    """One record as read; None is a missing value, ``place`` is ``file:row``.

    ``text`` and ``label`` are canonical: see ``hushtune.common.kinds``.

    ``nan``: which of label, site and group are None because the cell held the number NaN. The word
    NaN is handed on as it stands: in a column of names it is one. ``remarks``: what was left out of
    the row, if anything. ``absent``: of a pair the columns that hold no text.
    """

    text: str | None
    label: str | None
    site: str | None
    place: str
    group: str | None = None
    nan: tuple[str, ...] = ()
    block: str | None = None
    remarks: tuple[str, ...] = ()
    absent: tuple[str, ...] = ()

    @property
    def where(self) -> tuple[str, int | None]:
        """File and row of ``place``; of an image, which is a file of its own, no row."""
        file, _, number = self.place.rpartition(":")
        return (file, int(number)) if number.isdecimal() else (self.place, None)


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
                given="columns "
                + " and ".join(str(i) for i, other in enumerate(found, 1) if other == name),
                remedy="rename all but one of them",
            )
        if count == 0:
            near = nearest_column(name, found)
            raise MissingColumnError(
                f"there is no column {name!r}"
                + ("" if near is None else f"; did you mean {near!r}?"),
                file=file,
                column=name,
                given=", ".join(found) or "no columns",
                remedy=f"set {columns.setting(name)} to a column of the file",
            )


def nearest_column(name: str, found: Iterable[str]) -> str | None:
    """The column that may have been meant, whatever its case; None where none is alike.

    >>> nearest_column("AGE", ["job", "age"]), nearest_column("height", ["job", "age"])
    ('age', None)
    """
    folded = {other.casefold(): other for other in found}
    near = difflib.get_close_matches(name.casefold(), folded, n=1, cutoff=0.5)
    return folded[near[0]] if near else None


def to_row(cells: Mapping[str, object], columns: Columns, *, file: str, row: int) -> RawRow:
    """A row from raw cells; BadValueError for a cell that is no text, class or site name."""
    if columns.unescape_html:
        cells = {name: unescaped(cells.get(name)) for name in columns.names}
    for name in () if columns.columns else columns.inputs:
        text = cells.get(name)
        if isinstance(text, int | float) and not is_nan(text):
            raise BadValueError(
                "the text is a number",
                file=file,
                row=row,
                column=name,
                given=text,
                expected="text",
                remedy=f"set {columns.setting(name)} to the column with the sentences",
            )
    targets = columns.of.targets
    read: dict[str, str | None] = {}
    name = columns.label
    try:
        label = _shared(target_text(cells.get(name), targets))
        for name in columns.inputs:
            value = cells.get(name)
            read[name] = words_text(value, "word") if targets is Targets.TAGS else cell_text(value)
    except ValueError as error:
        raise _bad_cell(error, cells, columns, name, file=file, row=row) from None
    text = _input(read, columns)
    if columns.images and text is not None:
        text = canonical(Path(file).parent / text, file=file, row=row)
    found = owned_row(cells, columns, text=text, label=label, file=file, row=row)
    if columns.second is None or text is not None:
        return found
    return replace(found, absent=tuple(name for name in columns.inputs if read[name] is None))


def owned_row(
    cells: Mapping[str, object],
    columns: Columns,
    *,
    text: str | None,
    label: str | None,
    file: str,
    row: int,
    remarks: tuple[str, ...] = (),
) -> RawRow:
    """A row of a text and a label, with site, group and block from the cells."""
    owners: dict[str, str | None] = {}
    name = ""
    try:
        for name in columns.owners:
            owners[name] = _shared(cell_text(cells.get(name)))
    except ValueError as error:
        raise _bad_cell(error, cells, columns, name, file=file, row=row) from None
    site, group, block = (
        None if name is None else owners[name]
        for name in (columns.site, columns.group, columns.block)
    )
    roles = (("label", columns.label), ("site", columns.site), ("group", columns.group))
    nan = tuple(role for role, name in roles if name is not None and is_nan(cells.get(name)))
    return RawRow(text, label, site, f"{file}:{row}", group, nan, block, remarks)


def _shared(name: str | None) -> str | None:
    """A short name as one text for all rows that have it."""
    return sys.intern(name) if name is not None and len(name) <= _SHORT_NAME else name


def _bad_cell(
    error: ValueError,
    cells: Mapping[str, object],
    columns: Columns,
    name: str,
    *,
    file: str,
    row: int,
) -> BadValueError:
    return BadValueError(
        str(error),
        file=file,
        row=row,
        column=name,
        given=repr(cells.get(name))[:80],
        remedy=f"mend the row, or set {columns.setting(name)} to another column",
    )


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
        raise EmptyDataError("the file has no rows", file=file, remedy="name a file with rows")
    answers = columns.of.targets is Targets.ANSWER  # from which columns, their form says
    inputs, label = ", ".join(columns.inputs), columns.label
    for role, name, count in (("input", inputs, num_texts), ("answer", label, num_labels)):
        if count == 0:
            raise BadValueError(
                f"every one of the {num_rows} rows lacks "
                + (f"its {role}" if answers else "a value (empty or NaN)"),
                file=file,
                column=None if answers else name,
                remedy="name another column, or fill this one",
            )
