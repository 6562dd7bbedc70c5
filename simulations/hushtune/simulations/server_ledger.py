"""The ledger of a server that adds the noise itself: its charges, chained, in its checkpoint."""

from __future__ import annotations

from pathlib import Path

from hushtune.common.config import RunConfig
from hushtune.common.errors import CheckpointError, LedgerError
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.ledger_record import LedgerRecord

NAME = "server"
"""What its ledger goes by where others go by a site's name."""

_FOLDER, _FILE = "checkpoint", "latest.hushtune"


def find(place: Path, config: RunConfig | None) -> Path | None:
    """The checkpoint with the charges, of a run's folder, its folder checkpoint, or the file.

    ``config``: the run's. None where another than the server was charged, or nothing is there.
    """
    if config is None or config.privacy.trust != "server":
        return None
    places = (place / _FOLDER / _FILE, place / _FILE, place)
    return next((path for path in places if path.is_file() and is_one(path)), None)


def is_one(path: Path) -> bool:
    """Whether a file is a checkpoint, by its name."""
    return path.name == _FILE


def read(path: Path) -> LedgerRecord:
    """The charges, each found to continue the one before; LedgerError for a damaged checkpoint."""
    from hushtune.server.checkpoint import load  # takes seconds to import

    try:
        rows = load(path.parent).ledger
    except CheckpointError as error:
        raise LedgerError(
            f"the server's ledger cannot be read: {error.message}",
            given=error.given,
            remedy="put the newest copy of the run's folder checkpoint back; without it nobody can "
            "tell what the run spent but by its privacy.json",
        ) from error
    entries = tuple(LedgerEntry.from_dict(row) for row in rows)
    return LedgerRecord(path=path, entries=entries, replies={}, resent={})
