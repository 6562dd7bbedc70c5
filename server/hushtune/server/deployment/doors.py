"""Connections to the public port: how many, from where, and how long without a request.

Whoever reaches the port can connect, with no key. uvicorn waits for ever for the first request
of a connection, and where there are too many it turns away all alike, sites as well.
"""

from __future__ import annotations

import asyncio
import resource
import socket
from contextlib import suppress
from functools import partial
from ipaddress import IPv6Address, ip_address
from typing import Any

import uvicorn
from uvicorn.protocols.http.h11_impl import H11Protocol

HEADER_SECONDS = 10.0
"""From a connection, or the first byte of a further request, to the end of that request's head."""
HANDSHAKE_SECONDS, FAREWELL_SECONDS = 10.0, 5.0
"""Of TLS."""
MOST_PER_PEER = 256
"""Connections from one address; a site has four or so, and several may share an address."""
MOST = 8192
"""Connections in all; from there on everybody is turned away, so that memory is left."""
_FILES = 65536


class Door(H11Protocol):
    """A connection that ends where no request comes, and gives way to others of its address.

    h11 bounds the head of a request, which httptools does not.
    """

    _deadline: asyncio.TimerHandle | None = None
    _since = 0.0
    peer = ""
    """Where it is from."""

    @property
    def waiting(self) -> bool:
        """Whether there is no request that is being read or answered."""
        return self.cycle is None or self.cycle.response_complete  # pyright: ignore[reportUnnecessaryComparison]

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """See asyncio; where there are too many of an address, its longest idle one ends."""
        super().connection_made(transport)
        self.peer = peer_of(self.client[0] if self.client else "")
        self._since = self.loop.time()
        self._wait()
        same = [each for each in self.connections if isinstance(each, Door)]
        same = [each for each in same if each.peer == self.peer]
        if len(same) > MOST_PER_PEER:
            idle = [each for each in same if each.waiting and each is not self]
            min(idle, key=lambda each: each._since, default=self)._end()

    def data_received(self, data: bytes) -> None:
        """See asyncio."""
        before = self.cycle
        super().data_received(data)
        if self.cycle is not before:
            self._stop()
        elif self.waiting:
            self._wait()

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio."""
        self._stop()
        super().connection_lost(exc)

    def _wait(self) -> None:
        if self._deadline is None and not self.transport.is_closing():
            self._deadline = self.loop.call_later(HEADER_SECONDS, self._end)

    def _stop(self) -> None:
        if self._deadline is not None:
            self._deadline.cancel()
            self._deadline = None
        self._since = self.loop.time()

    def _end(self) -> None:
        self.connections.discard(self)
        self.transport.abort()


class DoorServer(uvicorn.Server):
    """A server of ``Door``s, by TLS."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See uvicorn, which names no times for TLS."""
        await self.lifespan.startup()
        make = partial(
            Door,
            config=self.config,
            server_state=self.server_state,
            app_state=self.lifespan.state,
        )
        times: dict[str, Any] = {}
        if self.config.ssl is not None:
            times["ssl_handshake_timeout"] = HANDSHAKE_SECONDS
            times["ssl_shutdown_timeout"] = FAREWELL_SECONDS
        loop = asyncio.get_running_loop()
        self.servers = [
            await loop.create_server(
                make, sock=each, ssl=self.config.ssl, backlog=self.config.backlog, **times
            )
            for each in sockets or ()
        ]
        self.started = True


def peer_of(host: str) -> str:
    """The address that counts: of IPv6 the network, within which a host takes what it likes.

    >>> peer_of("192.0.2.7"), peer_of("::ffff:192.0.2.7"), peer_of("2001:db8:1:2:3:4:5:6")
    ('192.0.2.7', '192.0.2.7', '2001:db8:1:2')
    """
    try:
        found = ip_address(host.partition("%")[0])
    except ValueError:
        return host
    if not isinstance(found, IPv6Address):
        return str(found)
    if found.ipv4_mapped is not None:
        return str(found.ipv4_mapped)
    return ":".join(part.lstrip("0") or "0" for part in found.exploded.split(":")[:4])


def allow_files() -> None:
    """Let this process open as many files as it may; each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    most = _FILES if hard == resource.RLIM_INFINITY else min(hard, _FILES)
    if soft != resource.RLIM_INFINITY and soft < most:
        with suppress(ValueError, OSError):
            resource.setrlimit(resource.RLIMIT_NOFILE, (most, hard))
