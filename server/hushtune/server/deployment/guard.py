"""What stands before Flower's SuperLink: who and what is let in from outside, and from inside.

Flower serves three interfaces on one port. Of these a site needs one, and the others would let
whoever reaches the port start runs. Here the public side has what a SuperNode calls and nothing
else, knows the sender before it reads what was sent, and reads no more than a bound.
"""

from __future__ import annotations

import asyncio
import binascii
import hashlib
import json
import time
from base64 import b64decode
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from datetime import UTC, datetime
from typing import Any

from flwr.common.constant import (
    SYSTEM_TIME_TOLERANCE,
    TIMESTAMP_HEADER,
    TIMESTAMP_TOLERANCE,
)
from flwr.supercore.constant import FLEET_HTTP_PUBLIC_KEY_HEADER, FLEET_HTTP_SIGNATURE_HEADER
from flwr.supercore.primitives.asymmetric import bytes_to_public_key, verify_signature

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
_BODY_SECONDS = 120.0

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


class PublicGuard:
    """The public side, as an ASGI application around Flower's.

    Args:
        app: Flower's.
        keys: see ``Keys``; asked for each request.
        limit: bytes that a request may have.
        message_limit: bytes that the pieces of one message may have together.
        watch: where it is counted who came.
    """

    def __init__(
        self, app: App, *, keys: Keys, limit: int, watch: Watch, message_limit: int = 2**62
    ) -> None:
        self._app = app
        self._keys = keys
        self._limit = limit
        self._message_limit = message_limit
        self._pieces: dict[str, int] = {}  # bytes by site, since it last got an order
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
        found = examine(headers, self._keys(), now=datetime.now(UTC))
        if isinstance(found, Rejection):
            await self._refuse(scope, send, found)
            return
        body = await self._body(headers, receive, site=found)
        if not isinstance(body, Rejection) and path == _PIECE:
            body = self._piece(body, site=found)
        if isinstance(body, Rejection):
            await self._refuse(scope, send, body)
            return
        await self._pass(scope, receive, send, body=body, site=found)

    async def _body(
        self, headers: Mapping[str, str], receive: Receive, *, site: str
    ) -> bytes | Rejection:
        declared = headers.get("content-length", "0")
        if not declared.isdigit() or int(declared) > self._limit:
            return Rejection("too large", site=site)
        try:
            body = await asyncio.wait_for(_read(receive, self._limit), _BODY_SECONDS)
        except TimeoutError:
            return Rejection("too slow", site=site)
        return Rejection("too large", site=site) if body is None else body

    def _piece(self, body: bytes, *, site: str) -> bytes | Rejection:
        """Flower takes any number of pieces of a message, and holds them in memory.

        It takes one message for each order, so that an order is where counting begins anew.
        """
        together = self._pieces.get(site, 0) + len(body)
        if together > self._message_limit:
            return Rejection("too large", site=site)
        self._pieces[site] = together
        return body

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
        status = {"too large": 413, "too slow": 408}.get(rejection.reason, 401)
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


async def _read(receive: Receive, limit: int) -> bytes | None:
    """A request's body; None as soon as it is larger than the limit."""
    parts: list[bytes] = []
    size, more = 0, True
    while more:
        event = await receive()
        if event["type"] == "http.disconnect":
            break
        part: bytes = event.get("body", b"")
        size += len(part)
        if size > limit:
            return None
        parts.append(part)
        more = bool(event.get("more_body", False))
    return b"".join(parts)
