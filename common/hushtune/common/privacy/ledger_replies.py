"""The replies that a ledger's charges paid for: kept to be sent again, byte for byte.

How many are kept is bounded for each run and over all, since whoever orders rounds names the runs.
How often each was sent again is counted beside the chain of charges, of which it is no part.
"""

from __future__ import annotations

import hashlib
import sqlite3
from dataclasses import dataclass
from pathlib import Path

from hushtune.common.errors import LedgerError
from hushtune.common.privacy.ledger_chain import altered
from hushtune.common.privacy.ledger_entry import LedgerEntry

KEPT_REPLIES = 4
"""Replies kept for each run; of older ones only the digest stays."""

MOST_REPLIES = 64
"""Replies kept over all runs and data sets."""

MOST_BYTES = 256 * 1024**2
"""Bytes of replies kept over all runs and data sets; the newest is kept whatever its size."""

# The bytes have a table of their own: a row that is emptied would leave its page half empty.
SCHEMA = """
CREATE TABLE IF NOT EXISTS answers (
    sequence INTEGER PRIMARY KEY REFERENCES charges (sequence), digest TEXT NOT NULL,
    asked TEXT NOT NULL
);
CREATE TABLE IF NOT EXISTS replies_kept (
    sequence INTEGER PRIMARY KEY REFERENCES answers (sequence), reply BLOB NOT NULL
);
CREATE TABLE IF NOT EXISTS resent (
    sequence INTEGER PRIMARY KEY REFERENCES charges (sequence), times INTEGER NOT NULL
);
"""
_ANSWERS = "SELECT sequence, digest, {} FROM answers LEFT JOIN replies_kept USING (sequence)"


@dataclass(frozen=True, slots=True)
class KeptReply:
    """What was answered in a round, and its charge."""

    entry: LedgerEntry
    reply: bytes


def kept(db: sqlite3.Connection, entry: LedgerEntry, *, asked: str) -> KeptReply | None:
    """The reply of a charge; None if it was never answered.

    LedgerError if it is no longer kept, or if it answered another order than ``asked``.
    """
    row = _row(db, entry)
    if row is None:
        return None
    _, digest, reply, before = row
    if before != asked:
        raise LedgerError(
            f"round {entry.round} was answered before, to another order",
            given=f"run {entry.run}, order {asked or 'without a name'}",
            expected=before or "the order without a name",
            remedy="order another round; a reply to one adapter is none to another",
        )
    if reply is None:
        raise LedgerError(
            f"round {entry.round} was answered and charged before, and its reply is no longer kept",
            given=f"run {entry.run}",
            expected=f"a repeat within {KEPT_REPLIES} rounds",
            remedy="order another round",
        )
    if not isinstance(reply, bytes) or _digest(reply) != digest:
        raise LedgerError(f"the kept reply of round {entry.round} was altered")
    return KeptReply(entry, reply)


def keep(
    db: sqlite3.Connection, entry: LedgerEntry, reply: bytes, *, asked: str, is_new: bool
) -> None:
    """Keep a reply, and which order it answers, and drop what is too old.

    LedgerError if the round was answered with other bytes, or if its charge, which is not new then,
    has paid for a refusal.
    """
    row = _row(db, entry)
    if row is None and not is_new:
        raise LedgerError(
            f"round {entry.round} was charged and refused before",
            given=f"run {entry.run}",
            remedy="order another round",
        )
    if row is not None and row[1] != _digest(reply):
        raise LedgerError(
            f"round {entry.round} was answered before, with other bytes",
            given=f"run {entry.run}",
            remedy="send the kept reply again",
        )
    if row is not None:
        return
    # Dropped first, so that the new one takes the room of the old ones in the file.
    _make_room(db, entry, len(reply))
    db.execute("INSERT INTO answers VALUES (?, ?, ?)", (entry.sequence, _digest(reply), asked))
    db.execute("INSERT INTO replies_kept VALUES (?, ?)", (entry.sequence, reply))


def _make_room(db: sqlite3.Connection, entry: LedgerEntry, num_bytes: int) -> None:
    """Drop, oldest first, until one more reply of this size leaves all three bounds kept."""
    num_of_run = num_kept = 1
    dropped: list[tuple[int]] = []
    for sequence, dataset, run, size in db.execute(
        "SELECT sequence, dataset, run, length(reply) FROM replies_kept"
        " JOIN charges USING (sequence) ORDER BY sequence DESC"
    ):
        num_of_run += (dataset, run) == (entry.dataset, entry.run)
        num_kept += 1
        num_bytes += size
        of_run = (dataset, run) == (entry.dataset, entry.run) and num_of_run > KEPT_REPLIES
        if of_run or num_kept > MOST_REPLIES or num_bytes > MOST_BYTES:
            dropped.append((sequence,))
    db.executemany("DELETE FROM replies_kept WHERE sequence = ?", dropped)


def count_resent(db: sqlite3.Connection, entry: LedgerEntry) -> None:
    """Note that the reply of a charge is about to be handed out once more."""
    db.execute(
        "INSERT INTO resent VALUES (?, 1) ON CONFLICT (sequence) DO UPDATE SET times = times + 1",
        (entry.sequence,),
    )


def resent(db: sqlite3.Connection, path: Path, *, charged: int) -> dict[int, int]:
    """How often the reply of each charge was handed out again, by sequence; none for never.

    LedgerError for what cannot be such a count. Another count that can be is not detected.
    """
    times: dict[int, int] = {}
    for sequence, count in db.execute("SELECT sequence, times FROM resent ORDER BY sequence"):
        if not isinstance(count, int) or count < 1 or not 1 <= sequence <= charged:
            raise altered(path, f"no count of replies sent again: {count!r} of charge {sequence}")
        times[sequence] = count
    return times


def check(db: sqlite3.Connection, path: Path, *, charged: int) -> None:
    """Raise LedgerError where a reply has no charge, or is not the one that was kept."""
    for sequence, digest, reply in db.execute(_ANSWERS.format("reply")):
        whole = isinstance(digest, str) if reply is None else _is_whole(reply, digest)
        if not 1 <= sequence <= charged or not whole:
            raise altered(path, f"the reply kept for charge {sequence} is another one")


def digests(db: sqlite3.Connection) -> list[tuple[int, str, int | None]]:
    """Of each answer: the charge's sequence, its SHA-256, and its size if it is still kept."""
    return db.execute(_ANSWERS.format("length(reply)") + " ORDER BY sequence").fetchall()


def _row(db: sqlite3.Connection, entry: LedgerEntry) -> tuple[int, str, object, str] | None:
    query = _ANSWERS.format("reply, asked") + " WHERE sequence = ?"
    return db.execute(query, (entry.sequence,)).fetchone()


def _is_whole(reply: object, digest: object) -> bool:
    return isinstance(reply, bytes) and _digest(reply) == digest


def _digest(reply: bytes) -> str:
    return hashlib.sha256(reply).hexdigest()
