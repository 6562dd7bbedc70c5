"""``status.json``: what `hushtune site join` is doing, for whoever looks while it does."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from enum import StrEnum
from pathlib import Path
from typing import Any, cast

from hushtune.client.deployment.json_log import utc_now
from hushtune.common.files import write_bytes
from hushtune.common.json_text import json_text

WRITE_SECONDS = 5.0
"""A status that was not written for several times as long is of a process that is gone."""


class State(StrEnum):
    """What a site's processes are at."""

    STARTING = "starting"
    CONNECTED = "connected"  # and waiting for orders
    WORKING = "working"
    UNREACHABLE = "unreachable"
    CERTIFICATE = "certificate"
    CLOCK = "clock"
    NOT_ENROLLED = "not enrolled"
    HELD = "held"  # the server still waits for an earlier join of this site
    FAILING = "failing"  # the site's own processes do not stay up
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Restarts:
    """How often each child was started again."""

    node: int = 0
    executor: int = 0


@dataclass(frozen=True, kw_only=True)
class Status:
    """The content of the file; times are UTC.

    ``since`` is when ``state`` began, ``started`` when the join did, ``connected_at`` when the
    server last took the site, ``updated`` when the file was written. ``order`` is the order that
    is being worked on, ``last_order`` a row of the history. ``last_error`` has ``time``, ``code``,
    ``message`` and ``do``. ``epsilon`` is what is spent of ``limit``; None before it is known.
    """

    site: str
    server: str
    pid: int = field(default_factory=os.getpid)
    state: State = State.STARTING
    since: str = field(default_factory=utc_now)
    started: str = field(default_factory=utc_now)
    connected_at: str | None = None
    order: Mapping[str, Any] | None = None
    last_order: Mapping[str, Any] | None = None
    refusals: int = 0
    epsilon: float | None = None
    limit: float | None = None
    restarts: Restarts = field(default_factory=Restarts)
    last_error: Mapping[str, Any] | None = None
    updated: str = ""

    def at(self, state: State) -> Status:
        """The same in another state, since now."""
        return self if state == self.state else replace(self, state=state, since=utc_now())


def write_status(path: Path, status: Status) -> None:
    """Replace the file; readable by its owner alone."""
    content = asdict(replace(status, updated=utc_now()))
    write_bytes(path, (json_text(content, indent=1) + "\n").encode("utf-8"), private=True)


def read_status(path: Path) -> Status | None:
    """What the file says; None where there is none that can be read."""
    try:
        raw: Any = json.loads(path.read_text(encoding="utf-8"))
        fields = cast("dict[str, Any]", raw)
        fields["restarts"] = Restarts(**fields["restarts"])
        fields["state"] = State(fields["state"])
        return Status(**fields)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def seconds_since(moment: str, *, now: float | None = None) -> float:
    """Seconds since a time as the file has it; infinite for anything else."""
    import datetime

    try:
        then = datetime.datetime.fromisoformat(moment).timestamp()
    except ValueError:
        return float("inf")
    return (time.time() if now is None else now) - then


def is_alive(status: Status) -> bool:
    """Whether the join that wrote a status still runs, as far as this machine can tell."""
    if status.state == State.STOPPED:
        return False
    try:
        os.kill(status.pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return True
