"""Children that end with the process that started them, however that one ends."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time
from collections.abc import Callable

_PR_SET_PDEATHSIG = 1
_LOOK_SECONDS = 0.5
_GRACE_SECONDS = 10.0


def end_with_parent(
    parent: int, *, end: Callable[[], None] | None = None, grace: float = _GRACE_SECONDS
) -> None:
    """Have this process end when ``parent``, the process that started it, is no more.

    It is asked to by SIGTERM, so that it can say good-bye, and made to after ``grace`` seconds.
    Linux sends the signal at once; elsewhere, and where that failed, a thread looks.
    """
    if sys.platform == "linux":
        ctypes.CDLL(None, use_errno=True).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM, 0, 0, 0)
    ask = end or (lambda: signal.raise_signal(signal.SIGTERM))
    if os.getppid() != parent:  # it ended before the signal was asked for
        ask()

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_LOOK_SECONDS)
        ask()
        time.sleep(grace)
        os._exit(1)

    threading.Thread(target=watch, name="lifeline", daemon=True).start()
