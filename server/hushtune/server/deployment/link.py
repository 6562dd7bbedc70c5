"""The coordinator's server: Flower's SuperLink, behind one door for sites and one for this machine.

Both doors lead to one application in one event loop. Sites come by TLS to ``PublicGuard``; on
loopback are the commands of this machine, and Flower's SuperExec, which starts a run's ServerApp.
"""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import ssl
import sys
import time
from collections.abc import Callable, Generator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

import uvicorn

from hushtune.common.environment import be_quiet
from hushtune.common.errors import BusyError, DeploymentError
from hushtune.common.signing import load_signing_key
from hushtune.server.deployment.certificates import (
    check_certificates,
    expiry_warning,
    server_context,
)
from hushtune.server.deployment.control import stay_on_this_machine
from hushtune.server.deployment.doors import MOST, DoorServer, allow_files
from hushtune.server.deployment.enrol import KnownKeys
from hushtune.server.deployment.home import FOLDER_VARIABLE, Home
from hushtune.server.deployment.local_token import make_token
from hushtune.server.deployment.lock import held
from hushtune.server.deployment.logs import close_log, open_log, tell
from hushtune.server.deployment.superexec import SuperExec
from hushtune.server.deployment.watch import Watch

if TYPE_CHECKING:
    from fastapi import FastAPI

DATABASE, LOG = "superlink.sqlite", "server.jsonl"
_TICK, _DAY = 2.0, 86400.0
_GRACE = 3


def serve(
    home: Home,
    *,
    page_port: int | None = None,
    quiet: bool = False,
    on_ready: Callable[[Watch], None] | None = None,
) -> None:
    """Run the server until SIGTERM or SIGINT; its children end with it.

    Args:
        page_port: of the status page on loopback; none without it.
        quiet: that the log goes to its file alone.
        on_ready: called once sites can come.

    Raises:
        BusyError: it runs already, or one of its ports is in use.
        CertificateError, KeyFileError: see ``check_certificates``.
    """
    running = BusyError(
        "the server of this folder runs already",
        given=str(home.folder),
        expected="one at a time",
        remedy=f"hushtune server status {home.folder}",
    )
    with held(home.flower / "server.lock", busy=running):
        until = check_certificates(home.certificates, host=home.host, now=datetime.now(UTC))
        load_signing_key(home.signing_key)
        prepare_environment(home)
        allow_files()
        log = open_log(home.flower / LOG, stream=None if quiet else sys.stderr)
        sockets: list[socket.socket] = []
        try:
            say = partial(tell, log)
            sockets.append(_bind(*home.listen, what="sites", key="listen"))
            local = ("127.0.0.1", home.settings.local_port)
            sockets.append(_bind(*local, what="this machine's own commands", key="local_port"))
            if page_port is not None:
                sockets.append(_bind("127.0.0.1", page_port, what="the status page", key="--page"))
            watch = Watch(started=time.time(), tell=say)
            warning = expiry_warning(until, now=datetime.now(UTC))
            if warning is not None:
                say("certificate", level="WARNING", message=warning)
            asyncio.run(_Link(home, watch, sockets, on_ready).run())
            say("stopped")
        finally:
            for each in sockets:
                each.close()
            close_log(log)


def prepare_environment(home: Home) -> None:
    """What Flower's processes inherit: its folder, ours, and where their commands are."""
    be_quiet()
    stay_on_this_machine()
    programs = str(Path(sys.executable).parent)
    os.environ |= {
        "FLWR_HOME": str(home.flower),
        FOLDER_VARIABLE: str(home.folder),
        "PATH": os.pathsep.join([programs, os.environ.get("PATH", os.defpath)]),
        "FLWR_SUPEREXEC_TASK_POLL_INTERVAL": "0.5",
    }


def superlink(home: Home, secret: bytes) -> FastAPI:
    """Flower's application; it starts nothing by itself."""
    from flwr.superlink.cli.flower_superlink import SuperLinkLifespan
    from flwr.superlink.config_loader import SuperLinkLifespanConfig, load_control_authn_plugin
    from flwr.superlink.main import create_app

    config = SuperLinkLifespanConfig(
        control_address=home.local,
        health_server_address=None,
        host="127.0.0.1",
        port=home.settings.local_port,
        insecure=True,  # of loopback; sites come by TLS
        certificates=None,
        superexec_auth_secret=secret,
        authn_plugin=load_control_authn_plugin(),
        event_log_plugin=None,
        fleet_event_log_plugin=None,
        enable_event_log=False,
        artifact_provider=None,
        enable_supernode_auth=True,
        fleet_api_type="grpc-rere",
        fleet_api_address=None,
        simulation=False,
        ssl_ca_certfile=None,
        ssl_certfile=None,
        ssl_keyfile=None,
        database=str(home.flower / DATABASE),
        isolation="process",  # we start the SuperExec ourselves: with a secret, and its own log
        runtime_dependency_install=False,
    )
    return create_app(config, SuperLinkLifespan)


class _Server(uvicorn.Server):
    """Leaves signals to us: two of these would take them from each other."""

    @contextmanager
    def capture_signals(self) -> Generator[None]:
        yield


