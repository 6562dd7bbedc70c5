"""The two child processes of a site: started, listened to and ended."""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, cast

from hushtune.client.deployment.json_log import utc_now
from hushtune.common.environment import QUIET

END_SECONDS = 15.0
"""A child that has not ended so long after it was asked to is made to."""
_LONGEST = 500
Line = Mapping[str, Any]


@dataclass
class Child:
    """One running child; its lines, read by a thread, go to ``lines`` as (name, line)."""

    name: str
    process: subprocess.Popen[str]
    started: float = field(default_factory=time.monotonic)

    @property
    def ended(self) -> bool:
        return self.process.poll() is not None

    @property
    def uptime(self) -> float:
        """Seconds since it was started."""
        return time.monotonic() - self.started


def start_child(
    name: str,
    module: str,
    arguments: Sequence[str],
    *,
    home: Path,
    lines: queue.Queue[tuple[str, Line]],
) -> Child:
    """Start a module of ours as a child that ends with this process.

    To be called in the main thread: Linux tells a child of the end of the thread that started it.
    ``home``: Flower's. A session of its own keeps a terminal's Ctrl-C from it.
    """
    process = subprocess.Popen(
        [sys.executable, "-m", module, *arguments, "--parent-pid", str(os.getpid())],
        env=environment(home),
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        encoding="utf-8",
        errors="replace",
        start_new_session=True,
    )

    def read() -> None:
        assert process.stdout is not None
        with process.stdout as stream:
            for text in stream:
                line = as_line(text, source=name)
                if line is not None:
                    lines.put((name, line))

    threading.Thread(target=read, name=f"lines of {name}", daemon=True).start()
    return Child(name, process)


def environment(home: Path) -> dict[str, str]:
    """A child's: quiet, and with a home of its own for all that Flower keeps."""
    kept = {key: value for key, value in os.environ.items() if not key.startswith("FLWR_")}
    return {**kept, **QUIET, "FLWR_HOME": str(home), "PYTHONUNBUFFERED": "1"}


def as_line(text: str, *, source: str) -> Line | None:
    """A child's line as the log has it; None for an empty one."""
    text = text.strip()
    if text.startswith("{"):
        try:
            return cast("dict[str, Any]", json.loads(text))
        except ValueError:
            pass
    if not text:
        return None
    return {"time": utc_now(), "level": "info", "source": source, "message": text[:_LONGEST]}


def end_children(children: Sequence[Child]) -> None:
    """Ask children to end, all at once, and see to it."""
    for child in children:
        if not child.ended:
            child.process.terminate()
    deadline = time.monotonic() + END_SECONDS
    for child in children:
        try:
            child.process.wait(max(0.1, deadline - time.monotonic()))
        except subprocess.TimeoutExpired:
            child.process.kill()
            child.process.wait()


def why_ended(status: int) -> str:
    """An exit status in words.

    >>> why_ended(-9)
    'killed by SIGKILL: most likely it needed more memory than this machine has'
    >>> why_ended(3)
    'exit status 3'
    """
    number = -status if status < 0 else status - 128 if status in (137, 139, 143) else 0
    if not number:
        return f"exit status {status}"
    name = signal.Signals(number).name
    memory = ": most likely it needed more memory than this machine has" if number == 9 else ""
    return f"killed by {name}{memory}"


def back_off(times: int, *, first: float = 1.0, most: float = 30.0) -> float:
    """Seconds to wait before the ``times``-th start in a row that did not last.

    >>> [back_off(times) for times in (1, 2, 3, 10)]
    [1.0, 2.0, 4.0, 30.0]
    """
    return min(most, first * 2.0 ** min(times - 1, 30))
