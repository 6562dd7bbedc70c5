"""What a ledger calls a data set: a keyed hash, so that a charge that is shown tells nothing of it.

A plain hash of the rows would let anyone who knows all rows but one test a guess of that one. The
key is random, is kept in the ledger alone and never leaves it. A name begins with a mark of its
key, so that a key that was exchanged, which would begin every budget anew, is detected.
"""

from __future__ import annotations

import hashlib
import hmac
import os
import re
import sqlite3
from collections.abc import Sequence
from pathlib import Path

from hushtune.common.privacy.ledger_chain import altered
from hushtune.common.privacy.ledger_entry import LedgerEntry

SCHEMA = """
CREATE TABLE IF NOT EXISTS secret (
    only_one INTEGER PRIMARY KEY CHECK (only_one = 1), key BLOB NOT NULL
);
"""
_KEYED = re.compile(r"[0-9a-f]{16}:[0-9a-f]{64}")


def make_key(db: sqlite3.Connection) -> None:
    """Draw the ledger's key, if it has none yet."""
    if db.execute("SELECT 1 FROM secret").fetchone() is None:
        db.execute("INSERT OR IGNORE INTO secret VALUES (1, ?)", (os.urandom(32),))


def check_key(db: sqlite3.Connection, entries: Sequence[LedgerEntry], *, path: Path) -> None:
    """Raise LedgerError unless the key is there and is the one that named the charged data sets.

    Before the first charge there may be none: the making of the ledger may have been cut short.
    """
    if not entries:
        return
    mark = _mark(_key(db, path))
    for entry in entries:
        if _KEYED.fullmatch(entry.dataset) and not entry.dataset.startswith(f"{mark}:"):
            raise altered(path, "its key was exchanged")


def keyed_name(db: sqlite3.Connection, data_set: str, *, path: Path) -> str:
    """HMAC-SHA256 of a data set's own name, behind the key's mark."""
    key = _key(db, path)
    return f"{_mark(key)}:{hmac.new(key, data_set.encode(), hashlib.sha256).hexdigest()}"


def derived_key(db: sqlite3.Connection, purpose: str, *, path: Path) -> bytes:
    """32 bytes for one purpose, which only the ledger's key gives; LedgerError without that."""
    return hmac.new(_key(db, path), f"hushtune {purpose}".encode(), hashlib.sha256).digest()


def _mark(key: bytes) -> str:
    return hashlib.sha256(b"hushtune ledger key" + key).hexdigest()[:16]


def _key(db: sqlite3.Connection, path: Path) -> bytes:
    row = db.execute("SELECT key FROM secret").fetchone()
    if row is None or not isinstance(row[0], bytes) or len(row[0]) != 32:
        raise altered(path, "its key is gone")
    return bytes(row[0])
