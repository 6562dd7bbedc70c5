"""The files of a privacy ledger: made private from the start, and a head that betrays a rollback.

The database is opened in two ways: `open_durable` for what must outlast a loss of power, and
`open_read_only` for looking, which leaves every byte and every name in the folder as it is.

The head file holds the number and the hash of the last charge. It is written after the charge is
durable, so that it may lag behind its ledger after a crash but never runs ahead of it.
"""

from __future__ import annotations

import errno
import os
import re
import shutil
import sqlite3
import tempfile
from collections.abc import Generator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path

from hushtune.common.errors import DiskFullError, LedgerError

REMEDY = "restore the file from a copy that is not older than the last run"

_BUSY_SECONDS = 30.0
_PRAGMAS = (
    "journal_mode=DELETE",
    "synchronous=EXTRA",  # the folder is synced too, so that a commit outlasts a loss of power
    "secure_delete=ON",  # what is dropped is overwritten in the file
)


def create_private(path: Path) -> None:
    """Make an empty file that only its owner can read, if there is none; never readable between.

    SQLite gives its journal the mode of the database.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    os.close(os.open(path, os.O_RDWR | os.O_CREAT, 0o600))


def check_private(path: Path) -> None:
    """Raise LedgerError where others than the owner can read or write the file."""
    mode = path.stat().st_mode & 0o777
    if mode & 0o077:
        raise LedgerError(
            "the privacy ledger can be read by others",
            given=f"{path} with mode {mode:o}",
            expected="mode 600",
            remedy=f"chmod 600 {path}",
        )


def head_path(path: Path) -> Path:
    """Where the head of the ledger at `path` is kept."""
    return path.with_name(path.name + ".head")


def read_head(path: Path) -> tuple[int, str] | None:
    """Number and hash of the last charge that the head file knows; None without such a file."""
    try:
        text = head_path(path).read_text(encoding="ascii", errors="replace")
    except FileNotFoundError:
        return None
    found = re.fullmatch(r"(0|[1-9][0-9]*) ([0-9a-f]{64})\n", text)
    if found is None:
        raise LedgerError(
            "the head of the privacy ledger is damaged",
            given=str(head_path(path)),
            remedy=REMEDY,
        )
    return int(found[1]), found[2]


def write_head(path: Path, sequence: int, head: str) -> None:
    """Replace the head durably and in one piece; mode 0600."""
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(handle, "w", encoding="ascii") as file:
            file.write(f"{sequence} {head}\n")
            file.flush()
            os.fsync(file.fileno())
        Path(name).replace(head_path(path))
    except BaseException:
        Path(name).unlink(missing_ok=True)
        raise
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


@contextmanager
def open_durable(path: Path) -> Generator[sqlite3.Connection]:
    """A connection whose commits are durable; what is not committed is rolled back at the end.

    Raises LedgerError for a file that is missing or cannot be used, DiskFullError for a full disk.
    """
    with disk_errors(path):
        # mode=rw: a ledger that was deleted must be missed, not silently begun again.
        db = _connect(path, "rw")
        try:
            for pragma in _PRAGMAS:
                db.execute(f"PRAGMA {pragma}")
            yield db
        finally:
            db.close()


@contextmanager
def open_read_only(path: Path) -> Generator[sqlite3.Connection]:
    """A connection that sees one state of the ledger and changes nothing beside it.

    A transaction that a crash cut short is rolled back in a private copy, as the ledger's owner
    will do with the file itself. Raises LedgerError for a file that cannot be read.
    """
    try:
        with ExitStack() as stack:
            db = stack.enter_context(closing(_connect(path, "ro")))
            try:
                _begin_reading(db)
            except sqlite3.OperationalError as error:
                if error.sqlite_errorcode != sqlite3.SQLITE_READONLY_ROLLBACK:
                    raise
                folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="hushtune-"))
                copy = _copied(path, Path(folder))
                db = stack.enter_context(closing(_connect(copy, "rw")))
                _begin_reading(db)
            yield db
    except (sqlite3.Error, OSError) as error:
        raise LedgerError(
            "the privacy ledger cannot be read", given=f"{path}: {error}", remedy=REMEDY
        ) from error


def _connect(path: Path, mode: str) -> sqlite3.Connection:
    uri = f"{path.absolute().as_uri()}?mode={mode}"
    return sqlite3.connect(uri, uri=True, timeout=_BUSY_SECONDS, isolation_level=None)


def _begin_reading(db: sqlite3.Connection) -> None:
    db.execute("BEGIN")
    db.execute("SELECT count(*) FROM sqlite_master").fetchone()  # takes the lock


def _copied(path: Path, folder: Path) -> Path:
    # The journal first: whoever rolls back in between leaves a database that it still fits.
    copy = folder / path.name
    for suffix in ("-journal", ""):
        shutil.copyfile(f"{path}{suffix}", f"{copy}{suffix}")
    return copy


@contextmanager
def disk_errors(path: Path) -> Generator[None]:
    """Turn what SQLite and the system say into DiskFullError or LedgerError."""
    try:
        yield
    except (sqlite3.Error, OSError) as error:
        if "disk is full" in str(error) or getattr(error, "errno", None) == errno.ENOSPC:
            raise DiskFullError(
                "the privacy ledger could not be written: the disk is full, so nothing was "
                "released",
                given=str(path),
                remedy="free some space and run again with --resume",
            ) from error
        raise LedgerError(
            "the privacy ledger could not be used, so nothing was released",
            given=f"{path}: {error}",
            remedy=REMEDY,
        ) from error
