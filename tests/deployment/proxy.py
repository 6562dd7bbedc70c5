"""A bad line: a relay on loopback that can be cut, slowed, and made to lose what it carries."""

from __future__ import annotations

import socket
import threading
import time
from contextlib import suppress

_CHUNK = 16 * 1024


class BadLine:
    """Relays to a port of this machine; every connection goes through its settings of the moment.

    ``delay``: seconds before each piece. ``rate``: bytes a second, 0 for any. ``cut``: no new
    connections, and those that are there carry nothing more: half-open, as when a cable is out.
    """

    def __init__(self, port: int) -> None:
        self.delay, self.rate, self.cut = 0.0, 0.0, False
        self.to = port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._open: set[socket.socket] = set()
        threading.Thread(target=self._accept, daemon=True).start()

    def heal(self) -> None:
        """The line is good again; connections that were cut are reset."""
        self.delay, self.rate, self.cut = 0.0, 0.0, False
        self.reset()

    def reset(self) -> None:
        """Break all connections."""
        for each in list(self._open):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
        self._open.clear()

    def close(self) -> None:
        """End all of it."""
        self._listener.close()
        self.reset()

    def _accept(self) -> None:
        while True:
            try:
                near, _ = self._listener.accept()
            except OSError:
                return
            if self.cut:
                self._open.add(near)  # taken, and never answered
                continue
            try:
                far = socket.create_connection(("127.0.0.1", self.to))
            except OSError:
                near.close()
                continue
            self._open |= {near, far}
            for source, target in ((near, far), (far, near)):
                threading.Thread(target=self._relay, args=(source, target), daemon=True).start()

    def _relay(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(_CHUNK):
                while self.cut:
                    time.sleep(0.05)
                time.sleep(self.delay + (len(data) / self.rate if self.rate else 0.0))
                target.sendall(data)
        for each in (source, target):
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
            each.close()
            self._open.discard(each)
