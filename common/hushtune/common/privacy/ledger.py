"""The privacy ledger: append-only, hash-chained events of a site's data sets, durable first.

SQLite in one file (rollback journal, `synchronous=EXTRA`, mode 0600). A charge and the reply that
it pays for are committed in one transaction before the reply leaves; a round that is asked for
again is answered with the kept bytes and not charged again. The ledger keeps events, never an
epsilon, so it composes over rounds, runs and restarts and can be read under another delta.

Whoever may write the file can rewrite it whole. What is detected: an edited, moved or missing row,
a damaged or truncated file, and an older copy put back while the file beside it (`<name>.head`, the
last hash that was charged) stayed. Putting back both is not: compare `head()` with the hash in the
last update that left the site.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Generator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from hushtune.common.errors import BudgetExceededError, LedgerError
from hushtune.common.privacy import accountant, ledger_replies
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry
from hushtune.common.privacy.ledger_files import (
    check_private,
    create_private,
    disk_errors,
    read_head,
    write_head,
)
from hushtune.common.privacy.ledger_replies import KEPT_REPLIES, KeptReply
from hushtune.common.privacy.plan import DpSgdEvent, Relation

__all__ = ["GENESIS", "KEPT_REPLIES", "KeptReply", "Ledger", "LedgerEntry", "Limit"]

_BUSY_SECONDS = 30.0
_SCHEMA = """
CREATE TABLE IF NOT EXISTS charges (
    sequence INTEGER PRIMARY KEY, dataset TEXT NOT NULL, run TEXT NOT NULL, round INTEGER NOT NULL,
    event TEXT NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL,
    UNIQUE (dataset, run, round)
);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class Limit:
    """The most that may ever be spent on one data set."""

    epsilon: float
    delta: float
    relation: Relation


