"""What a site has decided in sessions of secure sums, once and for all; kept beside its charges.

Under which keys its secrets were shared, who has shared, whose sums of a step arrived: a site
answers for one of each alone. What it has answered must not be forgotten with the process that
answered, so each decision is durable before the answer to it leaves. Of a decision its SHA-256 is
kept, and nothing that is secret. A session is known by its name and a key of its own secrets: the
name alone is the server's to choose, and to choose again.
"""

from __future__ import annotations

import hashlib
import sqlite3

from hushtune.common.errors import SecureSumError

KEPT_SESSIONS = 32
"""Sessions whose decisions are kept; an older one is refused from then on, and so ends."""

SCHEMA = """
CREATE TABLE IF NOT EXISTS sessions (
    number INTEGER PRIMARY KEY AUTOINCREMENT, session TEXT NOT NULL UNIQUE
);
CREATE TABLE IF NOT EXISTS decisions (
    session TEXT NOT NULL, about TEXT NOT NULL, digest TEXT NOT NULL, PRIMARY KEY (session, about)
) WITHOUT ROWID;
"""


def begin(db: sqlite3.Connection, session: str) -> None:
    """Note a session, unless it is known, and drop the oldest beyond ``KEPT_SESSIONS``."""
    db.execute("INSERT OR IGNORE INTO sessions (session) VALUES (?)", (session,))
    db.execute(
        "DELETE FROM sessions WHERE number NOT IN"
        " (SELECT number FROM sessions ORDER BY number DESC LIMIT ?)",
        (KEPT_SESSIONS,),
    )
    db.execute("DELETE FROM decisions WHERE session NOT IN (SELECT session FROM sessions)")


def decided(db: sqlite3.Connection, session: str, about: str, value: bytes) -> bool | None:
    """Whether a session's decision was this one; None where none was made.

    SecureSumError for a session that is not known, or no longer.
    """
    if db.execute("SELECT 1 FROM sessions WHERE session = ?", (session,)).fetchone() is None:
        raise SecureSumError(
            "this site's ledger knows nothing of the session, or no longer",
            given=session.split(maxsplit=1)[0],
            expected=f"one of the last {KEPT_SESSIONS} sessions",
        )
    found = db.execute(
        "SELECT digest FROM decisions WHERE session = ? AND about = ?", (session, about)
    ).fetchone()
    return None if found is None else found[0] == _digest(value)


def decide(db: sqlite3.Connection, session: str, about: str, value: bytes) -> None:
    """Note a decision that was not made before."""
    db.execute("INSERT INTO decisions VALUES (?, ?, ?)", (session, about, _digest(value)))


def _digest(value: bytes) -> str:
    return hashlib.sha256(value).hexdigest()
