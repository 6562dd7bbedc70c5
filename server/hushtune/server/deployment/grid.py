"""A Flower grid that asks often: Flower's own waits three seconds between looks for replies."""

from __future__ import annotations

import logging
import threading
import time
from collections.abc import Iterable
from contextlib import suppress
from queue import Empty, SimpleQueue
from typing import TYPE_CHECKING, Any, final

import httpx
from flwr.app import Message, RecordDict
from flwr.common.constant import SUPERLINK_NODE_ID
from flwr.serverapp import Grid
from flwr.supercore.run import RunNotRunningException

from hushtune.common.envelope import opened, sealed
from hushtune.common.errors import MessageError

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run

POLL_SECONDS, MOST_SECONDS, PATIENCE = 0.2, 1.0, 0.05
"""Between two looks: at first, at last, and as a share of the time that was waited."""
MOST_REFUSALS, REFUSED_SECONDS = 5, 15.0
"""Looks in a row for one reply that the server refuses, over so many seconds at least: it may be
that reply which it cannot hand out."""

log = logging.getLogger(__name__)


@final
class PollingGrid(Grid):
    """Another grid, whose ``send_and_receive`` looks for replies every ``poll`` seconds.

    Less often where sites train for long: each look is work for the server's one thread.
    """

    def __init__(self, grid: Grid, *, poll: float = POLL_SECONDS) -> None:
        self._grid = grid
        self._poll = poll

    def set_run(self, run: Run) -> None:
        """See Grid."""
        self._grid.set_run(run)

    @property
    def run(self) -> Run:
        """See Grid."""
        return self._grid.run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See Grid."""
        return self._grid.create_message(content, message_type, dst_node_id, group_id, ttl)

    def get_nodes(self) -> Iterable[NodeInfo]:
        """See Grid."""
        return self._grid.get_nodes()

    def get_node_ids(self) -> Iterable[int]:
        """See Grid."""
        return self._grid.get_node_ids()

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """See Grid; small ones in envelopes."""
        sent = list(messages)
        for message in sent:
            message.content = sealed(message.content)
        return self._grid.push_messages(sent)

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """See Grid; taken out of their envelopes, each looked for by itself.

        What Flower cannot read it raises, with all else of the same look.
        """
        return [
            _opened(message) for name in message_ids for message in self._grid.pull_messages([name])
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """The replies that came within ``timeout`` seconds; None waits for all of them.

        Each reply is waited for by itself: Flower hands one out before all of it has come, and
        then waits for the rest, so that a site that stops half-way would hold up all others. One
        that cannot be read, or says that another node sent it, comes as an empty message of the
        node that was asked: no site can end a run, or speak for another one.

        Raises:
            httpx.TransportError, RunNotRunningException: the server is gone, or the run is over.
        """
        began = time.monotonic()
        sent = list(messages)
        asked = {name: m for name, m in zip(self.push_messages(sent), sent, strict=False) if name}
        found: SimpleQueue[Message | BaseException] = SimpleQueue()
        over = threading.Event()

        def fetch(name: str) -> None:
            refusals, since = 0, 0.0
            while not over.is_set():
                try:
                    reply, refusals = self._look(name, asked[name]), 0
                except httpx.HTTPStatusError as error:
                    reply, refusals = None, refusals + 1
                    since = time.monotonic() if refusals == 1 else since
                    lasted = time.monotonic() - since
                    if refusals >= MOST_REFUSALS and lasted >= REFUSED_SECONDS:
                        reply = _unreadable(asked[name], error)
                except (httpx.TransportError, RunNotRunningException) as error:
                    found.put(error)
                    return
                except Exception as error:  # whatever Flower makes of what a site has sent
                    reply = _unreadable(asked[name], error)
                if reply is not None:
                    found.put(reply)
                    return
                waited = time.monotonic() - began
                over.wait(min(MOST_SECONDS, max(self._poll, PATIENCE * waited)))

        for name in sorted(asked):
            # Daemons: what waits for a reply that never comes whole must not outlive the process.
            threading.Thread(target=fetch, args=(name,), daemon=True).start()
        replies: list[Message] = []
        try:
            while len(replies) < len(asked):
                left = None if timeout is None else max(0.0, began + timeout - time.monotonic())
                reply = found.get(timeout=left)
                if isinstance(reply, BaseException):
                    raise reply
                replies.append(reply)
        except Empty:
            pass
        finally:
            over.set()
        return replies

    def _look(self, name: str, asked: Message) -> Message | None:
        """The reply to one message, or None as yet; MessageError for what is no reply to it."""
        found = list(self._grid.pull_messages([name]))
        for reply in found:
            if _answers(reply, name, asked):
                return _opened(reply)
        if found:
            raise MessageError("what came is no answer of the node that was asked")
        return None


def _answers(reply: Message, name: str, asked: Message) -> bool:
    """Whether a reply is what it should be: the rest of its head is the sender's own words."""
    sender = reply.metadata.src_node_id
    failed = reply.has_error() and sender == SUPERLINK_NODE_ID  # Flower's word on a lost message
    return reply.metadata.reply_to_message_id == name and (
        failed or sender == asked.metadata.dst_node_id
    )


def _unreadable(asked: Message, error: Exception) -> Message:
    """A reply in the place of one that cannot be read: empty, so that it is rejected as such."""
    words = f"{type(error).__name__}: {ascii(str(error))[:200]}"
    log.warning("an answer of node %s cannot be read: %s", asked.metadata.dst_node_id, words)
    return Message(RecordDict(), reply_to=asked)


def _opened(message: Message) -> Message:
    """A reply out of its envelope; one that is not whole stays as it is, and no message of ours."""
    if message.has_content():
        content: Any = message.content
        if not isinstance(content, RecordDict):
            raise MessageError("a message without records", given=type(content).__name__)
        with suppress(MessageError):
            message.content = opened(content)
    return message