@final
class Ledger:
    """The charges of one site's data sets, in one file.

    Every operation opens its own connection and verifies the whole chain, so a ledger may be used
    from any thread, process or fork. Every method raises LedgerError for a file that was changed,
    damaged or is not usable, and DiskFullError for a full disk; nothing is charged then.
    """

    def __init__(self, path: Path) -> None:
        self.path = Path(path)
        with disk_errors(self.path):
            create_private(self.path)
        check_private(self.path)
        with self._connection() as db:
            db.executescript(_SCHEMA + ledger_replies.SCHEMA)
        self.verify()

    def verify(self) -> None:
        """Check every row, its link to the row before, and every kept reply."""
        with self._connection() as db:
            db.execute("BEGIN")
            damaged = ledger_replies.damaged(db, charged=len(self._verified(db)))
        if damaged is not None:
            raise self._altered(f"the reply kept for charge {damaged} is another one")

    def entries(self, dataset: str | None = None) -> list[LedgerEntry]:
        """The charges of a data set, or of all, in order."""
        with self._connection() as db:
            rows = self._verified(db)
        return [entry for entry in rows if dataset is None or entry.dataset == dataset]

    def head(self) -> str:
        """Hash of the last charge, which stands for all before it; zeros for an empty ledger."""
        with self._connection() as db:
            return _head(self._verified(db))

    def epsilon(self, *, dataset: str, delta: float, relation: Relation) -> float:
        """What everything released about a data set, in all runs, has cost so far."""
        return _spent(self.entries(dataset), (), delta=delta, relation=relation)

    def would_exceed(
        self, event: DpSgdEvent, *, dataset: str, epsilon: float, delta: float, relation: Relation
    ) -> bool:
        """Whether one more event would take a data set beyond (epsilon, delta)."""
        spent = _spent(self.entries(dataset), (event,), delta=delta, relation=relation)
        return spent > epsilon

    def reply(self, run: str, round: int, *, dataset: str) -> KeptReply | None:
        """The reply kept for a round; None if the round was never answered.

        Raises LedgerError if it was answered and its reply is no longer kept.
        """
        with self._connection() as db:
            db.execute("BEGIN")
            entry = _find(self._verified(db), dataset, run, round)
            return None if entry is None else ledger_replies.kept(db, entry)

    def charge(
        self,
        event: DpSgdEvent,
        *,
        dataset: str,
        run: str,
        round: int,
        limit: Limit | None = None,
    ) -> LedgerEntry:
        """Charge an event; durable when this returns.

        A round that was charged for the same event gets the charge that is there; for another
        event, LedgerError. With `limit`, BudgetExceededError if the charge would go beyond it, in
        the same transaction, so that two processes cannot both take the last of a budget.
        """
        with self._writing() as db:
            entry = self._append(db, event, limit, dataset=dataset, run=run, round=round)
        self._advance_head(entry)
        return entry

    def charge_with_reply(
        self,
        event: DpSgdEvent,
        *,
        dataset: str,
        run: str,
        round: int,
        reply: bytes,
        limit: Limit | None = None,
    ) -> LedgerEntry:
        """`charge` and keep the reply that it pays for, in one durable transaction.

        Raises LedgerError where the round was answered with other bytes: those must be sent again.
        """
        with self._writing() as db:
            entry = self._append(db, event, limit, dataset=dataset, run=run, round=round)
            ledger_replies.keep(db, entry, reply)
        self._advance_head(entry)
        return entry

    def save_reply(self, entry: LedgerEntry, reply: bytes) -> None:
        """Keep the reply that an earlier `charge` paid for; durable when this returns.

        Raises LedgerError where `entry` is not in this ledger or was answered with other bytes.
        """
        with self._writing() as db:
            if entry not in self._verified(db):
                raise LedgerError(
                    "a reply's charge is not in this ledger", given=f"charge {entry.sequence}"
                )
            ledger_replies.keep(db, entry, reply)

    @contextmanager
    def _connection(self) -> Generator[sqlite3.Connection]:
        with disk_errors(self.path):
            # mode=rw: a ledger that was deleted must be missed, not silently begun again.
            uri = f"{self.path.absolute().as_uri()}?mode=rw"
            db = sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)
            try:
                db.execute("PRAGMA journal_mode=DELETE")
                db.execute("PRAGMA synchronous=EXTRA")
                yield db
            finally:
                db.close()  # rolls back what is not committed

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def _verified(self, db: sqlite3.Connection) -> list[LedgerEntry]:
        """All charges, checked. The head is read first: rows may only be added after it."""
        charged, head = read_head(self.path)
        entries: list[LedgerEntry] = []
        for row in db.execute("SELECT * FROM charges ORDER BY sequence"):
            entry = self._entry(row)
            expected = (len(entries) + 1, _head(entries))
            if (entry.sequence, entry.previous) != expected or entry.hash != entry.content_hash():
                raise self._altered(f"row {len(entries) + 1} was altered or removed")
            entries.append(entry)
        if _head(entries[:charged]) != head or len(entries) < charged:
            raise self._altered(f"it holds {len(entries)} charges and held {charged} before")
        return entries

    def _entry(self, row: Sequence[Any]) -> LedgerEntry:
        try:
            event = DpSgdEvent.from_dict(json.loads(row[4]))
            return LedgerEntry(row[0], row[1], row[2], row[3], event, row[5], row[6])
        except Exception as error:
            raise self._altered(f"row {row[0]} is damaged") from error

    def _altered(self, how: str) -> LedgerError:
        return LedgerError(
            f"the privacy ledger was changed by other hands: {how}",
            given=str(self.path),
            remedy="restore the file from a copy that is not older than the last run",
        )

    def _append(
        self,
        db: sqlite3.Connection,
        event: DpSgdEvent,
        limit: Limit | None,
        *,
        dataset: str,
        run: str,
        round: int,
    ) -> LedgerEntry:
        rows = self._verified(db)
        found = _find(rows, dataset, run, round)
        if found is not None and found.event == event:
            return found
        if found is not None:
            raise LedgerError(
                f"round {round} was charged before, for something else",
                given=f"run {run}: {event}",
                expected=str(found.event),
            )
        if limit is not None:
            _check_limit([row for row in rows if row.dataset == dataset], event, limit)
        entry = LedgerEntry.after(
            len(rows), _head(rows), dataset=dataset, run=run, round=round, event=event
        )
        text = json.dumps(event.to_dict(), sort_keys=True)
        values = (entry.sequence, dataset, run, round, text, entry.previous, entry.hash)
        db.execute("INSERT INTO charges VALUES (?, ?, ?, ?, ?, ?, ?)", values)
        return entry

    def _advance_head(self, entry: LedgerEntry) -> None:
        # After the commit, never before: a head ahead of its ledger would look like a loss.
        with disk_errors(self.path):
            if read_head(self.path)[0] < entry.sequence:
                write_head(self.path, entry.sequence, entry.hash)


def _head(entries: Sequence[LedgerEntry]) -> str:
    return entries[-1].hash if entries else GENESIS


def _find(entries: Sequence[LedgerEntry], dataset: str, run: str, round: int) -> LedgerEntry | None:
    key = (dataset, run, round)
    return next((row for row in entries if (row.dataset, row.run, row.round) == key), None)


def _spent(
    entries: Sequence[LedgerEntry],
    more: Sequence[DpSgdEvent],
    *,
    delta: float,
    relation: Relation,
) -> float:
    events = [*(entry.event for entry in entries), *more]
    return accountant.epsilon(events, delta=delta, relation=relation)


def _check_limit(entries: Sequence[LedgerEntry], event: DpSgdEvent, limit: Limit) -> None:
    spent = _spent(entries, (event,), delta=limit.delta, relation=limit.relation)
    if spent > limit.epsilon:
        raise BudgetExceededError(
            "the charge would exceed the data set's privacy budget",
            given=f"epsilon {spent:.4g} with it, after {len(entries)} charges",
            expected=f"epsilon <= {limit.epsilon:g} at delta {limit.delta:g}",
        )
