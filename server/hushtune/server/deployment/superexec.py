"""Flower's SuperExec, which starts the ServerApp of each run: a child process that ends with us."""

from __future__ import annotations

import contextlib
import os
import secrets
import signal
import subprocess
import time

from hushtune.common.files import write_bytes
from hushtune.common.private_log import put_aside
from hushtune.server.deployment.home import Home
from hushtune.server.deployment.run_process import SERVER_PROCESS, identity

OUTPUT = "processes.log"
"""What the SuperExec and the ServerApps print; put aside at a start when it has grown."""

_SECONDS = 5.0
_MOST_BYTES = 10 * 2**20


class SuperExec:
    """One process, in a group of its own with the ServerApps that it starts.

    It shows the server a secret, so that no other user of this machine can take a run from it.
    """

    def __init__(self, home: Home) -> None:
        self._home = home
        self.secret = secrets.token_bytes(32)
        self._process: subprocess.Popen[bytes] | None = None

    def start(self) -> None:
        """Start it; the server must listen by now, or soon."""
        flower = self._home.flower
        path = flower / "superexec.secret"
        write_bytes(path, self.secret, private=True)
        put_aside(flower / OUTPUT, most=_MOST_BYTES)
        output = os.open(flower / OUTPUT, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        try:
            self._process = subprocess.Popen(
                [
                    "flower-superexec",
                    "--insecure",
                    *("--runtime-api-address", self._home.local),
                    *("--superexec-auth-secret-file", str(path)),
                    *("--parent-pid", str(os.getpid())),
                ],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=output,
                start_new_session=True,
                env=os.environ
                | {"COLUMNS": "160", "NO_COLOR": "1", SERVER_PROCESS: identity(os.getpid())},
            )
        finally:
            os.close(output)

    def restart_if_dead(self) -> bool:
        """Whether it had died, and was started again."""
        if self._process is None or self._process.poll() is None:
            return False
        self.start()
        return True

    def stop(self) -> None:
        """End it and its ServerApps: asked first, then killed."""
        process, self._process = self._process, None
        if process is None:
            return
        for number, seconds in ((signal.SIGTERM, _SECONDS), (signal.SIGKILL, 1.0)):
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(process.pid, number)
            end = time.monotonic() + seconds
            while time.monotonic() < end:
                process.poll()
                if not _alive(process.pid):
                    return
                time.sleep(0.05)


def _alive(group: int) -> bool:
    try:
        os.killpg(group, 0)
    except (ProcessLookupError, PermissionError):
        return False
    return True
