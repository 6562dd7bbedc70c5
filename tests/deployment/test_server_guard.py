"""What is let in from outside: by path, by key and clock, by size; and from this machine."""

from __future__ import annotations

import asyncio
from base64 import b64encode
from collections.abc import Iterable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.proto.message_pb2 import Message as MessageProto
from flwr.proto.message_pb2 import Metadata as MetadataProto
from flwr.proto.node_pb2 import Node
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from hushtune.server.deployment.guard import (
    AT_ONCE,
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


ANSWER = "/v1/fleet/push-messages"


def push(number: int = 1, *, node: int = 5, src_node_id: int = 5, to: str = "a" * 64) -> bytes:
    """What a SuperNode sends for an answer."""
    head = MetadataProto(
        message_id="b" * 64, src_node_id=src_node_id, dst_node_id=1, reply_to_message_id=to
    )
    messages = [MessageProto(metadata=head)] * number
    return PushMessagesRequest(node=Node(node_id=node), messages_list=messages).SerializeToString()


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
            "headers": [(k.lower().encode(), v.encode()) for k, v in headers.items()]
            + told.get("more", []),
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
        parts = [push()] if path == ANSWER else [b""]
        assert Call(public, path, headers=headers, parts=parts).body == b"served"
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
    assert Call(guard, ANSWER, headers=headers, parts=[push()]).status == 200
    assert piece() == 413  # to speak of another message is no order
    assert Call(guard, "/v1/fleet/pull-messages", headers=headers).body == b"served"
    assert piece() == 200
    assert watch.snapshot(now=0.0)["rejections"] == {"too large": 3}


@pytest.mark.parametrize(
    "body",
    [
        push(src_node_id=1, to=""),  # the coordinator's order to whom it likes
        push(to=""),
        push(src_node_id=6),
        push(0),
        push(2),
        b"\xff",
    ],
    ids=["order", "no answer", "another's", "none", "two", "damaged"],
)
def test_a_site_sends_answers_of_its_own_and_no_orders(body: bytes) -> None:
    flower, public, _, watch, _ = guards()
    headers = signed(KEY, datetime.now(UTC))
    assert Call(public, ANSWER, headers=headers, parts=[body]).status == 403
    assert flower.paths == []
    assert watch.snapshot(now=0.0)["rejections"] == {"no answer of its own": 1}


@pytest.mark.parametrize("name", ["flwr-public-key", "flwr-signature", "flwr-timestamp"])
def test_a_request_that_names_its_sender_twice_is_refused(name: str) -> None:
    flower, public, _, watch, _ = guards()
    headers = signed(KEY, datetime.now(UTC))
    again = [(name.encode(), headers[name].encode())]
    assert Call(public, "/v1/fleet/get-run", headers=headers, more=again).status == 401
    other = [(name.encode(), signed(STRANGER, datetime.now(UTC))[name].encode())]
    assert Call(public, "/v1/fleet/get-run", headers=headers, more=other).status == 401
    assert flower.paths == []
    assert watch.snapshot(now=0.0)["rejections"] == {"no key": 2}


class Held:
    """Requests that are open at once: each sends what it is told to, when it is told to."""

    def __init__(self, **bounds: Any) -> None:
        self.flower = Waiting()
        keys = {**KEYS, public_key_to_bytes(STRANGER.public_key()): "south"}
        watch = Watch(started=0.0, tell=lambda *_, **__: None)
        self.guard = PublicGuard(self.flower, keys=lambda: keys, watch=watch, **bounds)

    async def begin(
        self,
        path: str,
        *,
        key: ec.EllipticCurvePrivateKey = KEY,
        declared: int | None = None,
    ) -> Open:
        headers = signed(key, datetime.now(UTC))
        if declared is not None:
            headers["content-length"] = str(declared)
        made = Open()
        scope = {
            "type": "http",
            "path": path,
            "method": "POST",
            "client": ("192.0.2.1", 5),
            "headers": [(k.encode(), v.encode()) for k, v in headers.items()],
        }
        made.task = asyncio.create_task(self.guard(scope, made.parts.get, made.send))
        await settle()
        return made


class Open:
    """One of them; ``status`` is 0 as long as it is not answered."""

    def __init__(self) -> None:
        self.parts: asyncio.Queue[Any] = asyncio.Queue()
        self.status = 0
        self.task: asyncio.Task[None] | None = None

    async def send(self, event: Any) -> None:
        self.status = event.get("status", self.status)

    async def part(self, size: int, *, more: bool = True) -> int:
        self.parts.put_nowait({"type": "http.request", "body": b"a" * size, "more_body": more})
        await settle()
        return self.status


class Waiting(Flower):
    """It answers when it is let go."""

    def __init__(self) -> None:
        super().__init__()
        self.go = asyncio.Event()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        await self.go.wait()
        await super().__call__(scope, receive, send)


async def settle() -> None:
    for _ in range(20):
        await asyncio.sleep(0)


PIECE, CALL = "/v1/fleet/push-object", "/v1/fleet/get-run"


def test_pieces_that_come_side_by_side_count_together() -> None:
    async def tried() -> None:
        held = Held(limit=1000, message_limit=2500)
        held.flower.go.set()
        announced = [await held.begin(PIECE, declared=900) for _ in range(3)]
        assert [each.status for each in announced] == [0, 0, 413]
        # What is not announced counts as it comes.
        silent = await held.begin(PIECE)
        assert [await silent.part(300), await silent.part(300), await silent.part(200)] == [
            *(0, 0, 413)
        ]
        south = await held.begin(PIECE, key=STRANGER, declared=900)
        assert await south.part(900, more=False) == 200
        for each in announced[:2]:
            assert await each.part(900, more=False) == 200
        again = [await held.begin(PIECE, declared=size) for size in (701, 700)]
        assert [each.status for each in again] == [413, 0]

    asyncio.run(tried())


def test_calls_that_are_open_at_once_are_no_larger_than_one_may_be() -> None:
    async def tried() -> None:
        held = Held(limit=1000, message_limit=2500)
        first = await held.begin(CALL, declared=600)
        assert (await held.begin(CALL, declared=600)).status == 413
        assert await first.part(600, more=False) == 0  # Flower works on it
        assert (await held.begin(CALL, declared=600)).status == 413
        assert (await held.begin(CALL, key=STRANGER, declared=600)).status == 0
        assert (await held.begin(PIECE, declared=1000)).status == 0
        held.flower.go.set()
        await settle()
        assert first.status == 200
        assert (await held.begin(CALL, declared=600)).status == 0

    asyncio.run(tried())


def test_a_site_has_a_few_requests_at_once_and_no_more() -> None:
    async def tried() -> None:
        held = Held(limit=1000)
        calls = [await held.begin(CALL) for _ in range(AT_ONCE + 2)]
        assert [each.status for each in calls] == [0] * AT_ONCE + [429] * 2
        assert (await held.begin(CALL, key=STRANGER)).status == 0
        held.flower.go.set()
        assert await calls[0].part(1, more=False) == 200
        assert (await held.begin(CALL)).status == 0

    asyncio.run(tried())


def test_a_body_that_takes_too_long_is_refused_and_counts_no_more() -> None:
    async def tried() -> None:
        held = Held(limit=1000, body_seconds=0.05)
        slow = await held.begin(CALL, declared=1000)
        assert await slow.part(1) == 0
        assert slow.task is not None
        await asyncio.wait_for(slow.task, 5)
        assert slow.status == 408
        assert (await held.begin(CALL, declared=1000)).status == 0

    asyncio.run(tried())
