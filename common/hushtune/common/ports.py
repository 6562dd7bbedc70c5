"""A loopback port for a process that is started next."""

from __future__ import annotations

import secrets
import socket

_LOWEST, _HIGHEST = 10_000, 32_766
"""Below what systems lend to outgoing connections: Linux from 32,768 on, others from 49,152 (RFC
6335, section 6). A port from there may be lent to somebody before its process listens on it."""


def free_port() -> int:
    """A port that nothing listens on by now, nor on the next one, which a coordinator takes too."""
    while True:
        # No seed of a run may lead two processes to the same one.
        port = _LOWEST + secrets.randbelow(_HIGHEST - _LOWEST)
        if _is_free(port) and _is_free(port + 1):
            return port


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
