"""Enrolment and runs at a server that is played here: what is asked of it, and what is refused."""

from __future__ import annotations

import json
import os
import socket
from collections.abc import Generator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
import tomli_w
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from filelock import FileLock
from flwr.proto.control_pb2 import (
    ListNodesRequest,
    ListNodesResponse,
    RegisterNodeResponse,
    StartRunResponse,
)
from flwr.proto.node_pb2 import NodeInfo

from hushtune.common.config import RunConfig
from hushtune.common.config_io import dump_toml, loads_config
from hushtune.common.deployment import SiteCard, check_run
from hushtune.common.errors import (
    BusyError,
    CheckpointError,
    ConfigError,
    DeploymentError,
    EnrolmentError,
    OutputExistsError,
    QuorumError,
    RunError,
    SignatureError,
    UnreachableError,
)
from hushtune.common.run_context import TOML
from hushtune.common.signing import load_signing_key, public_text
from hushtune.server.deployment import enrol as enrolling
from hushtune.server.deployment import follow as following
from hushtune.server.deployment import launch as launching
from hushtune.server.deployment.bundle import DEFAULTS
from hushtune.server.deployment.control import control, link_state
from hushtune.server.deployment.enrol import KnownKeys, enrol, enrolled_sites, pem_key, revoke
from hushtune.server.deployment.follow import told_error
from hushtune.server.deployment.handed_over import again_command, handed_over
from hushtune.server.deployment.home import Home, init_home
from hushtune.server.deployment.launch import launch, plan_launch
from hushtune.server.deployment.status import run_status


def card(name: str) -> SiteCard:
    key = ec.generate_private_key(ec.SECP384R1()).public_key()
    return SiteCard(
        name=name,
        node_key=key.public_bytes(Encoding.OpenSSH, PublicFormat.OpenSSH).decode(),
        sign_key=public_text(Ed25519PrivateKey.generate()),
    )


class Server:
    """Flower's Control API as far as it is used."""

    def __init__(self) -> None:
        self.nodes: dict[int, bytes] = {}
        self.started: list[Any] = []
        self.stopped: list[int] = []
        self.status = SimpleNamespace(status="running", sub_status="", details="")
        self.on_start = lambda: None

    def ListNodes(self, request: Any) -> ListNodesResponse:
        nodes = [NodeInfo(node_id=n, public_key=k, status="online") for n, k in self.nodes.items()]
        return ListNodesResponse(nodes_info=nodes)

    def RegisterNode(self, request: Any) -> RegisterNodeResponse:
        number = len(self.nodes) + 2**63 + 11
        self.nodes[number] = request.public_key
        return RegisterNodeResponse(node_id=number)

    def StartRun(self, request: Any) -> StartRunResponse:
        self.started.append(request)
        self.on_start()
        return StartRunResponse(run_id=77)

    def StopRun(self, request: Any) -> None:
        self.stopped.append(request.run_id)

    def ListRuns(self, request: Any) -> Any:
        return SimpleNamespace(run_dict={request.run_id: SimpleNamespace(status=self.status)})


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return init_home(tmp_path / "c", name="x", address="localhost:9092", now=datetime.now(UTC))


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Server:
    made = Server()

    @contextmanager
    def played(_: Home) -> Generator[Server]:
        yield made

    monkeypatch.setattr(enrolling, "control", played)
    monkeypatch.setattr(launching, "control", played)
    for name, seconds in (("_POLL", 0.01), ("_ASK_FLOWER", 0.0), ("_LAST_WORDS", 0.05)):
        monkeypatch.setattr(following, name, seconds)
    return made


