"""What a ledger holds, read and checked without touching it: for show, verify and export."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from hushtune.common.errors import LedgerError
from hushtune.common.privacy import ledger_chain, ledger_files, ledger_names, ledger_replies
from hushtune.common.privacy.ledger_entry import GENESIS, LedgerEntry


@dataclass(frozen=True, kw_only=True, slots=True)
class ReplyRecord:
    """That a charge was answered: SHA-256 of the reply, and its size if it is still kept."""

    digest: str
    num_bytes: int | None


@dataclass(frozen=True, kw_only=True, slots=True)
class LedgerRecord:
    """A whole ledger that was found sound; `replies` and `resent` go by the charge's sequence."""

    path: Path
    entries: tuple[LedgerEntry, ...]
    replies: Mapping[int, ReplyRecord]
    resent: Mapping[int, int]

    @property
    def head(self) -> str:
        """Hash of the last charge, which stands for all before it; GENESIS for none."""
        return ledger_chain.last_hash(self.entries)

    def num_charges_since(self, head: str) -> int:
        """How many charges were added since somebody noted `head`; 0 where it still is the head.

        Raises LedgerError where it never was: the ledger was rolled back or replaced since then,
        its head file perhaps along with it.
        """
        heads = [GENESIS, *(entry.hash for entry in self.entries)]
        if head not in heads:
            raise LedgerError(
                "the privacy ledger was rolled back or replaced: it does not hold the noted charge",
                given=f"{self.path} with {len(self.entries)} charges, the last {self.head}",
                expected=head,
                remedy=ledger_files.REMEDY,
            )
        return len(heads) - 1 - heads.index(head)


def read_ledger(path: Path) -> LedgerRecord:
    """Read a ledger and check it: modes of its files, chain, head, key and every kept reply.

    Creates and changes nothing, and works where nothing can be written. LedgerError for a missing
    file, for what `Ledger` would not open, and for a head or journal that others can read.
    """
    try:
        ledger_files.check_private(path)
        for beside in (ledger_files.head_path(path), path.with_name(path.name + "-journal")):
            if beside.exists():
                ledger_files.check_private(beside)
        noted = ledger_files.read_head(path)
    except OSError as error:
        raise LedgerError(
            "the privacy ledger cannot be read",
            given=f"{path}: {error.strerror}",
            remedy=ledger_files.REMEDY,
        ) from error
    with ledger_files.open_read_only(path) as db:
        tables = {name for (name,) in db.execute("SELECT name FROM sqlite_master")}
        if not tables and noted is None:  # made, and not yet written to
            return LedgerRecord(path=path, entries=(), replies={}, resent={})
        entries = tuple(ledger_chain.read_chain(db, noted, path=path))
        ledger_names.check_key(db, entries, path=path)
        ledger_replies.check(db, path, charged=len(entries))
        return LedgerRecord(
            path=path,
            entries=entries,
            replies={
                sequence: ReplyRecord(digest=digest, num_bytes=size)
                for sequence, digest, size in ledger_replies.digests(db)
            },
            resent=ledger_replies.resent(db, path, charged=len(entries)),
        )
