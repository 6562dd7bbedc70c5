"""One process at a time: a lock that goes with the process that holds it."""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from hushtune.common.errors import BusyError


@contextmanager
def held(path: Path, *, busy: BusyError) -> Generator[None]:
    """Hold the lock of a file; raises ``busy`` at once where another process has it."""
    lock = FileLock(path)
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise busy from None
    try:
        yield
    finally:
        lock.release()
