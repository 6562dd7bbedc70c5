"""A site's executor with a runtime that is made up: what it runs, refuses and writes down."""

from __future__ import annotations

import importlib
import io
import json
import logging
import os
import zipfile
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import ModuleType
from typing import Any

import httpx
import numpy as np
import pytest
import tomli_w
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Error, Message, RecordDict
from flwr.app.message import remove_content_from_message
from flwr.supercore.fab import Fab
from flwr.supercore.inflatable.inflatable_object import get_all_nested_objects, get_object_tree
from flwr.supercore.object_store import ObjectStoreFactory
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.nodestate import NodeStateFactory

from hushtune.client.deployment import node
from hushtune.client.deployment.decisions import names_of_order
from hushtune.client.deployment.executor import Executor
from hushtune.client.deployment.history_file import append_order, last_order, read_history
from hushtune.client.deployment.intake import CONNECTION, MOST_BUNDLE, Intake, count_answers
from hushtune.client.deployment.json_log import JsonLines, open_log, told, write_line
from hushtune.client.deployment.runtime import Received, TaskLostError
from hushtune.common.deployment import signed_run
from hushtune.common.errors import BadValueError, DeploymentError, MessageError
from hushtune.common.signing import load_signing_key, sign
from hushtune.server.deployment.bundle import app_files

from .institutions import coordinator_key, site_folder

BUNDLE, TOML = b"bytes that are never unpacked", "seed = 1\n"


class FakeChannel:
    """A task with one message; notes what became of it."""

    def __init__(self, context: Context, *, message: Message, bundle: bytes = BUNDLE) -> None:
        self._context, self._message, self._bundle = context, message, bundle
        self.replies: list[Message] = []
        self.read = self.dropped = self.finished = False
        self.too_large = False
        self.kept: Context | None = None

    def receive(self) -> Received:
        import hashlib

        return Received(
            header=self._message,
            context=self._context,
            bundle=self._bundle,
            bundle_name=hashlib.sha256(self._bundle).hexdigest(),
            tree=None,  # type: ignore[arg-type]
        )

    def content(self, received: Received, *, most_bytes: int) -> tuple[Message, int]:
        del received
        assert most_bytes == 256 * 2**20
        if self.too_large:
            raise MessageError("a message is larger than this site takes", given="secret")
        self.read = True
        return self._message, 10

    def drop(self, received: Received) -> None:
        del received
        self.dropped = True

    def answer(self, reply: Message, context: Context) -> None:
        del context
        self.replies.append(reply)

    def finish(self, context: Context | None, *, failed: str = "") -> None:
        self.finished, self.kept = not failed, context

    @contextmanager
    def alive(self) -> Generator[None]:
        yield

    def __enter__(self) -> FakeChannel:
        return self

    def __exit__(self, *_: object) -> None:
        return None


class FakeTasks:
    """Hands out tasks, and is then gone."""

    def __init__(self, *channels: FakeChannel) -> None:
        self._channels = list(channels)

    def acquire(self) -> Any:
        if not self._channels:
            raise httpx.ConnectError("nobody there")
        return self._channels.pop(0)


@pytest.fixture
def site(tmp_path: Path) -> Path:
    key = coordinator_key(tmp_path / "coordinator")
    return site_folder(tmp_path / "north", "north", rows=20, sign_key=key)


def task(site: Path, *, toml: str = TOML, bundle: bytes = BUNDLE, **also: Any) -> FakeChannel:
    key = load_signing_key(site.parent / "coordinator" / "signing.key")
    signature = sign(key, signed_run(BUNDLE, TOML))
    context = Context(
        run_id=7,
        node_id=3,
        node_config={"partition-id": 0},
        state=RecordDict(),
        run_config={"toml": toml, "signature": signature, "out": "/tmp/elsewhere", **also},
    )
    body = {"run": "a-run", "round": 4}
    content = RecordDict({"hushtune": ConfigRecord({"json": json.dumps(body)})})
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    message = Message(content=content, dst_node_id=3, message_type="train", group_id="4")
    message.metadata.__dict__.update(_run_id=7, _message_id="m", _src_node_id=1)
    return FakeChannel(context, message=message, bundle=bundle)


