"""What is let in from outside: by path, by key and clock, by size; and from this machine."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from hushtune.server.deployment.guard import (
    FLEET,
    STATE,
    TIME,
    LocalGuard,
    PublicGuard,
    Receive,
    Scope,
    Send,
    examine,
)
from hushtune.server.deployment.local_token import HEADER
from hushtune.server.deployment.watch import Rejection, Watch

TOKEN = "of the coordinator's own user"
NOW = datetime(2026, 6, 1, 12, tzinfo=UTC)
KEY, STRANGER = ec.generate_private_key(ec.SECP384R1()), ec.generate_private_key(ec.SECP384R1())
KEYS = {public_key_to_bytes(KEY.public_key()): "north"}


def signed(
    key: ec.EllipticCurvePrivateKey, at: datetime, *, by: ec.EllipticCurvePrivateKey | None = None
) -> dict[str, str]:
    stamp = at.isoformat()
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-signature": b64encode(sign_message(by or key, stamp.encode())).decode(),
        "flwr-timestamp": stamp,
    }


@pytest.mark.parametrize(
    ("headers", "reason"),
    [
        ({}, "no key"),
        ({**signed(KEY, NOW), "flwr-public-key": "%%"}, "no key"),
        ({**signed(KEY, NOW), "flwr-timestamp": "yesterday"}, "no key"),
        (signed(STRANGER, NOW), "unknown key"),
        (signed(KEY, NOW, by=STRANGER), "signature"),
        (signed(KEY, NOW - timedelta(seconds=310)), "clock"),
        (signed(KEY, NOW + timedelta(seconds=6)), "clock"),
    ],
)
def test_a_request_is_refused_with_the_reason(headers: dict[str, str], reason: str) -> None:
    found = examine(headers, KEYS, now=NOW)
    assert isinstance(found, Rejection)
    assert found.reason == reason
    assert found.words()


def test_a_clock_is_told_with_its_difference_and_to_a_site_alone() -> None:
    found = examine(signed(KEY, NOW - timedelta(seconds=400)), KEYS, now=NOW)
    assert isinstance(found, Rejection)
    assert (found.site, found.seconds) == ("north", 400.0)
    assert "400 s behind" in found.words()
    ahead = examine(signed(KEY, NOW + timedelta(seconds=90)), KEYS, now=NOW)
    assert isinstance(ahead, Rejection)
    assert "90 s ahead" in ahead.words()
    assert examine(signed(KEY, NOW - timedelta(seconds=60)), KEYS, now=NOW) == "north"


class Call:
    """One request to an ASGI application, and what came of it."""

    def __init__(self, app: Any, path: str, method: str = "POST", **told: Any) -> None:
        self.status, self.body, self.read = 0, b"", 0
        parts: Iterable[bytes] = told.get("parts", [b""])
        headers: dict[str, str] = told.get("headers", {})
        scope = {
            "type": told.get("kind", "http"),
            "path": path,
            "method": method,
            "client": ("192.0.2.1", 5),
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()],
        }
        self._parts = iter([*parts])
        self.sent: list[Any] = []
        asyncio.run(app(scope, self._receive, self._send))

    async def _receive(self) -> Any:
        part = next(self._parts, None)
        if part is None:
            return {"type": "http.request", "body": b"", "more_body": False}
        self.read += len(part)
        return {"type": "http.request", "body": part, "more_body": True}

    async def _send(self, event: Any) -> None:
        self.sent.append(event)
        self.status = event.get("status", self.status)
        self.body += event.get("body", b"")


class Flower:
    """What stands behind a guard: it keeps what it was given."""

    def __init__(self) -> None:
        self.paths: list[str] = []
        self.bodies: list[bytes] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.paths.append(scope["path"])
        if scope["type"] == "http":
            event = await receive()
            self.bodies.append(event["body"])
            await send({"type": "http.response.start", "status": 200, "headers": []})
            await send({"type": "http.response.body", "body": b"served"})


def guards() -> tuple[Flower, PublicGuard, LocalGuard, Watch, list[Any]]:
    lines: list[Any] = []
    watch = Watch(started=0.0, tell=lambda event, **fields: lines.append((event, fields)))
    flower = Flower()
    public = PublicGuard(flower, keys=lambda: KEYS, limit=1000, watch=watch)
    local = LocalGuard(flower, port=9093, token=TOKEN, watch=watch)
    return flower, public, local, watch, lines


def test_only_what_a_node_calls_passes() -> None:
    flower, public, _, _, _ = guards()
    headers = signed(KEY, datetime.now(UTC))
    for path in ("/v1/control/start-run", "/v1/fleet/register-node", "/", STATE, "/v1/fleet"):
        assert Call(public, path, headers=headers).status == 404
    assert Call(public, "/v1/fleet/get-run", "GET", headers=headers).status == 404
    assert flower.paths == []
    assert b'"time"' in Call(public, TIME, "GET").body
    for path in sorted(FLEET):
        assert Call(public, path, headers=headers).body == b"served"
    assert flower.paths == sorted(FLEET)
    assert Call(public, "/v1/fleet/get-run", kind="websocket").sent[0]["type"] == "websocket.close"


def test_a_body_passes_whole_and_no_more_of_it_is_read_than_the_bound() -> None:
    flower, public, _, watch, _ = guards()
    headers = signed(KEY, datetime.now(UTC))
    assert Call(public, "/v1/fleet/push-object", headers=headers, parts=[b"a" * 400] * 2).status
    assert flower.bodies == [b"a" * 800]
    endless = Call(public, "/v1/fleet/push-object", headers=headers, parts=[b"a" * 400] * 99)
    assert (endless.status, endless.read) == (413, 1200)
    declared = {**headers, "Content-Length": "1001"}
    assert Call(public, "/v1/fleet/push-object", headers=declared, parts=[b"a"]).status == 413
    stranger = signed(STRANGER, datetime.now(UTC))
    unknown = Call(public, "/v1/fleet/push-object", headers=stranger, parts=[b"a"] * 9)
    assert (unknown.status, unknown.read) == (401, 0)
    seen = watch.snapshot(now=1e12)
    assert seen["sites"]["north"]["bytes_in"] == 800
    assert seen["sites"]["north"]["bytes_out"] == len(b"served")
    assert seen["rejections"] == {"too large": 2, "unknown key": 1}


def test_many_refusals_are_one_line_of_the_log_and_a_bounded_table() -> None:
    _, public, _, watch, lines = guards()
    for _ in range(20):
        Call(public, "/v1/fleet/get-run")
    assert [event for event, _ in lines] == ["rejected"]
    assert watch.snapshot(now=0.0)["rejected"][0]["count"] == 20
    for number in range(500):
        watch.refused(Rejection("unknown key", key=str(number)), peer="192.0.2.1", now=1.0)
    assert len(watch.rejected) == 100


def test_the_local_side_is_for_this_machine_and_not_for_its_browsers() -> None:
    _, _, local, _, _ = guards()
    host = {"host": "127.0.0.1:9093", HEADER: TOKEN}
    assert Call(local, "/v1/control/list-runs", headers=host).body == b"served"
    assert Call(local, STATE, "GET", headers=host).status == 200
    for headers in ({}, {"host": "evil.example"}, {**host, "origin": "http://evil.example"}):
        assert Call(local, "/v1/control/start-run", headers=headers).status == 403


@pytest.mark.parametrize("given", [{}, {HEADER: ""}, {HEADER: "guessed"}, {HEADER: "\xe9"}])
def test_another_user_of_this_machine_reaches_what_has_flowers_own_secrets_and_no_more(
    given: dict[str, str],
) -> None:
    flower, _, local, _, _ = guards()
    headers = {"host": "127.0.0.1:9093", **given}
    for path in (
        "/v1/control/start-run",
        "/v1/control/list-runs",
        "/v1/fleet/register-node",
        "/v1/runtime",
        "/responses",
        "/openapi.json",
        "/",
    ):
        assert Call(local, path, headers=headers).status == 401, path
    for path in (STATE, "/hushtune/anything"):
        assert Call(local, path, "GET", headers=headers).status == 401, path
    assert flower.paths == []
    assert Call(local, "/v1/runtime/acquire-task", headers=headers).body == b"served"


def test_pieces_of_a_message_are_bounded_together_until_the_next_order() -> None:
    flower, watch = Flower(), Watch(started=0.0, tell=lambda *_, **__: None)
    guard = PublicGuard(flower, keys=lambda: KEYS, limit=1000, message_limit=2500, watch=watch)
    headers = signed(KEY, datetime.now(UTC))

    def piece() -> int:
        return Call(guard, "/v1/fleet/push-object", headers=headers, parts=[b"a" * 900]).status

    assert [piece() for _ in range(4)] == [200, 200, 413, 413]
    assert Call(guard, "/v1/fleet/push-messages", headers=headers).status == 200
    assert piece() == 413  # to speak of another message is no order
    assert Call(guard, "/v1/fleet/pull-messages", headers=headers).body == b"served"
    assert piece() == 200
    assert watch.snapshot(now=0.0)["rejections"] == {"too large": 3}
