"""What stands before Flower's SuperLink: who and what is let in from outside, and from inside.

Flower serves three interfaces on one port. Of these a site needs one, and the others would let
whoever reaches the port start runs. Here the public side has what a SuperNode calls and nothing
else, knows the sender before it reads what was sent, and reads no more than a bound, of a request
and of all that a site sends at once.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import json
import time
from base64 import b64decode
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from flwr.common.constant import (
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.proto.fleet_pb2 import PushMessagesRequest
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature
from google.protobuf.message import DecodeError

from hushtune.server.deployment.local_token import HEADER, fits
from hushtune.server.deployment.watch import Rejection, Watch

FLEET = frozenset(
    f"/v1/fleet/{name}"
    for name in (
        "activate-node",
        "deactivate-node",
        "send-node-heartbeat",
        "pull-messages",
        "push-messages",
        "get-run",
        "get-fab",
        "push-object",
        "pull-object",
        "confirm-message-received",
    )
)
"""What a SuperNode calls; nodes are registered by the coordinator alone."""

TIME = "/v1/fleet/hushtune/time"
"""GET, by anyone: ``{"hushtune": "server", "time": seconds since 1970}``."""
STATE = "/hushtune/state"
"""GET, from this machine, with the token: ``Watch.snapshot``."""
RUNTIME = ("/v1/runtime/",)
"""Of Flower's processes on this machine, which show it secrets of its own."""

_PIECE, _ORDER = "/v1/fleet/push-object", "/v1/fleet/pull-messages"
_SENDER = (FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER, TIMESTAMP_HEADER)
_ANSWER = "/v1/fleet/push-messages"
_BODY_SECONDS = 120.0
AT_ONCE = 8
"""Requests of one site at a time. Flower 1.41 has two pieces, a sign of life and a call."""

_STATUS = {"too large": 413, "too slow": 408, "too many": 429, "no answer of its own": 403}

Scope = MutableMapping[str, Any]
Event = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Event]]
Send = Callable[[Event], Awaitable[None]]
App = Callable[[Scope, Receive, Send], Awaitable[None]]
Keys = Callable[[], Mapping[bytes, str]]
"""Site by node key (PEM), of those that are enrolled now."""


def examine(
    headers: Mapping[str, str], keys: Mapping[bytes, str], *, now: datetime
) -> Rejection | str:
    """The site that a request is of, or why it is of none.

    Flower's own check, which comes after this one, tells neither which part failed nor by how much.

    Args:
        headers: by lower-case name.
        keys: see ``Keys``.
    """
    try:
        key = b64decode(headers[FLEET_HTTP_PUBLIC_KEY_HEADER], validate=True)
        signature = b64decode(headers[FLEET_HTTP_SIGNATURE_HEADER], validate=True)
        stamp = headers[TIMESTAMP_HEADER]
        signed = datetime.fromisoformat(stamp)
        signed = signed if signed.tzinfo else signed.replace(tzinfo=UTC)
    except (KeyError, ValueError, binascii.Error):
        return Rejection("no key")
    name, site = hashlib.sha256(key).hexdigest()[:32], keys.get(key)
    if site is None:
        return Rejection("unknown key", key=name)
    if not verify_signature(bytes_to_public_key(key), stamp.encode("utf-8"), signature):
        return Rejection("signature", key=name)
    age = (now - signed).total_seconds()
    if not -SYSTEM_TIME_TOLERANCE < age < TIMESTAMP_TOLERANCE + SYSTEM_TIME_TOLERANCE:
        return Rejection("clock", key=name, site=site, seconds=age)
    return site


def is_own_answer(body: bytes) -> bool:
    """Whether a request to keep messages has one, which the node that it names gives as an answer.

    Flower compares that node with the key, but not with who the message says it is from: it would
    keep one that is no answer as an order, for any other site.
    """
    try:
        asked = PushMessagesRequest.FromString(body)
    except DecodeError:
        return False
    heads = [message.metadata for message in asked.messages_list]
    return [head.src_node_id for head in heads] == [asked.node.node_id] and bool(
        heads[0].reply_to_message_id
    )


@dataclass(eq=False)
class _Reading:
    """An open request, with the bytes that it has, or has announced; 0 once Flower keeps them."""

    piece: bool
    size: int


