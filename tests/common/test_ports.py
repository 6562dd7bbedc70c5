"""Ports for processes that are started next."""

from __future__ import annotations

import socket
from pathlib import Path

import pytest

from hushtune.common import ports
from hushtune.common.ports import free_port

LENT = Path("/proc/sys/net/ipv4/ip_local_port_range")


def test_a_free_port_is_none_that_an_outgoing_connection_may_be_given() -> None:
    lowest = int(LENT.read_text().split()[0]) if LENT.exists() else 49_152
    assert all(1024 < free_port() + 1 < lowest for _ in range(200))


def test_neither_it_nor_the_next_one_is_listened_on(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[int] = []
    with socket.socket() as busy:
        taken = free_port() + 1
        busy.bind(("127.0.0.1", taken))
        busy.listen()
        offers = iter([taken, taken - 1, other := free_port()])

        def offered(_: int) -> int:
            drawn.append(next(offers))
            return drawn[-1] - ports._LOWEST

        monkeypatch.setattr(ports.secrets, "randbelow", offered)
        assert free_port() == other
    assert drawn == [taken, taken - 1, other]
