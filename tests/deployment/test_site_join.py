"""The supervisor of a site: its lock, its keys, its children and what it tells."""

from __future__ import annotations

import datetime
import io
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from rich.console import Console

from hushtune.client.deployment.children import Child, Line, start_child
from hushtune.client.deployment.join import check_files, first_status, only_join
from hushtune.client.deployment.json_log import open_log
from hushtune.client.deployment.probe import Finding, probe
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.deployment.status_file import State, Status, read_status, write_status
from hushtune.client.deployment.supervisor import EXECUTOR, NODE, Supervisor
from hushtune.client.deployment.view import changes, picture, rows
from hushtune.common.errors import BusyError, CertificateError, KeyFileError
from hushtune.common.files import write_bytes
from hushtune.common.ports import free_port

from .institutions import coordinator_key, site_folder


def until(there: Callable[[], object], *, seconds: float) -> None:
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline
        time.sleep(0.2)


def authority() -> bytes:
    """The certificate of an authority that has signed nothing."""
    key = ec.generate_private_key(ec.SECP384R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "nobody")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now)
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
    )
    return made.sign(key, hashes.SHA384()).public_bytes(Encoding.PEM)


@pytest.fixture
def site(tmp_path: Path) -> SiteFile:
    """A site with keys whose server nobody runs."""
    folder = site_folder(
        tmp_path / "north",
        "north",
        rows=20,
        sign_key=coordinator_key(tmp_path / "coordinator"),
        address=f"127.0.0.1:{free_port()}",
    )
    key = ec.generate_private_key(ec.SECP384R1())
    pem = key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption())
    write_bytes(folder / "keys" / "node.key", pem, private=True)
    (folder / "ca.pem").write_bytes(authority())
    return SiteFile.read(folder)


def test_a_site_is_joined_once(tmp_path: Path) -> None:
    lock = tmp_path / "join.lock"
    with (
        only_join(lock),
        pytest.raises(BusyError, match="joined already") as caught,
        only_join(lock),
    ):
        pass
    assert str(os.getpid()) in str(caught.value)
    with only_join(lock):
        pass


def test_keys_that_others_may_read_are_refused(site: SiteFile) -> None:
    check_files(site)
    site.node_key.chmod(0o644)
    with pytest.raises(KeyFileError, match="read by others") as caught:
        check_files(site)
    assert "0644" in str(caught.value)
    site.node_key.chmod(0o600)
    site.table.server.certificate.unlink()
    with pytest.raises(CertificateError):
        check_files(site)


def test_a_status_is_read_as_it_was_written(site: SiteFile) -> None:
    status = replace(first_status(site), last_order=_ORDER, last_error={"message": "it is off"})
    assert status.limit == 20.0
    write_status(site.status, status)
    assert site.status.stat().st_mode & 0o777 == 0o600
    read = read_status(site.status)
    assert read is not None
    assert replace(read, updated="") == status
    site.status.write_text("{", encoding="utf-8")
    assert read_status(site.status) is None


_ORDER = {"kind": "train", "round": 3, "decision": "refused", "code": "HT401", "reason": "too much"}


def test_what_is_shown_tells_state_budget_and_refusals(site: SiteFile) -> None:
    status = replace(first_status(site), last_order=_ORDER, epsilon=1.25, refusals=2)
    told = dict(rows(status))
    assert told["epsilon"] == "1.25 of 20"
    assert told["last order"] == "train of round 3 refused (HT401 too much)"
    assert told["refused"] == "2"
    console = Console(width=100, record=True, file=io.StringIO())
    console.print(picture(status))
    assert "HT401" in console.export_text()
    assert changes(None, status)[0] == "north: starting"
    assert changes(status, status) == []
    assert changes(status, status.at(State.CONNECTED)) == ["north: connected"]


def test_a_server_that_is_not_there_is_told_from_one_without_tls(site: SiteFile) -> None:
    server = site.table.server
    assert probe(server.address, server.certificate).state == State.UNREACHABLE
    with socket.socket() as plain:
        plain.bind(("127.0.0.1", 0))
        plain.listen()
        child = os.fork()
        if not child:
            other, _ = plain.accept()
            other.sendall(b"HTTP/1.1 400 no\r\n\r\n")
            other.recv(4096)
            os._exit(0)
        address = f"127.0.0.1:{plain.getsockname()[1]}"
        assert probe(address, server.certificate).state == State.CERTIFICATE
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
    missing = site.folder / "none.pem"
    assert isinstance(probe(server.address, missing).error, CertificateError)


def supervised(site: SiteFile, *, before: Status | None = None) -> Supervisor:
    """One that has started nothing."""
    return Supervisor(
        site=site,
        home=site.folder / "flower",
        commands={NODE: list, EXECUTOR: list},
        renew=lambda: None,
        log=open_log(site.folder / "log.jsonl"),
        show=lambda _: None,
        status=first_status(site),
        before=before,
        look=lambda: Finding(State.CONNECTED),
    )


def ended(status: int) -> Child:
    """A child that has ended so."""
    process = subprocess.Popen([sys.executable, "-c", f"import os; os._exit({status})"], text=True)
    process.wait()
    return Child("child", process)


def test_a_node_that_is_not_taken_is_held_or_not_enrolled(site: SiteFile) -> None:
    """Flower says the same of both: whether the site was connected just now tells them apart."""
    refused = {"message": "Failed to initialize\n[code: 2004] Failed to activate SuperNode."}
    for before, state in (
        (None, State.NOT_ENROLLED),
        (replace(first_status(site), state=State.CONNECTED, connected_at="x"), State.HELD),
        (replace(first_status(site), state=State.STOPPED, connected_at="x"), State.NOT_ENROLLED),
    ):
        if before is not None:
            write_status(site.status, before)
        one = supervised(site, before=None if before is None else read_status(site.status))
        one._watched[NODE].child = ended(1)
        one._heard(NODE, refused)
        one._ended(NODE, one._watched[NODE])
        assert one.status.state == state
        assert one.status.restarts.node == 1
        one.log.close()