class PublicGuard:
    """The public side, as an ASGI application around Flower's.

    Args:
        app: Flower's.
        keys: see ``Keys``; asked for each request.
        limit: bytes that a request may have, and all requests of a site that are open at once;
            but for pieces.
        message_limit: bytes that the pieces of one message may have together, with what is
            announced of those that are still coming.
        watch: where it is counted who came.
        body_seconds: in which a request has to be there.
    """

    def __init__(
        self,
        app: App,
        *,
        keys: Keys,
        limit: int,
        watch: Watch,
        message_limit: int = 2**62,
        body_seconds: float = _BODY_SECONDS,
    ) -> None:
        self._app = app
        self._keys = keys
        self._limit = limit
        self._message_limit = message_limit
        self._body_seconds = body_seconds
        self._pieces: Counter[str] = Counter()  # bytes by site, since it last got an order
        self._open: dict[str, list[_Reading]] = {}
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            if scope["type"] == "websocket":
                await send({"type": "websocket.close", "code": 1008})
            return
        path, method = scope["path"], scope["method"]
        if path == TIME and method == "GET":
            await answer(send, 200, {"hushtune": "server", "time": time.time()})
            return
        if path not in FLEET or method != "POST":
            await answer(send, 404, {"detail": "Not Found"})
            return
        headers = _headers(scope)
        if _said_twice(scope):
            found = Rejection("no key")
        else:
            found = examine(headers, self._keys(), now=datetime.now(UTC))
        if isinstance(found, Rejection):
            await self._refuse(scope, send, found)
            return
        declared = headers.get("content-length", "0")
        if not declared.isdigit():
            await self._refuse(scope, send, Rejection("too large", site=found))
            return
        reading = _Reading(piece=path == _PIECE, size=int(declared))
        requests = self._open.setdefault(found, [])
        requests.append(reading)
        try:
            await self._read_and_pass(scope, receive, send, reading=reading, site=found)
        finally:
            requests.remove(reading)
            if not requests:
                self._open.pop(found, None)

    async def _read_and_pass(
        self, scope: Scope, receive: Receive, send: Send, *, reading: _Reading, site: str
    ) -> None:
        if len(self._open[site]) > AT_ONCE:
            body: bytes | Rejection = Rejection("too many", site=site)
        else:
            body = await self._body(receive, reading=reading, site=site)
        if not isinstance(body, Rejection) and scope["path"] == _ANSWER and not is_own_answer(body):
            body = Rejection("no answer of its own", site=site)
        if isinstance(body, Rejection):
            reading.size = 0
            await self._refuse(scope, send, body)
            return
        if reading.piece:  # Flower keeps it from here on
            self._pieces[site] += len(body)
            reading.size = 0
        await self._pass(scope, receive, send, body=body, site=site)

    async def _body(self, receive: Receive, *, reading: _Reading, site: str) -> bytes | Rejection:
        def fits(size: int) -> bool:
            reading.size = max(reading.size, size)
            return reading.size <= self._limit and self._room(site, piece=reading.piece) >= 0

        if not fits(0):
            return Rejection("too large", site=site)
        try:
            body = await asyncio.wait_for(_read(receive, fits), self._body_seconds)
        except TimeoutError:
            return Rejection("too slow", site=site)
        return Rejection("too large", site=site) if body is None else body

    def _room(self, site: str, *, piece: bool) -> int:
        """Bytes that a site may still send at once.

        Flower takes any number of pieces of a message, and holds them in memory. It takes one
        message for each order, so that an order is where counting begins anew.
        """
        coming = sum(each.size for each in self._open[site] if each.piece == piece)
        if piece:
            return self._message_limit - self._pieces[site] - coming
        return self._limit - coming

    async def _pass(
        self, scope: Scope, receive: Receive, send: Send, *, body: bytes, site: str
    ) -> None:
        self._watch.saw(site, now=time.time(), bytes_in=len(body))
        waiting = [{"type": "http.request", "body": body, "more_body": False}]

        async def replay() -> Event:
            return waiting.pop() if waiting else await receive()

        async def counted(event: Event) -> None:
            if event.get("body"):
                if scope["path"] == _ORDER:  # without an order the answer has no bytes
                    self._pieces.pop(site, None)
                self._watch.saw(site, now=time.time(), bytes_out=len(event["body"]))
            await send(event)

        await self._app(scope, replay, counted)

    async def _refuse(self, scope: Scope, send: Send, rejection: Rejection) -> None:
        peer = (scope.get("client") or ("?",))[0]
        self._watch.refused(rejection, peer=str(peer), now=time.time())
        status = _STATUS.get(rejection.reason, 401)
        await answer(send, status, {"detail": rejection.words()})


class LocalGuard:
    """The side of this machine: all of Flower's, and ``STATE``.

    Every user of this machine can send requests here, and a page in a browser can in its user's
    name. Ours carry the coordinator's token, no Origin, and name this machine as the host; without
    the token there are ``RUNTIME``'s paths alone.
    """

    def __init__(self, app: App, *, port: int, token: str, watch: Watch) -> None:
        self._app = app
        self._token = token
        self._hosts = {f"127.0.0.1:{port}", f"localhost:{port}"}
        self._watch = watch

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http":
            headers = _headers(scope)
            if headers.get("host") not in self._hosts or "origin" in headers:
                await answer(send, 403, {"detail": "Forbidden"})
                return
            known = scope["path"].startswith(RUNTIME) or fits(headers.get(HEADER), self._token)
            if not known:
                await answer(send, 401, {"detail": "the request does not show the server's token"})
                return
            if scope["path"] == STATE and scope["method"] == "GET":
                await answer(send, 200, self._watch.snapshot(now=time.time()))
                return
        elif scope["type"] == "websocket":
            await send({"type": "websocket.close", "code": 1008})
            return
        await self._app(scope, receive, send)


async def answer(send: Send, status: int, value: object) -> None:
    """A whole JSON answer; after a refusal the connection ends, with what is still being sent."""
    body = json.dumps(value).encode("utf-8")
    headers = [(b"content-type", b"application/json"), (b"content-length", b"%d" % len(body))]
    if status >= 400:
        headers.append((b"connection", b"close"))
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _headers(scope: Scope) -> dict[str, str]:
    return {name.decode("latin-1"): value.decode("latin-1") for name, value in scope["headers"]}


def _said_twice(scope: Scope) -> bool:
    """Whether a header that names the sender is there twice: Flower might read the other one."""
    names = Counter(name.decode("latin-1").lower() for name, _ in scope["headers"])
    return any(names[name] > 1 for name in _SENDER)


async def _read(receive: Receive, fits: Callable[[int], bool]) -> bytes | None:
    """A request's body; None as soon as it does not fit any more."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            break
        part: bytes = event.get("body", b"")
        size += len(part)
        if not fits(size):
            return None
        parts.append(part)
        more = bool(event.get("more_body", False))
    return b"".join(parts)
