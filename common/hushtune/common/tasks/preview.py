"""A look at data before anything trains: rows as they will be read, and as tokens."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from hushtune.common.config import DataConfig
from hushtune.common.tasks.readers import read_dataset, read_demo, read_file
from hushtune.common.tasks.rows import RawRow

Tokenize = Callable[[str], Sequence[str]]


@dataclass(frozen=True, slots=True)
class PreviewRow:
    """One row as it will be read; ``note`` says why it would be left out, if it would."""

    place: str
    site: str | None
    label: str | None
    text: str | None
    tokens: tuple[str, ...] | None
    note: str | None


def preview(
    source: Path | DataConfig,
    *,
    tokenize: Tokenize | None = None,
    rows: int = 5,
    text: str = "text",
    label: str = "label",
    site: str | None = None,
) -> tuple[PreviewRow, ...]:
    """The first rows of a file, or of each source that the settings name.

    Args:
        source: a data file, whose columns the last three arguments name, or the settings [data].
        tokenize: text to tokens, e.g. ``tokenizer.tokenize``; without it there are no tokens.
        rows: how many, from each file.

    Raises:
        DataError: whatever is wrong up to the last row shown; what follows is not read.
    """
    if isinstance(source, DataConfig):
        streams = list(_streams(source))
    else:
        streams = [(None, read_file(source, text=text, label=label, site=site))]
    return tuple(
        _shown(row, named, tokenize) for named, stream in streams for row in islice(stream, rows)
    )


def _streams(config: DataConfig) -> Iterator[tuple[str | None, Iterator[RawRow]]]:
    """Each source with the site that it is, where the settings say so."""
    text, label, site = config.text, config.label, config.site
    if config.files is not None:
        for name, path in sorted(config.files.items()):
            yield name, read_file(path, text=text, label=label, site=None)
    elif config.file is not None:
        yield None, read_file(config.file, text=text, label=label, site=site)
    elif config.dataset is not None:
        yield None, read_dataset(config.dataset, text=text, label=label, site=site)
    else:
        yield None, read_demo()


def _shown(row: RawRow, site: str | None, tokenize: Tokenize | None) -> PreviewRow:
    missing = [name for name in ("text", "label") if getattr(row, name) is None]
    return PreviewRow(
        place=row.place,
        site=row.site if site is None else site,
        label=row.label,
        text=row.text,
        tokens=None if tokenize is None or row.text is None else tuple(tokenize(row.text)),
        note=f"left out: no {' and no '.join(missing)}" if missing else None,
    )