def serve(site: Path, app: Any, *channels: FakeChannel) -> None:
    clock = iter(range(0, 1000, 5))
    with pytest.raises(TaskLostError):
        Executor(site / "site.toml", app).serve(
            FakeTasks(*channels), sleep=lambda _: None, now=lambda: float(next(clock))
        )


def echo(message: Message, context: Context) -> Message:
    context.state["seen"] = ConfigRecord({"n": 1})
    assert context.node_config["site"].endswith("site.toml")  # type: ignore[union-attr]
    return Message(message.content, reply_to=message)


def test_one_executor_answers_task_after_task_and_writes_each_down(site: Path) -> None:
    first, second = task(site), task(site)
    serve(site, echo, first, second)
    for channel in (first, second):
        (reply,) = channel.replies
        assert not reply.has_error()
        assert channel.finished
        assert channel.kept is not None
        assert channel.kept.node_config == {"partition-id": 0}
        assert "seen" in channel.kept.state
    orders = read_history(site / "orders.jsonl").orders
    told = [(o.sequence, o.run, o.round, o.kind, o.decision, o.received) for o in orders]
    assert told == [
        (1, "a-run", 4, "train", "answered", 10),
        (2, "a-run", 4, "train", "answered", 10),
    ]
    assert (site / "orders.jsonl").stat().st_mode & 0o777 == 0o600


def test_a_hand_over_is_known_by_the_run_s_own_name() -> None:
    record = {"document": {"run": "a-run", "rounds": 3}, "signature": "s"}
    for body, named in (
        ({"ask": "handover", "record": record}, "a-run"),
        ({"ask": "handover", "record": "no document"}, ""),
        ({"ask": "handover", "record": {**record, "document": {"run": "two\nlines"}}}, ""),
    ):
        content = RecordDict({"hushtune": ConfigRecord({"json": json.dumps(body)})})
        assert names_of_order(content) == (named, None)


@pytest.mark.parametrize(
    "change",
    [{"toml": "seed = 2\n"}, {"bundle": b"another"}, {"signature": ""}, {"toml": ""}],
)
def test_a_run_that_is_not_signed_is_refused_unread(site: Path, change: dict[str, Any]) -> None:
    def never(message: Message, context: Context) -> Message:
        raise AssertionError((message, context))

    channel = task(site, **change)
    serve(site, never, channel)
    (reply,) = channel.replies
    assert (reply.error.reason or "").startswith("HT802 ")
    assert (channel.read, channel.dropped, channel.finished) == (False, True, True)
    (order,) = read_history(site / "orders.jsonl").orders
    assert (order.decision, order.code) == ("refused", "HT802")


def test_settings_that_no_signature_covers_do_not_reach_the_app(site: Path) -> None:
    seen: list[Any] = []

    def look(message: Message, context: Context) -> Message:
        seen.append(dict(context.run_config))
        return Message(message.content, reply_to=message)

    serve(site, look, task(site, set="privacy.trust=off", preset="demo", config="/x.toml"))
    assert set(seen[0]) == {"toml", "signature", "out"}


def test_a_message_that_is_too_large_is_refused_and_the_next_one_answered(site: Path) -> None:
    large, next_one = task(site), task(site)
    large.too_large = True
    serve(site, echo, large, next_one)
    assert (large.replies[0].error.reason or "").startswith("HT503 ")
    assert "secret" not in (large.replies[0].error.reason or "")
    assert not next_one.replies[0].has_error()
    assert [o.decision for o in read_history(site / "orders.jsonl").orders] == [
        "refused",
        "answered",
    ]