def test_orders_move_the_state_and_the_budget(site: SiteFile) -> None:
    one = supervised(site)
    one._heard(NODE, {"message": "SuperNode ID: 12"})
    assert one.status.state == State.CONNECTED
    one._heard(EXECUTOR, {"event": "order", "run": "r", "round": 3, "kind": "train"})
    assert one.status.state == State.WORKING
    spent = {"charge": 1, "epsilon": 0.5, "limit": 4.0, "delta": 1e-5}
    one._heard(EXECUTOR, {"event": "decided", **_ORDER, "spent": spent, "time": "now"})
    lines = (site.folder / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["site"] for line in lines] == [site.name] * 3
    assert (one.status.state, one.status.epsilon, one.status.limit) == (State.CONNECTED, 0.5, 4.0)
    assert one.status.refusals == 1
    one._watched[EXECUTOR].child = ended(137)
    one._ended(EXECUTOR, one._watched[EXECUTOR])
    assert one.status.last_error is not None
    assert "memory" in one.status.last_error["message"]
    one.log.close()


@pytest.mark.parametrize(
    "said",
    [
        "Connection successful after 8 seconds and 4 tries.",
        "Run ID 7 is not in `RUNNING` status. Ignoring reply message 9.",
        "Run transitioned to a non-`RUNNING` status while receiving a message. Ignoring it.",
        "Receiving: train message (ID: 9)",
    ],
)
def test_any_answer_of_the_server_ends_an_outage(site: SiteFile, said: str) -> None:
    one = supervised(site)
    one._heard(NODE, {"message": "SuperNode ID: 12"})
    one._probe = lambda: None  # nobody is to be asked here
    one._heard(NODE, {"message": "Connection attempt failed, retrying in 2 seconds"})
    assert not one._connected
    one._heard(NODE, {"message": said})
    assert one._connected
    assert one.status.state == State.CONNECTED
    one.log.close()


def test_a_child_ends_with_its_parent(tmp_path: Path) -> None:
    """By SIGKILL to the parent, which has no way to tell anybody."""
    script = (
        "import os, queue, sys, time\n"
        "from pathlib import Path\n"
        "from hushtune.client.deployment.children import start_child\n"
        "child = start_child('it', 'tests_child', [], home=Path('.'), lines=queue.Queue())\n"
        "print(child.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    (tmp_path / "tests_child.py").write_text(
        "import sys, time\n"
        "from hushtune.client.deployment.lifeline import end_with_parent\n"
        "end_with_parent(int(sys.argv[-1]))\n"
        "time.sleep(60)\n",
        encoding="utf-8",
    )
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    parent = subprocess.Popen(
        [sys.executable, "-c", script],
        env={**os.environ, "PYTHONPATH": path},
        stdout=subprocess.PIPE,
        text=True,
    )
    assert parent.stdout is not None
    with parent.stdout:
        child = int(parent.stdout.readline())
    time.sleep(1)
    parent.kill()
    parent.wait()
    until(lambda: not Path(f"/proc/{child}/stat").exists() or _gone(child), seconds=15)


def _gone(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().split()[2] == "Z"
    except OSError:
        return True


def test_lines_of_a_child_are_read(tmp_path: Path) -> None:
    lines: queue.Queue[tuple[str, Line]] = queue.Queue()
    child = start_child("it", "this", [], home=tmp_path, lines=lines)
    child.process.wait(timeout=60)
    name, line = lines.get(timeout=10)
    assert (name, line["message"]) == ("it", "The Zen of Python, by Tim Peters")


@pytest.mark.slow
def test_a_join_without_a_server_says_so_and_keeps_its_children(site: SiteFile) -> None:
    script = (
        "import sys\n"
        "from pathlib import Path\n"
        "from hushtune.client.deployment.join import join\n"
        f"join(Path({str(site.folder)!r}))\n"
        "assert 'torch' not in sys.modules\n"
    )
    joined = subprocess.Popen(
        [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    try:
        until(lambda: _state(site) == State.UNREACHABLE, seconds=90)
        log = site.folder / "log.jsonl"
        until(lambda: '"ready"' in log.read_text(encoding="utf-8"), seconds=90)
        os.kill(_executor(joined.pid), signal.SIGKILL)
        until(lambda: _restarts(site) == 1, seconds=20)
        joined.terminate()
        said, _ = joined.communicate(timeout=60)
    finally:
        joined.kill()
        joined.wait()
    assert joined.returncode == 0, said
    assert _state(site) == State.STOPPED
    assert "HT805 the server cannot be reached" in said
    assert "needed more memory" in said
    assert not (site.folder / "flower" / "runtime.secret").exists()
    assert log.stat().st_mode & 0o777 == 0o600


def _state(site: SiteFile) -> State | None:
    status = read_status(site.status)
    return None if status is None else status.state


def _restarts(site: SiteFile) -> int:
    status = read_status(site.status)
    return 0 if status is None else status.restarts.executor


def _executor(parent: int) -> int:
    for child in Path(f"/proc/{parent}/task/{parent}/children").read_text().split():
        if b"executor" in Path(f"/proc/{child}/cmdline").read_bytes():
            return int(child)
    raise AssertionError("no executor")
