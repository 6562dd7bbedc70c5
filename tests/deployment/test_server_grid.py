"""Replies as they come to the server's side: looked for often, and none of them ends a run."""

from __future__ import annotations

import json
import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable
from typing import Any

import httpx
import pytest
from flwr.app import ConfigRecord, Error, Message, RecordDict
from flwr.supercore.run import RunNotRunningException
from flwr.supercore.task_identity import TaskIdentity

from hushtune.server.deployment import grid as grids
from hushtune.server.deployment.grid import MOST_REFUSALS, PollingGrid


@pytest.fixture(autouse=True)
def _identity() -> None:
    TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1


def orders(*nodes: int) -> list[Message]:
    return [Message(RecordDict(), dst_node_id=node, message_type="train") for node in nodes]


class Slow:
    """A grid in which a reply is there at the third look, or the fifth; one message is lost."""

    def __init__(self) -> None:
        self.looks: Counter[str] = Counter()
        self.never = threading.Event()
        self.sent: dict[str, Message] = {}

    def push_messages(self, messages: Iterable[Message]) -> list[str | None]:
        sent = list(messages)
        names = ["a", "b", None][: len(sent)]
        for name, message in zip(names, sent, strict=True):
            if name is not None:
                message.metadata.__dict__["_message_id"] = name
                self.sent[name] = message
        return names

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        (name,) = ids
        self.looks[name] += 1
        here = self.looks[name] >= {"a": 3, "b": 5}[name]
        return [self.reply(name)] if here else []

    def reply(self, name: str) -> Message:
        return Message(RecordDict({"said": ConfigRecord({"by": name})}), reply_to=self.sent[name])


class Stuck(Slow):
    """One of the replies has begun to come, and does not end."""

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        (name,) = ids
        if name == "a":
            self.never.wait()
        return super().pull_messages([name])


class Spoilt(Slow):
    """The look for the reply to "a" ends as it is told to; the other is there."""

    def __init__(self, look: Callable[[Spoilt], Any]) -> None:
        super().__init__()
        self.look = look

    def pull_messages(self, ids: Iterable[str]) -> list[Any]:
        (name,) = ids
        self.looks[name] += 1
        return self.look(self) if name == "a" else [self.reply(name)]


def by_node(grid: Slow, *nodes: int, timeout: float | None = None) -> dict[int, Message]:
    replies = PollingGrid(grid, poll=0.001).send_and_receive(  # type: ignore[arg-type]
        orders(*nodes), timeout=timeout
    )
    return {reply.metadata.src_node_id: reply for reply in replies}


def test_the_grid_looks_often_and_ends_in_time() -> None:
    replies = by_node(Slow(), 1, 2, 3)
    assert sorted(reply.metadata.reply_to_message_id for reply in replies.values()) == ["a", "b"]
    slow = Slow()
    grid = PollingGrid(slow, poll=0.2)  # type: ignore[arg-type]
    assert list(grid.send_and_receive(orders(1, 2, 3), timeout=0.05)) == []
    assert slow.looks == {"a": 1, "b": 1}


def test_a_reply_that_never_ends_holds_up_nobody() -> None:
    stuck, began = Stuck(), time.monotonic()
    assert list(by_node(stuck, 1, 2, timeout=1.0)) == [2]
    assert time.monotonic() - began < 10
    stuck.never.set()


def fails(error: BaseException) -> Callable[[Spoilt], Any]:
    def look(_: Spoilt) -> Any:
        raise error

    return look


@pytest.mark.parametrize(
    "error",
    [httpx.ConnectError("gone"), RunNotRunningException("gone")],
    ids=["server", "run"],
)
def test_a_server_that_is_gone_ends_the_run(error: BaseException) -> None:
    with pytest.raises(type(error), match="gone"):
        by_node(Spoilt(fails(error)), 1, 2)


def root(spoilt: Spoilt) -> Any:
    """A message in which the records are none."""
    reply = spoilt.reply("a")
    reply.__dict__["_content"] = ConfigRecord()
    return [reply]


def says(**head: object) -> Callable[[Spoilt], Any]:
    def look(spoilt: Spoilt) -> Any:
        reply = spoilt.reply("a")
        reply.metadata.__dict__.update({f"_{name}": value for name, value in head.items()})
        return [reply]

    return look


REFUSED = httpx.HTTPStatusError(
    "500", request=httpx.Request("POST", "http://x"), response=httpx.Response(500)
)


@pytest.mark.parametrize(
    "look",
    [
        fails(json.JSONDecodeError("damaged", "", 0)),
        fails(AttributeError("'RecordDict' object has no attribute 'metadata'")),
        fails(KeyError("CustomDataClass")),
        fails(RecursionError()),
        fails(REFUSED),
        lambda spoilt: [RecordDict()],
        root,
        says(src_node_id=2),
        says(reply_to_message_id="b"),
    ],
    ids=["body", "root", "class", "deep", "refused", "records", "content", "sender", "order"],
)
def test_an_answer_that_cannot_be_read_is_its_senders_alone(
    look: Callable[[Spoilt], Any],
    caplog: pytest.LogCaptureFixture,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grids, "REFUSED_SECONDS", 0.0)
    spoilt = Spoilt(look)
    with caplog.at_level(logging.WARNING):
        replies = by_node(spoilt, 1, 2, timeout=20)
    assert sorted(replies) == [1, 2]
    assert not replies[1].content
    assert replies[2].content.config_records["said"]["by"] == "b"
    assert spoilt.looks["a"] <= MOST_REFUSALS
    assert [r.getMessage().startswith("an answer of node 1") for r in caplog.records] == [True]


@pytest.mark.parametrize("calm", [2, 100], ids=["now and then", "for a moment"])
def test_a_server_that_refuses_for_a_while_loses_no_answer(calm: int) -> None:
    def look(spoilt: Spoilt) -> Any:
        if spoilt.looks["a"] > 4 * MOST_REFUSALS:
            return [spoilt.reply("a")]
        if spoilt.looks["a"] % calm == 0:
            return []
        raise REFUSED

    assert by_node(Spoilt(look), 1, 2, timeout=20)[1].content.config_records["said"]["by"] == "a"


def test_a_reply_is_found_among_what_came_in_the_same_look() -> None:
    def both(spoilt: Spoilt) -> Any:
        return [*says(src_node_id=2)(spoilt), *root(spoilt), spoilt.reply("a")][::2]

    assert by_node(Spoilt(both), 1, 2)[1].content.config_records["said"]["by"] == "a"


def test_flowers_word_on_a_message_that_is_lost_is_handed_on() -> None:
    def lost(spoilt: Spoilt) -> Any:
        reply = Message(Error(code=1, reason="expired"), reply_to=spoilt.sent["a"])
        reply.metadata.__dict__["_src_node_id"] = 1
        return [reply]

    replies = list(by_node(Spoilt(lost), 11, 12).values())
    assert [r.error.reason for r in replies if r.has_error()] == ["expired"]