def test_what_fails_at_the_site_tells_no_value_and_no_path(
    site: Path, caplog: pytest.LogCaptureFixture
) -> None:
    def fail(message: Message, context: Context) -> Message:
        raise KeyError(f"a patient's text in {site}")

    def tell(message: Message, context: Context) -> Message:
        reason = f"HT100 the site's policy {site / 'policy.toml'} cannot be read"
        return Message(Error(code=0, reason=reason), reply_to=message)

    failed, telling = task(site), task(site)
    serve(site, fail, failed)
    serve(site, tell, telling)
    assert failed.replies[0].error.reason == "HT504 the site's own work failed"
    assert str(site) not in (telling.replies[0].error.reason or "")
    decided = [o.decision for o in read_history(site / "orders.jsonl").orders]
    assert decided == ["failed", "refused"]
    lines = [JsonLines("executor").format(record) for record in caplog.records]
    assert any("KeyError" in line for line in lines)
    assert not any("patient" in line for line in lines)


def test_an_error_names_no_folder_of_policy_or_model_either(site: Path) -> None:
    elsewhere = site.parent / "policies" / "deep"
    model = site.parent / "models" / "bert"
    elsewhere.mkdir(parents=True)
    (site / "policy.toml").rename(elsewhere / "north.toml")
    text = (site / "site.toml").read_text(encoding="utf-8")
    own = tomli_w.dumps({"policy": str(elsewhere / "north.toml"), "model": str(model)})
    (site / "site.toml").write_text(own + text, encoding="utf-8")

    def tell(message: Message, context: Context) -> Message:
        reason = f"HT100 {elsewhere / 'north.toml'}, {model / 'config.json'} and {model} are bad"
        return Message(Error(code=0, reason=reason), reply_to=message)

    channel = task(site)
    serve(site, tell, channel)
    told = channel.replies[0].error.reason
    assert told == "HT100 north.toml, config.json and its folder are bad"


def test_nothing_leaves_that_could_not_be_written_down(site: Path) -> None:
    (site / "orders.jsonl").mkdir()
    channel = task(site)
    serve(site, echo, channel)
    (reply,) = channel.replies
    assert reply.has_error()
    assert (reply.error.reason or "").startswith("HT504 ")


def test_a_line_that_a_crash_cut_short_does_not_swallow_the_next(tmp_path: Path) -> None:
    path = tmp_path / "orders.jsonl"
    fields = {"run": "r", "round": 1, "kind": "train", "decision": "answered"}
    append_order(path, **fields)
    with path.open("a", encoding="utf-8") as file:
        file.write('{"sequence": 2, "ru')
    assert append_order(path, **fields).sequence == 2
    history = read_history(path)
    assert [one.sequence for one in history.orders] == [1, 2]
    assert history.damaged == 1
    assert last_order(path) == history.orders[-1]
    assert read_history(tmp_path / "none").orders == ()