class _PublicServer(_Server, DoorServer):
    """The one that whoever reaches the port can connect to."""


class _Link:
    """The servers of one process and what belongs to them."""

    def __init__(
        self,
        home: Home,
        watch: Watch,
        sockets: Sequence[socket.socket],
        on_ready: Callable[[Watch], None] | None,
    ) -> None:
        from hushtune.server.deployment.guard import App, LocalGuard, PublicGuard
        from hushtune.server.deployment.page import StatusPage

        self._home = home
        self._watch = watch
        self._sockets = sockets
        self._on_ready = on_ready
        self._superexec = SuperExec(home)
        flower = cast(App, superlink(home, self._superexec.secret))
        self._tls = server_context(home.certificates)
        self._stamp = home.certificates.server.stat().st_mtime_ns
        public = PublicGuard(
            flower,
            keys=KnownKeys(home),
            limit=home.settings.max_request_mib * 2**20,
            message_limit=home.settings.max_message_mib * 2**20,
            watch=watch,
        )
        port, token = home.settings.local_port, make_token(home)
        local = LocalGuard(flower, port=port, token=token, watch=watch)
        # The application's lifespan is one: that of the first of these.
        self._servers = [
            _server(local, lifespan="on"),
            _server(public, lifespan="off", tls=self._tls),
        ]
        if len(sockets) > 2:
            port = sockets[2].getsockname()[1]
            self._servers.append(_server(StatusPage(home, watch, port=port), lifespan="off"))
        self._sockets = [sockets[1], sockets[0], *sockets[2:]]

    async def run(self) -> None:
        """Serve until a signal comes, or one of the parts ends."""
        stop = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stop.set)
        tasks = [
            asyncio.create_task(server.serve(sockets=[each]))
            for server, each in zip(self._servers, self._sockets, strict=True)
        ]
        stopping = asyncio.create_task(stop.wait())
        try:
            while not all(server.started for server in self._servers):
                if stop.is_set() or any(task.done() for task in tasks):
                    break
                await asyncio.sleep(0.02)
            else:
                self._superexec.start()
                self._ready()
            watching = asyncio.create_task(self._tend())
            await asyncio.wait([*tasks, stopping, watching], return_when=asyncio.FIRST_COMPLETED)
            watching.cancel()
        finally:
            stopping.cancel()
            await asyncio.to_thread(self._superexec.stop)
            for server in self._servers[1:]:
                server.should_exit = True
            await asyncio.gather(*tasks[1:], return_exceptions=True)
            self._servers[0].should_exit = True
            await asyncio.gather(*tasks, return_exceptions=True)
        for task in tasks:
            task.result()

    def _ready(self) -> None:
        host, port = self._home.listen
        self._watch.tell(
            "started",
            address=self._home.settings.address,
            listen=f"{host}:{port}",
            local=self._home.local,
            process=os.getpid(),
        )
        if self._on_ready is not None:
            self._on_ready(self._watch)

    async def _tend(self) -> None:
        """Take up a renewed certificate, warn of an old one, and start a SuperExec that died."""
        warned = time.monotonic()
        while True:
            await asyncio.sleep(_TICK)
            if self._superexec.restart_if_dead():
                self._watch.tell("restarted", level="WARNING", process="SuperExec")
            paths = self._home.certificates
            try:
                stamp = paths.server.stat().st_mtime_ns
                if stamp != self._stamp:
                    self._stamp = stamp
                    check_certificates(paths, host=self._home.host, now=datetime.now(UTC))
                    self._tls.load_cert_chain(paths.server, paths.key, password=lambda: "")
                    self._watch.tell("certificate", message="the renewed certificate is in use")
                if time.monotonic() - warned >= _DAY:
                    warned = time.monotonic()
                    now = datetime.now(UTC)
                    until = check_certificates(paths, host=self._home.host, now=now)
                    if (warning := expiry_warning(until, now=now)) is not None:
                        self._watch.tell("certificate", level="WARNING", message=warning)
            except (DeploymentError, OSError, ssl.SSLError) as error:
                self._watch.tell("certificate", level="ERROR", message=str(error))


def _server(
    app: Any,
    *,
    lifespan: Any,
    tls: ssl.SSLContext | None = None,
) -> _Server:
    config = uvicorn.Config(
        app,
        lifespan=lifespan,
        log_config=None,
        access_log=False,
        server_header=False,
        ws="none",
        limit_concurrency=None if tls is None else MOST,
        timeout_graceful_shutdown=_GRACE,
    )
    config.load()
    config.ssl = tls
    return _Server(config) if tls is None else _PublicServer(config)


def _bind(host: str, port: int, *, what: str, key: str) -> socket.socket:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    found = socket.socket(family, socket.SOCK_STREAM)
    try:
        found.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if host == "::":
            found.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 0)
        found.bind((host, port))
    except OSError as error:
        found.close()
        raise BusyError(
            f"the port for {what} cannot be listened on",
            given=f"{host}:{port}: {error.strerror or error}",
            expected="a port that is free, and an address of this machine",
            remedy=f"stop what listens there, or change {key}",
        ) from error
    found.setblocking(False)
    return found
