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


def keyed_name(
    db: sqlite3.Connection, data_set: str, entries: Sequence[LedgerEntry], *, path: Path
) -> str:
    """HMAC-SHA256 of a data set's own name, behind the key's mark; LedgerError for another key."""
    key = _key(db, path)
    mark = hashlib.sha256(b"hushtune ledger key" + key).hexdigest()[:16]
    for entry in entries:
        if _KEYED.fullmatch(entry.dataset) and not entry.dataset.startswith(f"{mark}:"):
            raise altered(path, "its key was exchanged")
    return f"{mark}:{hmac.new(key, data_set.encode(), hashlib.sha256).hexdigest()}"


def derived_key(db: sqlite3.Connection, purpose: str, *, path: Path) -> bytes:
    """32 bytes for one purpose, which only the ledger's key gives; LedgerError without that."""
    return hmac.new(_key(db, path), f"hushtune {purpose}".encode(), hashlib.sha256).digest()


def _key(db: sqlite3.Connection, path: Path) -> bytes:
    row = db.execute("SELECT key FROM secret").fetchone()
    if row is None or not isinstance(row[0], bytes) or len(row[0]) != 32:
        raise altered(path, "its key is gone")
    return bytes(row[0])
