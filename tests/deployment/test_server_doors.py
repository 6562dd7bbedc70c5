"""Connections to the public port: those that send no request end, and give way to others."""

from __future__ import annotations

import asyncio
import resource
from collections.abc import AsyncGenerator
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
import uvicorn

from hushtune.common.ports import free_port
from hushtune.server.deployment import doors
from hushtune.server.deployment.doors import DoorServer, allow_files, peer_of

REQUEST = b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"


async def application(scope: Any, receive: Any, send: Any) -> None:
    """Reads what comes, and answers."""
    while (await receive()).get("more_body"):
        pass
    headers = [(b"content-length", b"2")]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": b"ok"})


@asynccontextmanager
async def serving() -> AsyncGenerator[tuple[DoorServer, int]]:
    port = free_port()
    config = uvicorn.Config(
        application, host="127.0.0.1", port=port, log_config=None, lifespan="off", ws="none"
    )
    listening = config.bind_socket()
    server = DoorServer(config)
    config.load()
    server.lifespan = config.lifespan_class(config)
    await server.startup([listening])
    try:
        yield server, port
    finally:
        for each in server.servers:
            each.close()
        listening.close()
        for door in list(server.server_state.connections):
            door.transport.abort()
        await asyncio.sleep(0.01)


class Peer:
    """One end of a connection."""

    def __init__(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.reader, self.writer = reader, writer

    @classmethod
    async def connect(cls, port: int) -> Peer:
        return cls(*await asyncio.open_connection("127.0.0.1", port))

    async def ask(self) -> bytes:
        """The status line that a request gets; nothing where the connection has ended."""
        with suppress(OSError):
            self.writer.write(REQUEST)
            head = await self.reader.readuntil(b"\r\n\r\n")
            await self.reader.readexactly(2)
            return head.split(b"\r\n")[0]
        return b""

    async def over(self, *, within: float = 5.0) -> bool:
        with suppress(OSError, TimeoutError):
            return await asyncio.wait_for(self.reader.read(), within) == b""
        return not isinstance(self.reader.exception(), type(None))

    def close(self) -> None:
        self.writer.close()


async def drip(peer: Peer, text: bytes) -> int:
    """How many bytes of it could be sent, one by one, before the connection ended."""
    for number, byte in enumerate(text):
        if peer.reader.at_eof() or peer.reader.exception() is not None:
            return number
        peer.writer.write(bytes([byte]))
        await asyncio.sleep(0.02)
    return len(text)


def test_a_connection_without_a_request_ends(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doors, "HEADER_SECONDS", 0.3)

    async def tried() -> None:
        async with serving() as (server, port):
            silent, slow, busy = [await Peer.connect(port) for _ in range(3)]
            assert await busy.ask() == b"HTTP/1.1 200 OK"
            assert await drip(slow, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 50) < 100
            assert await silent.over()
            # Later requests of a connection have to come in time as well.
            assert await busy.ask() == b"HTTP/1.1 200 OK"
            assert await drip(busy, b"GET / HTTP/1.1\r\n" + b"x: y\r\n" * 50) < 100
            await asyncio.sleep(0.05)
            assert server.server_state.connections == set()
            for peer in (silent, slow, busy):
                peer.close()

    asyncio.run(tried())


def test_a_request_that_is_being_read_or_answered_is_left_alone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doors, "HEADER_SECONDS", 0.2)

    async def tried() -> None:
        async with serving() as (_, port):
            peer = await Peer.connect(port)
            peer.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n")
            assert await drip(peer, b"a" * 30) == 30  # 0.6 s
            assert (await peer.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            peer.close()

    asyncio.run(tried())


def test_an_idle_connection_gives_way_to_a_new_one_of_its_address(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doors, "MOST_PER_PEER", 5)

    async def tried() -> None:
        async with serving() as (server, port):
            busy = await Peer.connect(port)
            busy.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            idle = [await Peer.connect(port) for _ in range(20)]
            await asyncio.sleep(0.1)
            assert len(server.server_state.connections) == 5
            assert [await peer.over(within=0.01) for peer in idle[:16]] == [True] * 16
            late = await Peer.connect(port)
            assert await late.ask() == b"HTTP/1.1 200 OK"
            busy.writer.write(b"ab")
            assert (await busy.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            for peer in (busy, late, *idle):
                peer.close()

    asyncio.run(tried())


def test_where_all_of_an_address_are_busy_the_new_one_ends(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(doors, "MOST_PER_PEER", 2)

    async def tried() -> None:
        async with serving() as (_, port):
            peers = [await Peer.connect(port) for _ in range(2)]
            for peer in peers:
                peer.writer.write(b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 2\r\n\r\n")
            await asyncio.sleep(0.1)
            third = await Peer.connect(port)
            assert await third.over()
            for peer in peers:
                peer.writer.write(b"ab")
                assert (await peer.reader.readuntil(b"\r\n")).startswith(b"HTTP/1.1 200")
            for peer in (*peers, third):
                peer.close()

    asyncio.run(tried())


@pytest.mark.parametrize(
    ("host", "peer"),
    [
        ("192.0.2.7", "192.0.2.7"),
        ("::ffff:192.0.2.7", "192.0.2.7"),
        ("2001:db8:1:2:3:4:5:6", "2001:db8:1:2"),
        ("fe80::1%eth0", "fe80:0:0:0"),
        ("", ""),
    ],
)
def test_an_address_is_a_hosts(host: str, peer: str) -> None:
    assert peer_of(host) == peer


def test_as_many_files_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    calls: list[tuple[int, int]] = []
    monkeypatch.setattr(resource, "setrlimit", lambda _, limits: calls.append(limits))
    for limits in ((1024, 4096), (1024, 2**20), (1024, resource.RLIM_INFINITY), (2**17, 2**20)):
        monkeypatch.setattr(resource, "getrlimit", lambda _, limits=limits: limits)
        allow_files()
    assert calls == [(4096, 4096), (65536, 2**20), (65536, resource.RLIM_INFINITY)]
