"""A look at data before anything trains: rows as they will be read, and as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path

from hushtune.common.config import DataConfig, TaskConfig
from hushtune.common.errors import HushtuneError
from hushtune.common.kinds import Targets
from hushtune.common.tasks.image_files import size_of
from hushtune.common.tasks.image_folder import read_image_folder
from hushtune.common.tasks.labels import target_error
from hushtune.common.tasks.missing import (
    ABSENT,
    columns_of_numbers,
    columns_read,
    lacked,
    lacking,
    refusal,
)
from hushtune.common.tasks.readers import read_dataset, read_file
from hushtune.common.tasks.rows import Columns, RawRow, columns_of
from hushtune.common.tasks.sources import read_named

Tokenize = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row as it will be read; ``note`` says why it would be left out, or, where it is
    ``refused``, the error that a run ends with.

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
    refused: bool = False


def preview(
    source: Path | DataConfig,
    *,
    tokenize: Tokenize | None = None,
    rows: int = 5,
    columns: Columns | None = None,
    task: TaskConfig | None = None,
    bounds: tuple[float, float] | None = None,
) -> tuple[PreviewRow, ...]:
    """The first rows of a file, or of each source that the settings name.

    Args:
        source: a data file, or a folder of images, whose columns are named by ``columns``, or the
            settings [data], which go with those of [task].
        tokenize: text to tokens, e.g. ``tokenizer.tokenize``; without it there are no tokens.
        rows: how many, from each file.
        bounds: of a file's numbers, as `task.range` is of those of the settings.

    Raises:
        DataError: whatever is wrong up to the last row shown; what follows is not read.
    """
    if isinstance(source, DataConfig):
        task = task or TaskConfig()
        columns = columns_of(source, task)
        streams = list(_streams(source, columns))
        roles = dict(columns_read(source))
        dropped, bounds, labels = source.missing == "drop", task.range, source.labels
    else:
        columns = columns or Columns("text", "label")
        stream = (
            read_image_folder(source, sites=columns.site is not None)
            if columns.images and source.is_dir()
            else read_file(source, columns)
        )
        streams = [(None, stream)]
        roles = {"label": columns.label}
        roles |= {} if columns.site is None else {"site": columns.site}
        dropped, labels = False, None
    targets = columns.of.targets
    if targets is Targets.ANSWER:
        del roles["label"]
    shown: list[PreviewRow] = []
    for named, stream in streams:
        found = list(islice(stream, rows))
        numbers = columns_of_numbers(found, roles)
        for row in found:
            lacks = lacking(row, numbers, roles)
            if row.label is None and targets is Targets.ANSWER:
                lacks = {**lacks, "answer": ABSENT}
            error: HushtuneError | None = refusal(row, lacks, roles, dropped=dropped)
            if not lacks:
                column = columns.label
                error = target_error(row, targets, bounds=bounds, labels=labels, column=column)
            shown.append(_shown(row, named, tokenize, _note(row, lacks), error))
    if not columns.images:
        return tuple(shown)
    return tuple(
        replace(row, size=None if row.text is None else size_of(row.text)) for row in shown
    )


def _streams(config: DataConfig, columns: Columns) -> Iterator[tuple[str | None, Iterator[RawRow]]]:
    """Each source with the site that it is, where the settings say so."""
    if config.files is not None:
        for name, path in sorted(config.files.items()):
            yield name, read_file(path, columns)
    elif config.file is not None:
        yield None, read_file(config.file, columns)
    elif config.folder is not None:
        yield None, read_image_folder(config.folder, sites=config.partition == "natural")
    elif config.dataset is not None:
        yield None, read_dataset(config.dataset, columns)
    else:
        yield None, read_named(str(config.source))


def _note(row: RawRow, lacks: Mapping[str, str]) -> str | None:
    """Why a row is left out, where nothing refuses it."""
    if not lacks:
        return None
    return f"left out: no {' and no '.join(lacked(row, role) for role in lacks)}"


def _shown(
    row: RawRow,
    site: str | None,
    tokenize: Tokenize | None,
    note: str | None,
    error: HushtuneError | None,
) -> PreviewRow:
    return PreviewRow(
        place=row.place,
        site=row.site if site is None else site,
        label=row.label,
        text=row.text,
        tokens=None if tokenize is None or row.text is None else tuple(tokenize(row.text)),
        note=note if error is None else f"a run stops here: {error.code} {error}",
        refused=error is not None,
    )
