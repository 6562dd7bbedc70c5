"""`hushtune site join`: the site's supervisor, from its lock to the good-bye to the server."""

from __future__ import annotations

import fcntl
import os
import secrets
import signal
import tomllib
from collections.abc import Callable, Generator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from rich.console import Console

from hushtune.client.deployment.history_file import HISTORY, read_history
from hushtune.client.deployment.json_log import open_log
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.deployment.status_file import Status, read_status
from hushtune.client.deployment.supervisor import EXECUTOR, NODE, Supervisor
from hushtune.client.deployment.view import shown
from hushtune.common.errors import BusyError, CertificateError
from hushtune.common.files import write_bytes, write_errors
from hushtune.common.ports import free_port
from hushtune.common.signing import load_signing_key, read_private

LOCK, LOG = "join.lock", "log.jsonl"
FLOWER, SECRET = "flower", "runtime.secret"
_PATIENCE = "600"  # seconds that the executor waits for a node that is started again


def join(folder: Path, *, console: Console | None = None) -> None:
    """Keep a site joined to its federation until SIGTERM or Ctrl-C.

    Raises BusyError where another process has joined the same site, KeyFileError for keys that are
    missing or that others may read, and what ``SiteFile.read`` does.
    """
    site = SiteFile.read(folder)
    with ExitStack() as stack:
        stack.enter_context(only_join(site.folder / LOCK))
        check_files(site)
        log = open_log(site.folder / LOG)
        stack.callback(log.close)
        home = site.folder / FLOWER
        secret = write_secret(home / SECRET)
        stack.callback(lambda: secret.unlink(missing_ok=True))
        port = [free_port()]
        supervisor = Supervisor(
            site=site,
            home=home,
            commands={
                NODE: lambda: node_arguments(site, port[0], secret),
                EXECUTOR: lambda: executor_arguments(site, port[0], secret),
            },
            renew=lambda: port.__setitem__(0, free_port()),
            log=log,
            show=stack.enter_context(shown(console or Console())),
            status=first_status(site),
            before=read_status(site.status),
        )
        stack.enter_context(told_to_stop(supervisor.stop.set))
        supervisor.run()


def node_arguments(site: SiteFile, port: int, secret: Path) -> list[str]:
    """Flower's SuperNode for a site."""
    server = site.table.server
    return [
        *("--superlink", server.address, "--root-certificates", str(server.certificate)),
        *("--auth-supernode-private-key", str(site.node_key)),
        *("--isolation", "process", "--host", "127.0.0.1", "--port", str(port)),
        *("--superexec-auth-secret-file", str(secret)),
        *("--most-megabytes", str(server.max_message_megabytes)),
    ]


def executor_arguments(site: SiteFile, port: int, secret: Path) -> list[str]:
    """The executor for a site."""
    return [
        *(str(site.file), "--runtime", f"127.0.0.1:{port}", "--secret", str(secret)),
        *("--patience", _PATIENCE),
    ]


@contextmanager
def only_join(path: Path) -> Generator[None]:
    """Hold a site's lock, which goes with this process; BusyError where another one has it."""
    with write_errors(path):
        handle = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            pid = os.pread(handle, 20, 0).decode("ascii", errors="replace").strip()
            raise BusyError(
                "this site is joined already",
                given=f"{path.parent}, by process {pid or 'unknown'}",
                expected="one join of a site at a time",
                remedy=f"look at it with `hushtune site status {path.parent}`, or end it: "
                f"kill {pid or 'PID'}",
            ) from error
        os.ftruncate(handle, 0)
        os.pwrite(handle, f"{os.getpid()}\n".encode("ascii"), 0)
        yield
    finally:
        os.close(handle)


def check_files(site: SiteFile) -> None:
    """Raise KeyFileError or CertificateError where the site's keys are not fit to join with."""
    read_private(site.node_key)
    load_signing_key(site.sign_key)
    if not site.table.server.certificate.is_file():
        raise CertificateError(
            "the certificate of the server's authority is not there",
            given=str(site.table.server.certificate),
            expected="the PEM file that `hushtune site init` took from the invitation",
            remedy="ask the coordinator for federation.toml, and put its certificate there",
        )


def write_secret(path: Path) -> Path:
    """A new secret between node and executor, for this join alone; its owner's to read."""
    write_bytes(path, secrets.token_hex(32).encode("ascii"), private=True)
    return path


def first_status(site: SiteFile) -> Status:
    """What is known of a site before it has joined."""
    orders = read_history(site.folder / HISTORY).orders
    spent = next((one.spent for one in reversed(orders) if one.spent is not None), None)
    return Status(
        site=site.name,
        server=f"{site.table.server.name} at {site.table.server.address}",
        last_order=orders[-1].to_dict() if orders else None,
        refusals=sum(one.decision != "answered" for one in orders),
        epsilon=None if spent is None else spent.epsilon,
        limit=_limit(site.table.policy),
    )


def _limit(policy: Path) -> float | None:
    """``max_epsilon`` of a policy, which is checked where it counts: at each order."""
    try:
        found = tomllib.loads(policy.read_text(encoding="utf-8")).get("max_epsilon")
    except (OSError, ValueError):
        return None
    return float(found) if isinstance(found, int | float) else None


@contextmanager
def told_to_stop(stop: Callable[[], None]) -> Generator[None]:
    """Have SIGTERM, SIGHUP and Ctrl-C ask for the end, and nothing else."""
    signals = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)
    before = {number: signal.signal(number, lambda *_: stop()) for number in signals}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
