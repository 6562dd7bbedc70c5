"""Cells that look as if they name persons: counted, never shown."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence

from hushtune.common.config import RunConfig
from hushtune.common.kinds import Inputs, Targets
from hushtune.common.tasks.rows import RawRow
from hushtune.simulations.datacheck.findings import Finding, Level, share

_EMAIL = re.compile(r"[\w.+-]+@[\w-]+\.[\w.-]*[a-zA-Z]{2}")
_PHONE = re.compile(r"(?<![\w.,/-])(?:\+|\(?0)[\d][\d ()./-]{6,18}\d(?![\w])")
_LEAST_DIGITS = 8


def personal(rows: Sequence[RawRow], config: RunConfig) -> Iterator[Finding]:
    """How many rows of each column hold what looks like an e-mail address or a phone number."""
    kind, counts = config.task.of, dict[tuple[str, str], int]()
    if kind.inputs is Inputs.IMAGE:
        return
    for row in rows:
        cells = {config.data.text: str(row.text)}
        if kind.inputs is Inputs.COLUMNS:
            cells = {name: str(cell) for name, cell in json.loads(str(row.text)).items()}
        if kind.targets is Targets.ANSWER:
            cells["the answer"] = str(row.label)
        for column, cell in cells.items():
            for look in looks(cell):
                counts[column, look] = counts.get((column, look), 0) + 1
    for (column, look), count in sorted(counts.items()):
        yield Finding(
            "personal data",
            Level.WARNING,
            f"in {column!r}, {share(count, len(rows))} hold what looks like {look}",
            "remove or replace them: a model may learn them by heart, and epsilon bounds it for "
            "each row alone, not for what many rows repeat",
        )


def looks(cell: str) -> Iterator[str]:
    """Which of what names persons a cell seems to hold.

    >>> list(looks("write to ann@example.org")), list(looks("call 030 1234 5678"))
    (['e-mail addresses'], ['phone numbers'])
    >>> list(looks("10.5 of 2024-01-02, 3 @ 4"))
    []
    """
    if "@" in cell and _EMAIL.search(cell):
        yield "e-mail addresses"
    for found in _PHONE.finditer(cell):
        if sum(letter.isdigit() for letter in found.group()) >= _LEAST_DIGITS:
            yield "phone numbers"
            return
