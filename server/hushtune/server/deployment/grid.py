"""A Flower grid that asks often: Flower's own waits three seconds between looks for replies."""

from __future__ import annotations

import time
from collections.abc import Iterable
from contextlib import suppress
from typing import TYPE_CHECKING, final

from flwr.app import Message, RecordDict
from flwr.serverapp import Grid

from hushtune.common.envelope import opened, sealed
from hushtune.common.errors import MessageError

if TYPE_CHECKING:
    from flwr.proto.node_pb2 import NodeInfo
    from flwr.supercore.run import Run

POLL_SECONDS, MOST_SECONDS, PATIENCE = 0.2, 1.0, 0.05
"""Between two looks: at first, at last, and as a share of the time that was waited."""


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
        """See Grid; taken out of their envelopes."""
        return [_opened(message) for message in self._grid.pull_messages(message_ids)]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """The replies that came within ``timeout`` seconds; None waits for all of them."""
        began = time.monotonic()
        waiting = {name for name in self.push_messages(messages) if name}
        replies: list[Message] = []
        while waiting:
            found = list(self.pull_messages(waiting))
            replies += found
            waiting -= {reply.metadata.reply_to_message_id for reply in found}
            waited = time.monotonic() - began
            if not waiting or (timeout is not None and waited >= timeout):
                break
            time.sleep(min(MOST_SECONDS, max(self._poll, PATIENCE * waited)))
        return replies


def _opened(message: Message) -> Message:
    """A reply out of its envelope; one that is not whole stays as it is, and no message of ours."""
    if message.has_content():
        with suppress(MessageError):
            message.content = opened(message.content)
    return message
