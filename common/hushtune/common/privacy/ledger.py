"""The privacy ledger: append-only, hash-chained events of a site's data sets, durable first.

SQLite in one file (rollback journal, `synchronous=EXTRA`, mode 0600). A charge and the reply that
it pays for are committed in one transaction before the reply leaves; a round that is asked for
again is answered with the kept bytes and not charged again. The ledger keeps events, never an
epsilon, so it composes over rounds, runs and restarts and can be read under another delta. How much
of the replies is kept, and counted when sent again, is `ledger_replies`' matter; `ledger_record`
reads a ledger without touching it. What a site has answered for in secure sums lies in the same
file (`ledger_sessions`), and is no part of the chain.

Whoever may write the file can rewrite it whole. What is detected: an edited, moved or missing row,
a damaged or truncated file, and an older copy put back while the file beside it (`<name>.head`, the
last hash that was charged) stayed. Putting back both is not: compare `head()` with the hash in the
last update that left the site (`hushtune ledger verify --head`).
"""

from __future__ import annotations

import sqlite3
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import final

from hushtune.common.errors import LedgerError
from hushtune.common.privacy import (
    accountant,
    ledger_chain,
    ledger_files,
    ledger_names,
    ledger_replies,
    ledger_sessions,
)
from hushtune.common.privacy.ledger_chain import last_hash
from hushtune.common.privacy.ledger_entry import GENESIS, RECORD, LedgerEntry
from hushtune.common.privacy.ledger_files import disk_errors
from hushtune.common.privacy.ledger_limit import Limit
from hushtune.common.privacy.ledger_replies import KEPT_REPLIES, KeptReply
from hushtune.common.privacy.plan import Relation
from hushtune.common.privacy.selection import Charged

__all__ = ["GENESIS", "KEPT_REPLIES", "KeptReply", "Ledger", "LedgerEntry", "Limit"]