def test_a_site_is_enrolled_once_and_found_by_its_key(home: Home, server: Server) -> None:
    keys, north = KnownKeys(home), card("north")
    assert keys() == {}
    site = enrol(home, north)
    assert enrolled_sites(home) == {"north": site}
    assert server.nodes == {site.node: pem_key(north)}
    assert keys() == {pem_key(north): "north"}
    with pytest.raises(EnrolmentError, match="with the same keys"):
        enrol(home, north)
    with pytest.raises(EnrolmentError, match="with another key"):
        enrol(home, card("North"))
    for key in ("node_key", "sign_key"):
        stolen = card("south").model_copy(update={key: getattr(north, key)})
        with pytest.raises(EnrolmentError, match="another site's"):
            enrol(home, stolen)
    assert list(server.nodes) == [site.node]
    assert revoke(home, "north") == site
    assert dict(keys()) == {}
    with pytest.raises(EnrolmentError, match="no site of that name"):
        revoke(home, "north")
    assert enrol(home, north).node == site.node
    assert (list(server.nodes), dict(keys())) == ([site.node], {pem_key(north): "north"})


def test_a_card_that_is_changed_in_its_place_is_read_again(home: Home, server: Server) -> None:
    keys, north, other = KnownKeys(home), card("north"), card("north")
    enrol(home, north)
    assert dict(keys()) == {pem_key(north): "north"}
    folder = home.sites.stat()
    file = home.sites / "north.json"
    file.write_text(file.read_text().replace(north.node_key, other.node_key))
    # A file system may know times no better than to a second or two.
    os.utime(home.sites, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert dict(keys()) == {pem_key(other): "north"}
    (home.sites / "south.json").write_text(file.read_text().replace("north", "south"))
    file.unlink()
    os.utime(home.sites, ns=(folder.st_atime_ns, folder.st_mtime_ns))
    assert dict(keys()) == {pem_key(other): "south"}


@pytest.mark.parametrize("damage", ["{", "[]", "\udcff", "key"])
def test_a_card_that_cannot_be_read_keeps_out_its_own_site_alone(
    home: Home, server: Server, caplog: pytest.LogCaptureFixture, damage: str
) -> None:
    keys, north = KnownKeys(home), card("north")
    enrol(home, north)
    enrol(home, card("south"))
    file = home.sites / "south.json"
    whole = json.loads(file.read_text())
    other = json.dumps({**whole, "node_key": "ecdsa-sha2-nistp384 AAAA"})
    file.write_bytes((other if damage == "key" else damage).encode("utf-8", "surrogateescape"))
    assert dict(keys()) == {pem_key(north): "north"}
    assert dict(keys()) == {pem_key(north): "north"}
    assert [str(file) in r.getMessage() for r in caplog.records] == [True]
    with pytest.raises(DeploymentError, match="cannot be read"):
        enrolled_sites(home)


def test_an_enrolment_that_was_cut_off_is_taken_up(home: Home, server: Server) -> None:
    north = card("north")
    server.nodes[5] = pem_key(north)
    assert enrol(home, north).node == 5


def test_no_proxy_hears_of_the_token(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    with socket.create_server(("127.0.0.1", 0)) as proxy:
        proxy.settimeout(0.5)
        address = f"http://127.0.0.1:{proxy.getsockname()[1]}"
        for name in ("HTTP_PROXY", "http_proxy", "ALL_PROXY", "all_proxy"):
            monkeypatch.setenv(name, address)
        for name in ("NO_PROXY", "no_proxy"):
            monkeypatch.setenv(name, "elsewhere.example")
        with pytest.raises(UnreachableError), control(home) as client:
            client.ListNodes(ListNodesRequest())
        with pytest.raises(TimeoutError):
            proxy.accept()


def test_a_server_that_does_not_run_is_named(home: Home) -> None:
    with pytest.raises(UnreachableError) as caught, control(home) as client:
        client.ListNodes(ListNodesRequest())
    assert "server start" in str(caught.value)
    assert link_state(home) is None


def config(**changes: Any) -> RunConfig:
    tree: dict[str, Any] = {
        "data": {"source": "sites", "labels": ["a", "b"], "public_sizes": {"north": 100}},
        "model": {"precision": "float32"},
        "train": {"rounds": 4, **changes},
    }
    return loads_config(tomli_w.dumps(tree))


def plan(home: Home, settings: RunConfig | None = None, *, resume: bool = False) -> Any:
    return plan_launch(home, settings, name="first", resume=resume)


def told(home: Home, **state: Any) -> None:
    folder = home.runs / "first"
    state = {"round": 0, "pid": os.getpid(), "rounds": 4, "sites": ["north"], **state}
    (folder / "state.json").write_text(json.dumps(state))


def test_a_run_is_signed_started_and_followed(home: Home, server: Server) -> None:
    enrol(home, card("north"))
    server.on_start = lambda: told(home, status="finished", round=4)
    ended = launch(home, plan(home, config()))
    assert ended["status"] == "finished"
    (asked,) = server.started
    sent = {key: getattr(v, v.WhichOneof("scalar")) for key, v in asked.override_config.items()}
    assert set(sent) == set(DEFAULTS)
    assert {k: type(v) for k, v in sent.items()} == {k: type(v) for k, v in DEFAULTS.items()}
    assert loads_config(sent[TOML]) == config()
    public = public_text(load_signing_key(home.signing_key))
    check_run(public, asked.fab.content, sent[TOML], sent["signature"])
    with pytest.raises(SignatureError):
        check_run(public, asked.fab.content, sent[TOML] + "\n", sent["signature"])
    with pytest.raises(OutputExistsError):
        plan(home, config())


def handed(home: Home, *, missing: str = "") -> None:
    """What a run that has ended leaves, as far as the hand-over tells."""
    out = home.runs / "first"
    site = {"receipt": None if missing else {}, "missing": missing}
    (out / "statement.json").write_text(json.dumps({"document": {"sites": {"north": site}}}))
    if not missing:
        (out / "receipts").mkdir(exist_ok=True)
        (out / "receipts" / "north.json").write_text("{}")


def test_a_run_that_has_ended_is_handed_over_to_those_that_lack_it(
    home: Home, server: Server
) -> None:
    enrol(home, card("north"))
    server.on_start = lambda: told(home, status="finished", round=4)
    launch(home, plan(home, config()))
    handed(home, missing="not connected")
    server.status.status = "finished"
    lacking = handed_over(home.runs / "first", ["north"])
    assert (lacking.signed, lacking.missing) == ((), {"north": "not connected"})
    assert (
        again_command(home.runs / "first")
        in lacking.words(again=again_command(home.runs / "first"))[-1]
    )
    with pytest.raises(CheckpointError, match="cannot be handed over again"):
        launch(home, plan(home, resume=True))  # it would begin anew, and charge again
    assert len(server.started) == 1
    (home.runs / "first" / "checkpoint").mkdir()
    (home.runs / "first" / "checkpoint" / "latest.hushtune").write_bytes(b"")

    def hand() -> None:
        told(home, status="finished", round=4)
        handed(home)

    server.on_start = hand
    assert launch(home, plan(home, config(), resume=True))["status"] == "finished"
    assert len(server.started) == 2
    assert server.started[1].override_config["resume"].string == "true"
    assert handed_over(home.runs / "first", ["north"]).missing == {}
    launch(home, plan(home, resume=True))  # there is nothing left to do
    assert len(server.started) == 2
    (home.runs / "first" / "receipts" / "north.json").unlink()
    assert handed_over(home.runs / "first", ["north"]).missing == {"north": "no receipt is kept"}


def test_a_run_that_fails_says_what_ended_it(home: Home, server: Server) -> None:
    enrol(home, card("north"))
    error = {"code": "HT501", "message": "too few", "given": "1", "expected": "2", "do": "wait"}
    server.on_start = lambda: told(home, status="failed", error=error)
    with pytest.raises(QuorumError, match="too few") as caught:
        launch(home, plan(home, config()))
    assert (caught.value.given, caught.value.expected, caught.value.remedy) == ("1", "2", "wait")
    assert told_error({"code": "HT999", "message": "?"}).code == "HT000"
    assert "without a word" in told_error(None).message


def test_a_process_that_ends_without_a_word_is_noticed(home: Home, server: Server) -> None:
    enrol(home, card("north"))
    server.on_start = lambda: told(home, status="running")
    server.status = SimpleNamespace(status="finished", sub_status="failed", details="no reason")
    with pytest.raises(RunError, match="without a word") as caught:
        launch(home, plan(home, config()))
    assert caught.value.given == "failed: no reason"
    kept = run_status(home.runs / "first")
    assert (kept["status"], kept["error"]["code"]) == ("interrupted", "HT600")
    assert kept["error"]["do"] == caught.value.remedy


def test_a_run_is_resumed_with_its_own_settings(home: Home, server: Server) -> None:
    enrol(home, card("north"))
    with pytest.raises(CheckpointError, match="no run of that name"):
        plan(home, resume=True)
    with pytest.raises(ConfigError, match="nothing to run"):
        plan(home)
    server.on_start = lambda: told(home, status="failed", error=None, round=2)
    with pytest.raises(Exception, match="without a word"):
        launch(home, plan(home, config()))
    with pytest.raises(CheckpointError, match="other settings"):
        plan(home, config(rounds=5), resume=True)
    server.on_start = lambda: told(home, status="finished", round=4)
    server.status.status = "finished"
    launch(home, plan(home, config(), resume=True))
    first, second = server.started
    assert first.override_config["resume"].string == ""
    assert second.override_config["resume"].string == "true"
    assert first.override_config["toml"] == second.override_config["toml"]


def test_a_run_that_goes_on_is_followed_and_one_that_is_left_over_stopped(
    home: Home, server: Server
) -> None:
    enrol(home, card("north"))
    folder = home.runs / "first"
    folder.mkdir()
    (folder / "config.toml").write_text(dump_toml(config()))
    (folder / "flower.json").write_text('{"run_id": "76"}')
    told(home, status="running", round=1)
    seen: list[int] = []

    def look(status: Any) -> None:
        seen.append(status["round"])
        told(home, status="finished", round=4)

    launch(home, plan(home, resume=True), on_status=look)
    assert (seen, server.started, server.stopped) == ([1, 4], [], [])
    told(home, status="running", pid=2**22 + 1)
    server.on_start = lambda: told(home, status="finished", round=4)
    launch(home, plan(home, resume=True))
    assert (len(server.started), server.stopped) == (1, [76])


def test_one_run_at_a_time(home: Home, server: Server) -> None:
    enrol(home, card("north"))
    with FileLock(home.flower / "run.lock"), pytest.raises(BusyError):
        launch(home, plan(home, config()))
    (home.runs / "other").mkdir()
    other = {"status": "running", "pid": os.getpid()}
    (home.runs / "other" / "state.json").write_text(json.dumps(other))
    with pytest.raises(BusyError, match="goes on"):
        launch(home, plan(home, config()))
    assert server.started == []
    # The machine was started anew, and another process has that number now.
    other["process"] = "another start 1"
    (home.runs / "other" / "state.json").write_text(json.dumps(other))
    server.on_start = lambda: told(home, status="finished", round=4)
    launch(home, plan(home, config()))
    assert len(server.started) == 1


def test_a_run_of_strangers_is_refused(home: Home, server: Server) -> None:
    with pytest.raises(EnrolmentError, match="not enrolled"):
        launch(home, plan(home, config()))


@pytest.mark.parametrize("name", ["", "../up", "a/b", ".hidden", "x" * 64])
def test_a_name_is_a_folder_below_runs(home: Home, name: str) -> None:
    with pytest.raises(ConfigError, match="no name for a run"):
        plan_launch(home, config(), name=name, resume=False)


def test_a_refusal_of_flowers_is_told(home: Home, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(self: httpx.Client, *_: Any, **__: Any) -> httpx.Response:
        request = httpx.Request("POST", "http://x")
        return httpx.Response(409, text="in use", request=request)

    monkeypatch.setattr(httpx.Client, "send", refuse)
    with pytest.raises(Exception, match="refused") as caught, control(home) as client:
        client.ListNodes(ListNodesRequest())
    assert "409: in use" in str(caught.value)
