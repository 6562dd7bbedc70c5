"""Which column was meant, where the one that is named as the text holds something like labels."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from statistics import fmean

from hushtune.common.config import DataConfig
from hushtune.common.errors import DataError, EmptyDataError
from hushtune.common.tasks.formats import format_of
from hushtune.common.tasks.readers import open_records
from hushtune.common.tasks.rows import RawRow

_FEW, _SHORT, _ROWS = 5, 3.0, 200
_TEXTS = ("text", "sentence", "note", "report", "body", "content", "document", "message")
_LABELS = ("label", "labels", "class", "target", "category", "diagnosis", "outcome", "y")
_GROUPS = ("patient", "patient_id", "user", "user_id", "subject", "subject_id", "person")


@dataclass(frozen=True, slots=True)
class Proposal:
    """Which columns of a file may be meant; None where nothing speaks for any."""

    columns: tuple[str, ...]
    text: str | None
    label: str | None
    group: str | None


def propose_columns(path: Path) -> Proposal:
    """The columns of a file by their names, or else by what its first rows hold.

    A label is the column with the fewest different values, if those are two or more and few for
    the rows. Raises what ``header`` does.
    """
    columns = header(path)
    records = _records(path, ())
    texts, labels = _named(columns, _TEXTS), _named(columns, _LABELS)
    group = _named(columns, _GROUPS)
    words: dict[str, float] = {}
    kinds: dict[str, int] = {}
    for name in columns:
        cells = [str(record.get(name) or "").strip() for record in records]
        cells = [cell for cell in cells if cell]
        if not cells or name == group:
            continue
        words[name] = fmean(len(cell.split()) for cell in cells)
        if len(set(cells)) >= 2 and len(set(cells)) * _FEW <= len(cells):
            kinds[name] = len(set(cells))
    longest = max(words, key=words.__getitem__, default=None)
    if texts is None and longest is not None and words[longest] > _SHORT:
        texts = longest
    if labels is None:
        labels = min((n for n in kinds if n != texts), key=kinds.__getitem__, default=None)
    return Proposal(columns, texts, labels, group)


def header(path: Path) -> tuple[str, ...]:
    """The names of a file's columns, in their order; those of its first row where it is JSON.

    Raises MissingFileError, EncodingError, and UnsupportedDataError for a format that is not read.
    """
    try:
        return open_records(path).names
    except EmptyDataError:
        return ()


def _named(columns: Sequence[str], names: Sequence[str]) -> str | None:
    folded = {column.casefold(): column for column in reversed(columns)}
    return next((folded[name] for name in names if name in folded), None)


def text_remedy(rows: Sequence[RawRow], config: DataConfig) -> str | None:
    """What to set ``data.text`` to, if the texts look like labels: short, and few for many rows.

    None where they do not. ``rows``: all that have a text and a label, repeated ones included.
    """
    texts = {str(row.text) for row in rows}
    if len(texts) * _FEW > len(rows) or fmean(len(text.split()) for text in texts) > _SHORT:
        return None
    looks = (
        f"data.text = {config.text!r} looks like a column of labels: {len(texts)} different short "
        f"texts in {len(rows)} rows; set data.text to the column with the sentences"
    )
    likely = likely_text_column(config)
    return looks if likely is None else f"{looks}, perhaps {likely!r}"


def likely_text_column(config: DataConfig) -> str | None:
    """Of the columns that no setting names the one with the longest texts, nearly all different.

    By the first rows of the (first) file; None where none is longer than a few words.
    """
    path = config.file or next(iter((config.files or {}).values()), None)
    taken = {config.text, config.label, config.site, config.group}
    records = [] if path is None else _records(path, {name for name in taken if name is not None})
    columns: dict[str, list[str]] = {}
    for record in records:
        for name, value in record.items():
            if isinstance(value, str) and value.strip():
                columns.setdefault(name, []).append(value)
    words = {
        name: fmean(len(value.split()) for value in values)
        for name, values in columns.items()
        if name not in taken and 2 * len(set(values)) > len(records)
    }
    best = max(words, key=words.__getitem__, default=None)
    return best if best is not None and words[best] > _SHORT else None


def _records(path: Path, named: Collection[str]) -> list[Mapping[str, object]]:
    """The first rows with all of their columns; none of a file that cannot be read so."""
    if format_of(path) == ".parquet":  # whose first rows may be large
        return []
    try:
        records = open_records(path, named)
        return [cells for _, cells in islice(records.read(records.names), _ROWS)]
    except DataError:
        return []
