"""``orders.jsonl``: every order that reached a site and what was decided, one JSON object a line.

Lines are only ever added, each durable before the answer leaves; the file is its owner's alone.
"""

from __future__ import annotations

import fcntl
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, cast

from hushtune.client.deployment.json_log import utc_now
from hushtune.common.errors import DeploymentError
from hushtune.common.files import write_errors
from hushtune.common.json_text import json_text

HISTORY = "orders.jsonl"
ANSWERED, REFUSED, FAILED = "answered", "refused", "failed"
"""Done as asked; refused by the site, with a code; the site's own work failed, with a code."""


@dataclass(frozen=True, kw_only=True)
class Spent:
    """What an answer was charged, and where the site's budget stands after it.

    ``charge``: the charge's number in the ledger; ``epsilon`` of ``limit`` at ``delta``.
    """

    charge: int
    epsilon: float
    limit: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Order:
    """One message and what became of it.

    ``time`` (UTC) is when it was answered, ``seconds`` how long that took; ``received`` and
    ``sent`` are bytes. ``run`` is the run's name where the message tells it, else Flower's number.
    """

    sequence: int
    run: str
    round: int
    kind: str
    decision: str
    code: str = ""
    reason: str = ""
    spent: Spent | None = None
    seconds: float = 0.0
    received: int = 0
    sent: int = 0
    time: str = field(default_factory=utc_now)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return asdict(self)

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Order:
        """Inverse of ``to_dict``; ValueError, KeyError or TypeError for anything else."""
        fields, spent = dict(raw), raw["spent"]
        fields["spent"] = None if spent is None else Spent(**spent)
        return cls(**fields)


@dataclass(frozen=True)
class History:
    """The orders of a site's file, oldest first, and how many lines of it cannot be read."""

    orders: tuple[Order, ...]
    damaged: int = 0


def read_history(path: Path) -> History:
    """The file's orders; none where there is no file. A line that a crash cut short is damaged."""
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        return History(())
    except OSError as error:
        raise _unreadable(path, error) from error
    read = [_read(line) for line in lines if line.strip()]
    orders = tuple(one for one in read if one is not None)
    return History(orders, len(read) - len(orders))


def last_order(path: Path, *, most_bytes: int = 65536) -> Order | None:
    """The last whole line's order, without reading the whole file; None without one."""
    try:
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - most_bytes))
            lines = file.read().decode("utf-8", errors="replace").splitlines()
    except OSError:
        return None
    return next((one for one in map(_read, reversed(lines)) if one is not None), None)


def append_order(path: Path, **fields: Any) -> Order:
    """Add an order, numbered after the last; durable when this returns.

    ``fields``: those of ``Order`` but for ``sequence``. Raises DiskFullError or RunError where the
    file cannot be written.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            fcntl.flock(handle, fcntl.LOCK_EX)
            before = last_order(path)
            order = Order(sequence=1 + (before.sequence if before else 0), **fields)
            line = json_text(order.to_dict()).encode("utf-8") + b"\n"
            size = os.fstat(handle).st_size
            if size and os.pread(handle, 1, size - 1) != b"\n":
                line = b"\n" + line  # what a crash cut short stays a line of its own
            os.write(handle, line)
            os.fsync(handle)
        finally:
            os.close(handle)
        if new:
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
    return order


def _read(line: str) -> Order | None:
    try:
        raw = json.loads(line)
        return Order.from_dict(cast("dict[str, Any]", raw)) if isinstance(raw, dict) else None
    except (ValueError, KeyError, TypeError, RecursionError):
        return None


def _unreadable(path: Path, error: OSError) -> DeploymentError:
    return DeploymentError(
        "the site's history cannot be read",
        given=f"{path}: {error.strerror or error}",
        expected="the file that `hushtune site join` writes",
        remedy="check who may read it",
    )