# One transaction: after a crash there are all tables or none.
_SCHEMA = (
    f"BEGIN IMMEDIATE; {ledger_chain.SCHEMA} {ledger_replies.SCHEMA} {ledger_names.SCHEMA}"
    f" {ledger_sessions.SCHEMA} COMMIT;"
)


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
            ledger_files.create_private(self.path)
        ledger_files.check_private(self.path)
        with self._connection() as db:
            if db.execute("PRAGMA page_count").fetchone() == (0,):
                # So that the file shrinks as replies are dropped. Only before there are tables:
                # later, saying it again would be a write.
                db.execute("PRAGMA auto_vacuum=FULL")
            db.executescript(_SCHEMA)
            ledger_names.make_key(db)
        self._begin_head()
        self.verify()

    def verify(self) -> None:
        """Check every row, its link to the row before, the key and every kept reply."""
        with self._connection() as db:
            db.execute("BEGIN")
            charged = len(self._verified(db))
            ledger_replies.check(db, self.path, charged=charged)
            ledger_replies.resent(db, self.path, charged=charged)

    def name_of(self, data_set: str) -> str:
        """What this ledger calls a data set: nobody who is shown it learns anything of its rows."""
        with self._connection() as db:
            db.execute("BEGIN")
            self._verified(db)
            return ledger_names.keyed_name(db, data_set, path=self.path)

    def batch_key(self) -> bytes:
        """32 secret bytes, the same for the life of this ledger, from which batches are drawn."""
        with self._connection() as db:
            return ledger_names.derived_key(db, "batches", path=self.path)

    def entries(self, dataset: str | None = None) -> list[LedgerEntry]:
        """The charges of a data set, or of all, in order."""
        with self._connection() as db:
            rows = self._verified(db)
        return [entry for entry in rows if dataset is None or entry.dataset == dataset]

    def head(self) -> str:
        """Hash of the last charge, which stands for all before it; zeros for an empty ledger."""
        with self._connection() as db:
            return last_hash(self._verified(db))

    def epsilon(self, *, dataset: str, delta: float, relation: Relation) -> float:
        """What everything released about a data set, in all runs, has cost so far."""
        events = [entry.event for entry in self.entries(dataset)]
        return accountant.epsilon(events, delta=delta, relation=relation)

    def check(
        self, event: Charged, *, dataset: str, run: str, limit: Limit, unit: str = RECORD
    ) -> None:
        """Raise what `charge` would raise for want of budget; charges nothing (`Limit.check`)."""
        limit.check(event, self.entries(), dataset=dataset, run=run, unit=unit)

    def resend(self, run: str, round: int, *, dataset: str, asked: str = "") -> KeptReply | None:
        """The reply kept for a round, to be sent again; None if the round was never answered.

        That it is handed out again is counted, durably, before this returns: nothing leaves that is
        not on record. Raises LedgerError if the round was answered and its reply is no longer kept,
        or answered another order than the one that `asked` names.
        """
        with self._writing() as db:
            entry = _find(self._verified(db), dataset, run, round)
            kept = None if entry is None else ledger_replies.kept(db, entry, asked=asked)
            if kept is not None:
                ledger_replies.count_resent(db, kept.entry)
        return kept

    def num_resent(self, dataset: str | None = None, run: str | None = None) -> int:
        """How often kept replies were handed out again, in a data set and run, or in all.

        The counts are no part of the chain of charges: whoever may write the file can edit them.
        """
        with self._connection() as db:
            db.execute("BEGIN")
            charged = self._verified(db)
            times = ledger_replies.resent(db, self.path, charged=len(charged))
        return sum(
            times.get(entry.sequence, 0)
            for entry in charged
            if dataset in (None, entry.dataset) and run in (None, entry.run)
        )

    def charge(
        self,
        event: Charged,
        *,
        dataset: str,
        run: str,
        round: int,
        limit: Limit | None = None,
        unit: str = RECORD,
    ) -> LedgerEntry:
        """Charge an event; durable when this returns.

        A round that was charged for the same event gets the charge that is there; for another
        event, LedgerError. `unit`: whose records were clipped and noised together. `limit` is
        checked in the same transaction, so that two processes cannot both take the last of a
        budget.
        """
        with self._writing() as db:
            entry, _ = self._append(db, event, limit, dataset, run=run, round=round, unit=unit)
        self._advance_head(entry)
        return entry

    def charge_with_reply(
        self,
        event: Charged,
        *,
        dataset: str,
        run: str,
        round: int,
        reply: bytes,
        asked: str = "",
        limit: Limit | None = None,
        unit: str = RECORD,
        keep: Callable[[], None] | None = None,
    ) -> LedgerEntry:
        """`charge` and keep the reply that it pays for, in one durable transaction.

        `keep` is called once the charge and its reply are accepted, under the ledger's lock and
        before they are committed: of several processes, for the one alone whose reply this is. What
        it writes may be there without its charge after a crash, and never the other way round.

        `asked` names the order that is answered, for `resend`. Raises LedgerError where the round
        was answered with other bytes, which must be sent again, or was charged and refused: a
        charge pays for one of the two.
        """
        with self._writing() as db:
            entry, is_new = self._append(db, event, limit, dataset, run=run, round=round, unit=unit)
            ledger_replies.keep(db, entry, reply, asked=asked, is_new=is_new)
            if keep is not None:
                keep()
        self._advance_head(entry)
        return entry

    def begin_session(self, session: str) -> None:
        """Note that a session of secure sums begins; durable when this returns.

        Of more than `ledger_sessions.KEPT_SESSIONS` the oldest ends.
        """
        with self._writing() as db:
            ledger_sessions.begin(db, session)

    def decide(self, session: str, about: str, value: bytes) -> bool:
        """Hold a session to the first `value` that was decided; durable when this returns.

        Whether it is this one. Raises SecureSumError for a session that has not begun, or has
        ended.
        """
        with self._writing() as db:
            same = ledger_sessions.decided(db, session, about, value)
            if same is None:
                ledger_sessions.decide(db, session, about, value)
        return same is not False

    @contextmanager
    def _connection(self) -> Generator[sqlite3.Connection]:
        with ledger_files.open_durable(self.path) as db:
            yield db

    @contextmanager
    def _writing(self) -> Generator[sqlite3.Connection]:
        with self._connection() as db:
            db.execute("BEGIN IMMEDIATE")
            yield db
            db.execute("COMMIT")

    def _verified(self, db: sqlite3.Connection) -> list[LedgerEntry]:
        noted = ledger_files.read_head(self.path)
        entries = ledger_chain.read_chain(db, noted, path=self.path)
        ledger_names.check_key(db, entries, path=self.path)
        return entries

    def _append(
        self,
        db: sqlite3.Connection,
        event: Charged,
        limit: Limit | None,
        dataset: str,
        *,
        run: str,
        round: int,
        unit: str,
    ) -> tuple[LedgerEntry, bool]:
        """The charge of a round, and whether it is a new one."""
        rows = self._verified(db)
        found = _find(rows, dataset, run, round)
        if found is not None and found.event == event:
            return found, False
        if found is not None:
            raise LedgerError(
                f"round {round} was charged before, for something else",
                given=f"run {run}: {event}",
                expected=str(found.event),
            )
        if limit is not None:
            limit.check(event, rows, dataset=dataset, run=run, unit=unit)
        entry = LedgerEntry.after(
            len(rows),
            last_hash(rows),
            dataset=dataset,
            run=run,
            round=round,
            unit=unit,
            event=event,
        )
        ledger_chain.add_to_chain(db, entry)
        return entry, True

    def _begin_head(self) -> None:
        """A head before the first charge, so that one that is taken away later is missed."""
        if ledger_files.read_head(self.path) is not None:
            return
        with self._writing() as db, disk_errors(self.path):
            if db.execute("SELECT 1 FROM charges").fetchone() is None:
                ledger_files.write_head(self.path, 0, GENESIS)

    def _advance_head(self, entry: LedgerEntry) -> None:
        # After the commit, never before: a head ahead of its ledger would look like a loss. Under
        # the ledger's lock, so that of two processes none puts an older head back.
        with self._writing(), disk_errors(self.path):
            noted = ledger_files.read_head(self.path)
            if noted is None or noted[0] < entry.sequence:
                ledger_files.write_head(self.path, entry.sequence, entry.hash)


def _find(entries: Sequence[LedgerEntry], dataset: str, run: str, round: int) -> LedgerEntry | None:
    key = (dataset, run, round)
    return next((row for row in entries if (row.dataset, row.run, row.round) == key), None)
