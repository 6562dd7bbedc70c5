"""The replies that a ledger's charges paid for: kept to be sent again, byte for byte."""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass

from hushtune.common.errors import LedgerError
from hushtune.common.privacy.ledger_entry import LedgerEntry

KEPT_REPLIES = 4
"""Replies kept for each run; of older ones only the digest stays."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS replies (
    sequence INTEGER PRIMARY KEY REFERENCES charges (sequence), digest TEXT NOT NULL, reply BLOB
);
"""


@dataclass(frozen=True, slots=True)
class KeptReply:
    """What was answered in a round, and its charge."""

    entry: LedgerEntry
    reply: bytes


def kept(db: sqlite3.Connection, entry: LedgerEntry) -> KeptReply | None:
    """The reply of a charge; None if it was never answered, LedgerError if no longer kept."""
    row = _row(db, entry)
    if row is None:
        return None
    digest, reply = row
    if reply is None:
        raise LedgerError(
            f"round {entry.round} was answered and charged before, and its reply is no longer kept",
            given=f"run {entry.run}",
            expected=f"a repeat within {KEPT_REPLIES} rounds",
        )
    if _digest(reply) != digest:
        raise LedgerError(f"the kept reply of round {entry.round} was altered")
    return KeptReply(entry, reply)


def keep(db: sqlite3.Connection, entry: LedgerEntry, reply: bytes) -> None:
    """Keep a reply and drop the oldest of its run; LedgerError if answered with other bytes."""
    row = _row(db, entry)
    if row is not None and row[0] != _digest(reply):
        raise LedgerError(
            f"round {entry.round} was answered before, with other bytes",
            given=f"run {entry.run}",
            remedy="send the kept reply again",
        )
    if row is not None:
        return
    db.execute("INSERT INTO replies VALUES (?, ?, ?)", (entry.sequence, _digest(reply), reply))
    db.execute(
        "UPDATE replies SET reply = NULL WHERE reply IS NOT NULL AND sequence IN (SELECT sequence"
        " FROM charges WHERE dataset = ? AND run = ? ORDER BY sequence DESC LIMIT -1 OFFSET ?)",
        (entry.dataset, entry.run, KEPT_REPLIES),
    )


def damaged(db: sqlite3.Connection, *, charged: int) -> int | None:
    """Number of the first charge whose kept reply does not fit its digest; None if all do."""
    for sequence, digest, reply in db.execute("SELECT * FROM replies ORDER BY sequence"):
        if not 1 <= sequence <= charged or (reply is not None and _digest(reply) != digest):
            return sequence
    return None


def _row(db: sqlite3.Connection, entry: LedgerEntry) -> tuple[str, bytes | None] | None:
    query = "SELECT digest, reply FROM replies WHERE sequence = ?"
    return db.execute(query, (entry.sequence,)).fetchone()


def _digest(reply: bytes) -> str:
    return hashlib.sha256(reply).hexdigest()
