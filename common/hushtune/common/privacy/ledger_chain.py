"""The chain of a ledger's charges: read from its database only as a whole, and checked."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from hushtune.common.errors import LedgerError
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.ledger_files import REMEDY
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.common.privacy.selection import Charged, ChoiceEvent

SCHEMA = """
CREATE TABLE IF NOT EXISTS charges (
    sequence INTEGER PRIMARY KEY, dataset TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    unit TEXT NOT NULL, event TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL,
    UNIQUE (dataset, run, round)
);
"""


def read_chain(
    db: sqlite3.Connection, noted: tuple[int, str] | None, *, path: Path
) -> list[LedgerEntry]:
    """All charges in order; LedgerError unless every row continues the one before.

    `noted`: what the head file said before `db` began to read, as rows may only be added after it;
    None where there was none, as is right before the first charge only.
    """
    entries: list[LedgerEntry] = []
    for row in db.execute("SELECT * FROM charges ORDER BY sequence"):
        try:
            entry = _entry(*row)
        except Exception as error:
            raise altered(path, f"row {len(entries) + 1} is damaged") from error
        if (entry.sequence, entry.previous) != (len(entries) + 1, last_hash(entries)):
            raise altered(path, f"row {len(entries) + 1} was altered or removed")
        entries.append(entry)
    if entries and noted is None:
        raise altered(path, f"the file {path.name}.head beside it was taken away")
    charged, head = noted or (0, GENESIS)
    if last_hash(entries[:charged]) != head or len(entries) < charged:
        raise altered(path, f"it holds {len(entries)} charges and held {charged} before")
    return entries


def add_to_chain(db: sqlite3.Connection, entry: LedgerEntry) -> None:
    """Insert the charge that `LedgerEntry.after` made from the last one."""
    text = json.dumps(entry.event.to_dict(), sort_keys=True)
    values = (entry.sequence, entry.dataset, entry.run, entry.round, entry.unit, text)
    db.execute(
        "INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?, ?)", (*values, entry.previous, entry.hash)
    )


def last_hash(entries: Sequence[LedgerEntry]) -> str:
    """Hash of the last charge, GENESIS for none."""
    return entries[-1].hash if entries else GENESIS


def altered(path: Path, how: str) -> LedgerError:
    """The error for a ledger that is not what this program wrote."""
    return LedgerError(
        f"the privacy ledger was changed by other hands: {how}", given=str(path), remedy=REMEDY
    )


# Every use of a ledger reads all of it: a row is hashed again only if any of its values is new.
@lru_cache(maxsize=1 << 14, typed=True)
def _entry(
    sequence: int,
    dataset: str,
    run: str,
    round: int,
    unit: str,
    event: str,
    previous: str,
    hash: str,
) -> LedgerEntry:
    charged = _charged(json.loads(event))
    entry = LedgerEntry(sequence, dataset, run, round, unit, charged, previous, hash)
    if entry.hash != entry.content_hash():
        raise ValueError("the hash does not fit the content")
    return entry


def _charged(raw: Mapping[str, Any]) -> Charged:
    return ChoiceEvent.from_dict(raw) if "kinds" in raw else DpSgdEvent.from_dict(raw)
