"""The server as a process: what it serves to whom, whom it lets in, and how it ends."""

from __future__ import annotations

import asyncio
import json
import os
import re
import resource
import signal
import ssl
import subprocess
import sys
import time
from base64 import b64encode
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path

import httpx
import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    PublicFormat,
)
from flwr.supercore.primitives.asymmetric import public_key_to_bytes, sign_message

from hushtune.common.deployment import SiteCard
from hushtune.common.ports import free_port
from hushtune.common.signing import public_text
from hushtune.server.deployment.control import link_state
from hushtune.server.deployment.enrol import enrol, revoke
from hushtune.server.deployment.home import Home, init_home
from hushtune.server.deployment.local_token import HEADER, read_token

from .processes import COMMAND, environment, wait_until

pytestmark = pytest.mark.slow

LIMIT = 2**20
UNKNOWN = "this node's key is not enrolled here"


def make_card(name: str, folder: Path) -> tuple[SiteCard, ec.EllipticCurvePrivateKey]:
    """A card of a made-up site, and its node key, which is written as a SuperNode reads it."""
    key = ec.generate_private_key(ec.SECP384R1())
    path = folder / f"{name}.key"
    path.write_bytes(key.private_bytes(Encoding.PEM, PrivateFormat.OpenSSH, NoEncryption()))
    path.chmod(0o600)
    public = key.public_key().public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode()
    return SiteCard(
        name=name, node_key=public, sign_key=public_text(Ed25519PrivateKey.generate())
    ), key


class Server:
    """A server in a process of its own."""

    def __init__(self, home: Home, output: Path) -> None:
        self.home, self.output = home, output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [*COMMAND, "server", "start", str(home.folder), "--page", str(home.listen[1] + 2)],
                env=environment(),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
            )
        wait_until(lambda: link_state(home) is not None, seconds=60, why=self.said)

    def said(self) -> str:
        return self.output.read_text(encoding="utf-8")

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout=20)


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Server]:
    root = tmp_path_factory.mktemp("link")
    port = free_port()
    home = init_home(root / "c", name="test", address=f"localhost:{port}", now=datetime.now(UTC))
    settings = home.folder / "server.toml"
    settings.write_text(settings.read_text() + "max_request_mib = 1\n")
    made = Server(home, root / "server.out")
    try:
        yield made
    finally:
        if made.process.poll() is None:
            made.process.kill()
            made.process.wait()


def sites_client(home: Home) -> httpx.Client:
    context = ssl.create_default_context(cafile=str(home.certificates.authority))
    return httpx.Client(base_url=f"https://{home.settings.address}", verify=context, timeout=20)


def headers(key: ec.EllipticCurvePrivateKey, *, behind: float = 0.0) -> dict[str, str]:
    """As a SuperNode signs its requests."""
    stamp = (datetime.now(UTC) - timedelta(seconds=behind)).isoformat()
    return {
        "flwr-public-key": b64encode(public_key_to_bytes(key.public_key())).decode(),
        "flwr-signature": b64encode(sign_message(key, stamp.encode())).decode(),
        "flwr-timestamp": stamp,
        "content-type": "application/protobuf",
    }


def test_sites_reach_what_a_node_calls_and_nothing_else(server: Server) -> None:
    with sites_client(server.home) as client:
        told = client.get("/v1/fleet/hushtune/time").json()
        assert abs(told["time"] - time.time()) < 5
        for path in (
            "/v1/control/list-nodes",
            "/v1/control/start-run",
            "/v1/runtime/acquire-task",
            "/v1/fleet/register-node",
            "/v1/fleet/unregister-node",
            "/v1/fleet/../control/list-nodes",
            "/v1/fleet/%2e%2e/control/list-nodes",
            "/v1/fleet//pull-messages",
            "/hushtune/state",
            "/openapi.json",
            "/docs",
            "/health",
        ):
            assert client.post(path).status_code == 404, path
            assert client.get(path).status_code == 404, path
        assert client.get("/v1/fleet/pull-messages").status_code == 404
    with pytest.raises(httpx.TransportError):
        httpx.get(f"http://{server.home.settings.address}/v1/fleet/hushtune/time")


