"""The status page: read-only, on loopback, one file without scripts that renews itself.

``/`` is the page, ``/status.json`` the same as JSON, ``/metrics`` the same for Prometheus. Whoever
wants it elsewhere puts a proxy with a log-in before it.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Mapping, Sequence
from functools import cache
from typing import Any

from hushtune.common.errors import HushtuneError
from hushtune.common.json_text import json_text
from hushtune.common.pages import page_environment
from hushtune.common.privacy.figures import epsilon_text
from hushtune.server.deployment.guard import Event, Receive, Scope, Send
from hushtune.server.deployment.home import Home
from hushtune.server.deployment.metrics_text import metrics_text
from hushtune.server.deployment.status import ago_text, bytes_text, doing, federation_status
from hushtune.server.deployment.watch import Watch

REFRESH_SECONDS = 5
_POLICY = "default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
_WIDTH, _HEIGHT, _MARGIN = 640.0, 180.0, 36.0


class StatusPage:
    """The page as an ASGI application.

    A browser that was led here under another host's name (DNS rebinding) is turned away.
    """

    def __init__(self, home: Home, watch: Watch, *, port: int) -> None:
        self._home = home
        self._watch = watch
        self._hosts = {f"127.0.0.1:{port}".encode(), f"localhost:{port}".encode()}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            return
        headers = dict(scope["headers"])
        if headers.get(b"host") not in self._hosts:
            await _send(send, 403, "text/plain", "this page is for this machine\n")
        elif scope["method"] not in ("GET", "HEAD"):
            await _send(send, 405, "text/plain", "this page is read-only\n")
        else:
            status, kind, text = await asyncio.to_thread(self._answer, scope["path"])
            await _send(send, status, kind, text)

    def _answer(self, path: str) -> tuple[int, str, str]:
        if path not in ("/", "/status.json", "/metrics"):
            return 404, "text/plain", "there are /, /status.json and /metrics\n"
        try:
            found = federation_status(self._home, self._watch.snapshot(now=time.time()))
        except HushtuneError as error:
            return 500, "text/plain", f"{error}\n"
        if path == "/status.json":
            return 200, "application/json", json_text(found)
        if path == "/metrics":
            return 200, "text/plain; version=0.0.4", metrics_text(found)
        return 200, "text/html", render_page(found)


def render_page(status: Mapping[str, Any], *, refresh: int = REFRESH_SECONDS) -> str:
    """The page of what ``federation_status`` returned; all text in it is escaped."""
    run = status["run"]
    now = status["time"]
    return _template().render(
        status=status,
        run=run,
        refresh=refresh,
        curve=None if run is None else curve(run["losses"], rounds=run["rounds"] or 1),
        doing=doing,
        done=0 if run is None else round(100 * (run["round"] or 0) / max(1, run["rounds"] or 1)),
        clock=time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(now)),
        ago=lambda moment: ago_text(moment, now=now),
    )


def curve(losses: Sequence[Sequence[float]], *, rounds: int) -> dict[str, Any] | None:
    """The polyline of a loss a round in a picture of 640 x 180; None of fewer than two points."""
    if len(losses) < 2:
        return None
    values = [value for _, value in losses]
    low, high = min(values), max(values)
    span = (high - low) or 1.0

    def place(number: float, value: float) -> tuple[float, float]:
        x = _MARGIN + (_WIDTH - 1.5 * _MARGIN) * (number - 1) / max(1, rounds - 1)
        y = _MARGIN / 2 + (_HEIGHT - 1.5 * _MARGIN) * (1 - (value - low) / span)
        return round(x, 1), round(y, 1)

    points = [place(number, value) for number, value in losses]
    return {
        "points": " ".join(f"{x},{y}" for x, y in points),
        "last": points[-1],
        "low": f"{low:.3f}",
        "high": f"{high:.3f}",
        "first_round": losses[0][0],
        "last_round": losses[-1][0],
    }


@cache
def _template() -> Any:
    environment = page_environment("hushtune.server.deployment")
    environment.filters |= {"bytes": bytes_text, "epsilon": epsilon_text}
    return environment.get_template("page.html.j2")


async def _send(send: Send, status: int, kind: str, text: str) -> None:
    body = text.encode("utf-8")
    charset = "" if "json" in kind else "; charset=utf-8"
    start: Event = {
        "type": "http.response.start",
        "status": status,
        "headers": [
            (b"content-type", f"{kind}{charset}".encode()),
            (b"content-length", b"%d" % len(body)),
            (b"content-security-policy", _POLICY.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"no-referrer"),
            (b"cache-control", b"no-store"),
        ],
    }
    await send(start)
    await send({"type": "http.response.body", "body": body})
