"""Speaks with the coordinator's own server, over the port that is this machine's alone."""

from __future__ import annotations

import os
from collections.abc import Generator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import httpx

from hushtune.common.errors import DeploymentError, UnreachableError
from hushtune.server.deployment.home import Home
from hushtune.server.deployment.local_token import HEADER, TokenHeader, read_token

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient


_LOOPBACK = ("127.0.0.1", "localhost")


def stay_on_this_machine() -> None:
    """Have no proxy that the environment names stand between us and our own server: it would see
    the token, and could not reach it."""
    for name in ("NO_PROXY", "no_proxy"):
        there = [one.strip() for one in os.environ.get(name, "").split(",") if one.strip()]
        os.environ[name] = ",".join([*there, *(one for one in _LOOPBACK if one not in there)])


@contextmanager
def control(home: Home) -> Generator[ControlHttpClient]:
    """Flower's Control API; UnreachableError where the server does not run."""
    from flwr.supercore.control import ControlHttpClient
    from flwr.supercore.interceptors import RuntimeVersionHttpInterceptor

    stay_on_this_machine()
    client = ControlHttpClient.from_server_address(
        home.local,
        insecure=True,
        root_certificates=None,
        interceptors=[
            RuntimeVersionHttpInterceptor(component_name="flwr CLI"),
            TokenHeader(read_token(home) or ""),
        ],
    )
    try:
        yield client
    except httpx.HTTPStatusError as error:
        raise DeploymentError(
            "the server refused what it was asked for",
            given=f"{error.response.status_code}: {error.response.text[:300]}",
            remedy=f"see the log in {home.flower}",
        ) from error
    except httpx.TransportError as error:
        raise UnreachableError(
            "the coordinator's server does not run",
            given=f"{home.local}: {error}",
            remedy=f"hushtune server start {home.folder}",
        ) from error
    finally:
        client.close()


def link_state(home: Home) -> dict[str, Any] | None:
    """What the running server counts (``Watch.snapshot``); None where none runs."""
    headers = {HEADER: read_token(home) or ""}
    try:  # past a proxy that the environment names, which must not see the token
        url = f"http://{home.local}/hushtune/state"
        answer = httpx.get(url, headers=headers, timeout=5.0, trust_env=False)
        found: Any = answer.json()
    except (httpx.HTTPError, ValueError):
        return None
    return found if answer.status_code == 200 and isinstance(found, dict) else None
