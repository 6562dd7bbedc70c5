"""A process that runs points in turn: a task a line in, what comes of it in lines out.

All of its points share one loaded model, its data and frozen states, as far as they are equal. It
ends at once when the process that started it has ended, however that was.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import sys
import threading
from collections.abc import Mapping
from typing import Any, TextIO

from hushtune.common.environment import be_quiet
from hushtune.common.tasks.shared_states import share_states
from hushtune.simulations.sweep.execute import SHARED_MEGABYTES, execute, task_from


def main() -> None:
    """Serve standard input until it ends."""
    be_quiet()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # who started it says when it ends
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8", buffering=1)
    os.dup2(2, 1)  # what libraries print is no answer
    tasks: queue.SimpleQueue[str] = queue.SimpleQueue()
    threading.Thread(target=_read, args=(sys.stdin, tasks), daemon=True).start()
    share_states(SHARED_MEGABYTES)
    while True:
        task = task_from(tasks.get())

        def told(event: Mapping[str, Any]) -> None:
            _write(answers, {"event": dict(event)})

        _write(answers, {"outcome": execute(task, told)})


def _read(lines: TextIO, tasks: queue.SimpleQueue[str]) -> None:
    for line in lines:
        tasks.put(line)
    os._exit(0)  # in the middle of a point, which goes on from its checkpoint in another process


def _write(answers: TextIO, message: Mapping[str, Any]) -> None:
    try:
        answers.write(json.dumps(message) + "\n")
    except BrokenPipeError:
        os._exit(0)


if __name__ == "__main__":
    main()