def test_a_log_is_bounded_private_and_tells_no_cell(tmp_path: Path) -> None:
    error = BadValueError("a cell is a number", row=3, column="text", given="Mrs Smith, 1931")
    assert told(error) == "HT207 a cell is a number (row 3, column text)"
    record = logging.LogRecord("hushtune", logging.ERROR, "", 0, "why: %s", (error,), None)
    assert "Smith" not in JsonLines("executor").format(record)
    log = open_log(tmp_path / "log.jsonl")
    try:
        for number in range(40):
            write_line(log, {"message": "x" * 200_000, "number": number})
    finally:
        log.close()
    files = sorted(tmp_path.glob("log.jsonl*"))
    assert len(files) == 4
    assert sum(file.stat().st_size for file in files) < 10_000_000
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_a_log_is_private_from_its_first_byte(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rotated one too, whatever the umask is: until it were made so, others could open it."""
    monkeypatch.setattr(os, "fchmod", lambda *_: None)
    monkeypatch.setattr(Path, "chmod", lambda *_, **__: None)
    before = os.umask(0)
    try:
        log = open_log(tmp_path / "log.jsonl")
        for _ in range(12):
            write_line(log, {"message": "x" * 200_000})
        log.close()
    finally:
        os.umask(before)
    files = sorted(tmp_path.glob("log.jsonl*"))
    assert len(files) == 2
    assert {file.stat().st_mode & 0o777 for file in files} == {0o600}


def test_flower_s_worker_sleeps_by_our_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """The module still has what is replaced; were it otherwise, a round would take seconds."""
    worker = importlib.import_module(node.WORKER)
    monkeypatch.setattr(worker, "time", worker.time)  # put back afterwards
    clock = node.wait_less()
    assert worker.time is clock
    with pytest.raises(DeploymentError, match="another way"):
        node.wait_less()  # by now it sleeps by another clock
    with pytest.raises(DeploymentError, match="another way"):
        node.wait_less(json)


def test_a_left_over_answer_does_not_put_a_node_one_order_behind() -> None:
    """As after a server's end in the middle of an order; the node sends what was asked last."""
    from threading import Lock
    from types import SimpleNamespace

    def entry(reply_to: str = "") -> Any:
        return SimpleNamespace(
            message=SimpleNamespace(metadata=SimpleNamespace(reply_to_message_id=reply_to))
        )

    store: dict[str, Any] = {"late answer": entry("given up"), "order": entry()}
    sent: list[str] = []
    deleted: list[str] = []

    def delete(message_ids: list[str]) -> None:
        for name in message_ids:
            store.pop(name, None)

    state = SimpleNamespace(lock_msg_store=Lock(), msg_store=store, delete_messages=delete)
    objects = SimpleNamespace(delete=deleted.append)

    def send(*, state: Any) -> None:
        """As Flower's: all answers that are there, and their orders are forgotten."""
        if len(sent) == 1:  # by now the executor is done
            store["answer"] = entry("order")
        for name, one in list(state.msg_store.items()):
            if to := one.message.metadata.reply_to_message_id:
                sent.append(name)
                delete([name, to])

    def take(*, state: Any, object_store: Any, **_: Any) -> None:
        """As Flower's where the run ends while its order is taken."""
        del object_store
        state.msg_store["half"] = entry()

    worker: Any = ModuleType("worker")
    worker.__dict__.update(
        _push_messages=send, _pull_and_store_message=take, pull_objects=lambda **_: None
    )
    node.one_at_a_time(Intake(2**20), worker)
    worker._push_messages(state=state)
    assert sent == ["late answer", "answer"]
    nothing: Any = {"receive": lambda: None, "get_fab": lambda *_: None}
    assert worker._pull_and_store_message(state=state, object_store=objects, **nothing) is None
    assert (store, deleted) == ({}, ["half"])


@dataclass
class Server:
    """What Flower's worker asks of the server: one order, its run and bundle, and its parts."""

    message: Message
    bundle: bytes
    pulled: list[str] = field(default_factory=list[str])
    confirmed: list[str] = field(default_factory=list[str])

    def __post_init__(self) -> None:
        self.message.metadata.__dict__["_message_id"] = self.message.object_id
        self.parts = {
            name: one.deflate() for name, one in get_all_nested_objects(self.message).items()
        }
        self.tree = get_object_tree(self.message)

    def take(self, worker: Any, state: Any, store: Any) -> int | None:
        """Have the worker take the order."""
        return worker._pull_and_store_message(
            state=state,
            object_store=store,
            node_config={},
            receive=lambda: (remove_content_from_message(self.message), self.tree),
            get_run=Run.create_empty,
            get_fab=lambda name, run: Fab(str(name), self.bundle, {}),
            pull_object=lambda run, name: self._part(name),
            confirm_message_received=lambda run, name: self.confirmed.append(name),
            trusted_entities=None,
        )

    def _part(self, name: str) -> bytes:
        self.pulled.append(name)
        return self.parts[name]


def packed(size: int) -> bytes:
    """A bundle as Flower reads it, with a file of so many zeros in it."""
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as files:
        for name, text in app_files().items():
            files.writestr(name, text)
        files.writestr("zeros", b"\0" * size)
    return buffer.getvalue()


@pytest.mark.parametrize(
    ("parts", "bundle", "told"),
    [
        (2**17, packed(10), ""),
        (2**20, packed(10), "HT503 a message is larger than this site takes"),
        (10, packed(10) + b"\0" * MOST_BUNDLE, "HT503 a run's bundle is larger"),
        (10, packed(MOST_BUNDLE), "HT503 a run's bundle is larger"),
        (10, b"no bundle", "HT503 a run's bundle is none"),
    ],
    ids=["fit", "large parts", "large bundle", "large once unpacked", "no bundle"],
)
def test_a_node_takes_in_no_more_than_the_site_s_limit_and_says_so(
    monkeypatch: pytest.MonkeyPatch, parts: int, bundle: bytes, told: str
) -> None:
    """The executor, which is asked later, would not have saved the node's memory."""
    worker: Any = importlib.import_module(node.WORKER)
    for name in ("_pull_and_store_message", "_push_messages", "pull_objects"):
        monkeypatch.setattr(worker, name, worker.__dict__[name])  # put back afterwards
    node.one_at_a_time(Intake(2**20), worker)
    objects = ObjectStoreFactory()
    state, store = NodeStateFactory(objectstore_factory=objects).state(), objects.store()
    state.set_node_id(3)
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1
    arrays = [Array(np.full(parts // 8, float(place))) for place in range(4)]
    content = RecordDict({"a": ArrayRecord({str(k): one for k, one in enumerate(arrays)})})
    message = Message(content=content, dst_node_id=3, message_type="train", group_id="4")
    server = Server(message, bundle)
    assert server.take(worker, state, store) == 7
    replies = state.get_messages_legacy(is_reply=True)
    orders = state.get_messages_legacy(is_reply=False)
    if not told:
        assert (len(orders), len(replies), len(server.confirmed)) == (1, 0, 1)
        return
    assert (len(replies), orders, server.confirmed) == (1, [], [])
    assert (replies[0].error.reason or "").startswith(told)
    assert replies[0].metadata.reply_to_message_id == message.object_id


@pytest.mark.parametrize(
    ("path", "most"), [("/v1/fleet/pull-object", 3 * 2**20), ("/v1/fleet/get-fab", 2**22)]
)
def test_an_answer_of_the_server_is_cut_off_where_it_goes_beyond_the_limit(
    path: str, most: int
) -> None:
    sent = [0]

    class Endless(httpx.SyncByteStream):
        def __iter__(self) -> Iterator[bytes]:
            while True:
                sent[0] += 2**16
                yield b"\0" * 2**16

    class Plain:
        def __init__(self) -> None:
            answer = httpx.MockTransport(lambda _: httpx.Response(200, stream=Endless()))
            self._client = httpx.Client(transport=answer)

    connection: Any = ModuleType("connection")
    connection.FleetHttpClient = Plain
    count_answers(Intake(2**20), connection)
    made: Any = connection.FleetHttpClient()
    client: httpx.Client = made._client
    assert client.headers["accept-encoding"] == "identity"
    with client, pytest.raises(MessageError, match="larger than this site takes"):
        client.post(f"https://server{path}")
    assert most <= sent[0] <= most + 2**17


def test_flower_s_client_is_made_as_it_is_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    connection: Any = importlib.import_module(CONNECTION)
    monkeypatch.setattr(connection, "FleetHttpClient", connection.FleetHttpClient)
    count_answers(Intake(2**20))
    with connection.FleetHttpClient.from_server_address("localhost:1", True, None, []) as client:
        assert client._client.event_hooks["response"]


def test_the_clock_is_quick_in_a_run_and_calm_without_one() -> None:
    slept: list[float] = []
    now = [0.0]
    clock = node.BriskClock(slept.append, lambda: now[0])
    clock.sleep(3)
    clock.sleep(0.5)
    clock.sleep(3)
    now[0] = 5.0
    clock.sleep(3)
    now[0] = 1000.0
    clock.sleep(3)
    wait = [node.ORDER_WAIT, 5.0 * node.PATIENCE, node.IDLE_WAIT]
    assert slept == [node.IDLE_WAIT, node.ANSWER_WAIT, *wait]