def test_old_tls_is_refused(server: Server) -> None:
    context = ssl.create_default_context(cafile=str(server.home.certificates.authority))
    context.set_ciphers("DEFAULT@SECLEVEL=0")
    with pytest.warns(DeprecationWarning, match="TLS"):
        context.minimum_version = context.maximum_version = ssl.TLSVersion.TLSv1_1
    with pytest.raises(httpx.TransportError):
        httpx.get(f"https://{server.home.settings.address}/v1/fleet/hushtune/time", verify=context)


def test_a_site_is_let_in_by_its_key_and_clock_and_out_when_revoked(
    server: Server, tmp_path: Path
) -> None:
    home = server.home
    card, key = make_card("north", tmp_path)
    _, stranger = make_card("stranger", tmp_path)
    with sites_client(home) as client:
        path = "/v1/fleet/pull-messages"
        assert client.post(path).status_code == 401
        unknown = client.post(path, headers=headers(key))
        assert (unknown.status_code, unknown.json()["detail"]) == (401, UNKNOWN)
        enrol(home, card)
        late = client.post(path, headers=headers(key, behind=400))
        assert late.status_code == 401
        assert "400 s behind" in late.json()["detail"]
        assert client.post(path, headers=headers(stranger)).status_code == 401
        # Let in by the guard, and refused by Flower: an empty message names no node.
        assert client.post(path, headers=headers(key), content=b"").status_code == 401
        whole = headers(key)
        for content in (b"x" * (LIMIT + 1), (b"y" * 2**16 for _ in range(17))):
            assert client.post(path, headers=whole, content=content).status_code == 413
        revoke(home, "north")
        assert client.post(path, headers=headers(key), content=b"").json()["detail"] == UNKNOWN
        enrol(home, card)
        again = client.post(path, headers=headers(key), content=b"")
        assert (again.status_code, again.json()["detail"] == UNKNOWN) == (401, False)
        revoke(home, "north")
    state = link_state(home)
    assert state is not None
    assert {"unknown key", "clock", "too large", "no key"} <= set(state["rejections"])
    lines = [json.loads(line) for line in server.said().splitlines()]
    clocks = [line for line in lines if line.get("reason") == "clock"]
    assert clocks[0]["site"] == "north"
    assert clocks[0]["seconds"] == pytest.approx(400, abs=5)


def test_an_enrolled_node_connects(server: Server, tmp_path: Path) -> None:
    home = server.home
    card, _ = make_card("south", tmp_path)
    site = enrol(home, card)
    port = free_port()
    node = subprocess.Popen(
        [
            str(Path(sys.executable).parent / "flower-supernode"),
            *("--superlink", home.settings.address, "--isolation", "process"),
            *("--root-certificates", str(home.certificates.authority)),
            *("--auth-supernode-private-key", str(tmp_path / "south.key")),
            *("--host", "127.0.0.1", "--port", str(port)),
        ],
        env={**environment(), "FLWR_HOME": str(tmp_path / "flwr")},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.DEVNULL,
    )
    try:

        def connected() -> bool:
            state = link_state(home)
            return bool(state and state["sites"].get("south", {}).get("connected"))

        wait_until(connected, seconds=60, why=server.said)
        from flwr.proto.control_pb2 import ListNodesRequest

        from hushtune.server.deployment.control import control

        with control(home) as client:
            nodes = {n.node_id: n.status for n in client.ListNodes(ListNodesRequest()).nodes_info}
        assert nodes[site.node] == "online"
        page = httpx.get(f"http://127.0.0.1:{home.listen[1] + 2}/").text
        assert "south" in page
        assert "1 of 1 connected" in page
    finally:
        node.kill()
        node.wait()


def test_a_page_in_a_browser_cannot_use_the_local_side(server: Server) -> None:
    state = f"http://{server.home.local}/hushtune/state"
    own = {HEADER: read_token(server.home) or ""}
    assert httpx.get(state, headers=own).status_code == 200
    for foreign in ({"origin": "http://evil.example"}, {"host": "evil.example"}):
        assert httpx.get(state, headers={**own, **foreign}).status_code == 403


