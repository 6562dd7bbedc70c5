"""A look at data before anything trains: rows as they will be read, and as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.kinds import Targets
from hushtune.common.tasks.image_files import size_of
from hushtune.common.tasks.image_folder import read_image_folder
from hushtune.common.tasks.missing import (
    ABSENT,
    NAN,
    columns_of_numbers,
    columns_read,
    is_error,
    lacking,
)
from hushtune.common.tasks.readers import read_dataset, read_file
from hushtune.common.tasks.rows import Columns, RawRow, columns_of
from hushtune.common.tasks.sources import read_named

Tokenize = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row as it will be read; ``note`` says why it would be left out or refused, if so.

    ``size``: of an image, width and height in pixels.

    Whether a column is one of numbers is judged by the rows shown.
    """

    place: str
    site: str | None
    label: str | None
    text: str | None
    tokens: tuple[str, ...] | None
    note: str | None
    size: tuple[int, int] | None = None


def preview(
    source: Path | DataConfig,
    *,
    tokenize: Tokenize | None = None,
    rows: int = 5,
    columns: Columns | None = None,
    task: TaskConfig | None = None,
) -> tuple[PreviewRow, ...]:
    """The first rows of a file, or of each source that the settings name.

    Args:
        source: a data file, or a folder of images, whose columns are named by ``columns``, or the
            settings [data], which go with those of [task].
        tokenize: text to tokens, e.g. ``tokenizer.tokenize``; without it there are no tokens.
        rows: how many, from each file.

    Raises:
        DataError: whatever is wrong up to the last row shown; what follows is not read.
    """
    if isinstance(source, DataConfig):
        task = task or TaskConfig()
        columns = columns_of(source, task)
        streams = list(_streams(source, columns))
        roles = set(columns_read(source)) - {"group", "block"}
        dropped = source.missing == "drop"
    else:
        columns = columns or Columns("text", "label")
        stream = (
            read_image_folder(source, sites=columns.site is not None)
            if columns.images and source.is_dir()
            else read_file(source, columns)
        )
        streams = [(None, stream)]
        roles = {"label", *(["site"] if columns.site is not None else [])}
        dropped = False
    targets = columns.of.targets
    shown: list[PreviewRow] = []
    for named, stream in streams:
        found = list(islice(stream, rows))
        names = roles - {"label"} if targets is Targets.ANSWER else roles
        numbers = columns_of_numbers(found, names)
        for row in found:
            lacks = lacking(row, numbers, sorted(names))
            if row.label is None and targets is Targets.ANSWER:
                lacks = {**lacks, "answer": ABSENT}
            shown.append(_shown(row, named, tokenize, _note(lacks, dropped=dropped)))
    if not columns.images:
        return tuple(shown)
    return tuple(
        replace(row, size=None if row.text is None else size_of(row.text)) for row in shown
    )


def _streams(config: DataConfig, columns: Columns) -> Iterator[tuple[str | None, Iterator[RawRow]]]:
    """Each source with the site that it is, where the settings say so."""
    columns = replace(columns, site=config.site, group=None, block=None)
    if config.files is not None:
        for name, path in sorted(config.files.items()):
            yield name, read_file(path, replace(columns, site=None))
    elif config.file is not None:
        yield None, read_file(config.file, columns)
    elif config.folder is not None:
        yield None, read_image_folder(config.folder, sites=config.partition == "natural")
    elif config.dataset is not None:
        yield None, read_dataset(config.dataset, columns)
    else:
        yield None, read_named(str(config.source))


def _note(lacks: Mapping[str, str], *, dropped: bool) -> str | None:
    if not lacks:
        return None
    role, why = next(iter(lacks.items()))
    if is_error(role, why) and not dropped:
        what = f"{NAN} as {role}" if why == NAN else f"no {role}"
        return f'{what}: an error, unless data.missing = "drop"'
    return f"left out: no {' and no '.join(lacks)}"


def _shown(
    row: RawRow, site: str | None, tokenize: Tokenize | None, note: str | None
) -> PreviewRow:
    return PreviewRow(
        place=row.place,
        site=row.site if site is None else site,
        label=row.label,
        text=row.text,
        tokens=None if tokenize is None or row.text is None else tuple(tokenize(row.text)),
        note=note,
    )
