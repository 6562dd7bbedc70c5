"""The process of a run's ServerApp: whether it still works, and its end where it must not.

A ServerApp outlives a server that was killed by some seconds. What it tells then is of no run that
goes on, and it must not write into a folder whose run was taken up again.
"""

from __future__ import annotations

import contextlib
import os
import signal
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

SERVER_PROCESS = "HUSHTUNE_SERVER_PROCESS"
"""Environment variable of a server's children: its number and its start, as ``identity`` has it."""

_ASKED, _KILLED, _POLL = 5.0, 5.0, 0.05


def process_start(pid: int) -> str | None:
    """Which process has a number now: the machine's start and the process's, in ticks after it.

    Numbers are given again, at the latest after a restart of the machine. None where there is no
    such process, or the system does not tell: only Linux does.
    """
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {int(_fields(pid)[19])}"
    except (OSError, ValueError, IndexError):
        return None


def identity(pid: int) -> str:
    """A process's number and start, in one word or three."""
    return f"{pid} {process_start(pid) or ''}".strip()


def alive(pid: object, began: object) -> bool:
    """Whether a process is there, and not another one that has got its number since."""
    if not isinstance(pid, int):
        return True
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except OSError:
        pass
    if _is_dead(pid):
        return False
    now = process_start(pid)
    return began is None or now is None or began == now


def server_alive(server: object) -> bool:
    """Whether the server of an ``identity`` is there; True where none is told."""
    pid, _, began = str(server or "").partition(" ")
    return not pid.isdecimal() or alive(int(pid), began or None)


def works(state: Mapping[str, Any]) -> bool:
    """Whether the process that a run's ``state.json`` names is there, and so is its server."""
    return alive(state.get("pid"), state.get("process")) and server_alive(state.get("server"))


def end_process(state: Mapping[str, Any]) -> None:
    """End the process that ``state.json`` names, asked first, then killed; wait until it is gone.

    Only where it is known for certain to be that process, and of this user.
    """
    pid, began = state.get("pid"), state.get("process")
    if not isinstance(pid, int) or pid == os.getpid() or began is None:
        return
    for number, seconds in ((signal.SIGTERM, _ASKED), (signal.SIGKILL, _KILLED)):
        if process_start(pid) != began:
            return
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(pid, number)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if not alive(pid, began):
                return
            time.sleep(_POLL)


def _is_dead(pid: int) -> bool:
    """Whether a process has ended, and only its parent does not know yet."""
    try:
        return _fields(pid)[0] in ("Z", "X")
    except (OSError, IndexError):
        return False


def _fields(pid: int) -> list[str]:
    """Of ``/proc/PID/stat`` from the third on (proc_pid_stat(5)).

    The second is a name, which may have blanks and ")".
    """
    line = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    return line.rpartition(")")[2].split()