def test_another_user_of_this_machine_starts_no_run(server: Server) -> None:
    """What a ServerApp runs, it runs as the coordinator: it could read the signing key."""
    from flwr.proto.control_pb2 import ListRunsRequest

    from hushtune.server.deployment.control import control

    home = server.home
    assert home.local_token.stat().st_mode & 0o777 == 0o600
    assert home.flower.stat().st_mode & 0o077 == 0
    with httpx.Client(base_url=f"http://{home.local}") as client:
        for path in ("/v1/control/start-run", "/v1/control/list-nodes", "/v1/fleet/register-node"):
            for headers in ({}, {HEADER: "guessed"}):
                assert client.post(path, headers=headers).status_code == 401, path
        assert client.get("/hushtune/state").status_code == 401
        # Flower's own processes have a secret of their own, and none is told here.
        assert client.post("/v1/runtime/acquire-task").status_code not in (200, 404)
    with control(home) as client:
        assert dict(client.ListRuns(ListRunsRequest()).run_dict) == {}


async def _idle(home: Home, number: int, *, tls: bool) -> list[asyncio.StreamWriter]:
    """Connections over which nothing is sent."""
    host, port = home.settings.address.split(":")
    context = ssl.create_default_context(cafile=str(home.certificates.authority))
    slots = asyncio.Semaphore(20)

    async def one() -> asyncio.StreamWriter:
        async with slots:
            made = asyncio.open_connection(
                "127.0.0.1",
                int(port),
                ssl=context if tls else None,
                server_hostname=host if tls else None,
            )
            return (await made)[1]

    return await asyncio.gather(*(one() for _ in range(number)))


def _whole_request(home: Home, key: ec.EllipticCurvePrivateKey) -> httpx.Response:
    with sites_client(home) as client:
        return client.post("/v1/fleet/pull-messages", headers=headers(key), content=b"")


def test_idle_connections_shut_no_site_out(server: Server, tmp_path: Path) -> None:
    home = server.home
    limits = Path(f"/proc/{server.process.pid}/limits").read_text(encoding="ascii")
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    assert re.search(rf"^Max open files +{min(hard, 65536)} ", limits, re.MULTILINE)
    card, key = make_card("early", tmp_path)
    enrol(home, card)

    async def tried() -> list[tuple[int, str]]:
        silent = await _idle(home, 600, tls=False)
        idle = await _idle(home, 600, tls=True)
        answers = [await asyncio.to_thread(_whole_request, home, key) for _ in range(3)]
        for writer in (*silent, *idle):
            writer.transport.abort()
        return [(each.status_code, each.text) for each in answers]

    resource.setrlimit(resource.RLIMIT_NOFILE, (max(soft, min(hard, 4096)), hard))
    try:
        answers = asyncio.run(tried())
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
        revoke(home, "early")
    # Let in by the guard, and refused by Flower: an empty message names no node.
    assert [status for status, _ in answers] == [401] * 3
    assert all(UNKNOWN not in text for _, text in answers)


def test_a_head_that_drips_is_not_waited_for(server: Server) -> None:
    host, port = server.home.settings.address.split(":")
    context = ssl.create_default_context(cafile=str(server.home.certificates.authority))

    async def tried() -> float:
        reader, writer = await asyncio.open_connection(
            "127.0.0.1", int(port), ssl=context, server_hostname=host
        )
        began = time.monotonic()
        writer.write(b"POST /v1/fleet/pull-messages HTTP/1.1\r\n")
        with suppress(OSError):
            while not reader.at_eof() and time.monotonic() - began < 60:
                writer.write(b"x: y\r\n")
                await asyncio.wait_for(writer.drain(), 5)
                await asyncio.sleep(0.5)
        took = time.monotonic() - began
        writer.transport.abort()
        return took

    assert 5 < asyncio.run(tried()) < 40


def test_a_second_server_is_refused(server: Server) -> None:
    done = subprocess.run(
        [*COMMAND, "server", "start", str(server.home.folder)],
        env=environment(),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 2
    assert "HT806" in done.stderr


def test_it_ends_with_its_children(server: Server) -> None:
    def children() -> list[int]:
        found: list[int] = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                with suppress(OSError):
                    line = (entry / "cmdline").read_bytes()
                    if b"flower-superexec" in line and str(server.home.folder).encode() in line:
                        found.append(int(entry.name))
        return found

    assert len(children()) == 1
    os.kill(children()[0], signal.SIGKILL)
    wait_until(lambda: len(children()) == 1, seconds=20)  # it is started again
    assert server.stop() == 0
    wait_until(lambda: not children(), seconds=5)
    assert json.loads(server.said().splitlines()[-1])["event"] == "stopped"
