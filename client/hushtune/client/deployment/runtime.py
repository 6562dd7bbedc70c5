"""A site's end of Flower's Runtime API: one task after another, taken and answered.

Flower 1.41 starts a process for each message, which imports the bundle. Here one process asks the
SuperNode for tasks itself. Objects are counted as they come, before anything is made of them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import httpx
from flwr.app import Context, Message
from flwr.common.constant import SubStatus
from flwr.common.serde import (
    context_from_proto,
    context_to_proto,
    fab_from_proto,
    message_from_proto,
)
from flwr.proto.message_pb2 import ObjectTree
from flwr.proto.node_pb2 import Node
from flwr.proto.runtime_pb2 import (
    AcquireTaskRequest,
    PullAppMessagesRequest,
    PullTaskInputRequest,
    PushTaskOutputRequest,
    SendTaskHeartbeatRequest,
)
from flwr.supercore.constant import TaskType
from flwr.supercore.heartbeat import HeartbeatSender
from flwr.supercore.inflatable.inflatable_object import iterate_object_tree
from flwr.supercore.inflatable.inflatable_protobuf_utils import (
    make_confirm_message_received_fn_protobuf,
    make_pull_object_fn_protobuf,
)
from flwr.supercore.inflatable.inflatable_utils import (
    inflate_object_from_contents,
    pull_objects,
)
from flwr.supercore.interceptors import (
    RuntimeTokenHttpInterceptor,
    RuntimeVersionHttpInterceptor,
    SuperExecAuthHttpInterceptor,
)
from flwr.supercore.runtime import RuntimeHttpClient
from flwr.supercore.task_identity import TaskIdentity
from flwr.supernode.runtime.run_clientapp import push_message

from hushtune.client.deployment.intake import MOST_OBJECTS, ByteCount
from hushtune.common.errors import MessageError, UnreachableError

FIRST_WAIT, LONGEST_WAIT = 0.05, 1.0
"""Seconds between two looks for an object that has not reached the node yet."""
_ACQUIRE = "/flwr.proto.Runtime/AcquireTask"
# Flower would wait for ever for the answer to an agent's task that nobody takes.
_KINDS = (TaskType.CLIENT_APP, TaskType.AGENT_APP)


class TaskLostError(UnreachableError):
    """The SuperNode no longer knows a task, or is gone; nothing of it can be answered."""


@dataclass(frozen=True)
class Received:
    """A task before its message is read.

    ``header`` is the message without its content, ``bundle`` the bytes of the run's bundle and
    ``bundle_name`` the hash that Flower calls it by.
    """

    header: Message
    context: Context
    bundle: bytes
    bundle_name: str
    tree: ObjectTree


class Channel:
    """One task that was taken: what belongs to it comes and goes by its token.

    Every method raises TaskLostError where the SuperNode does not take the token or does not
    answer.
    """

    def __init__(self, client: RuntimeHttpClient) -> None:
        self._client = client

    def receive(self) -> Received:
        """Take the task's input. To be called at once: until then a crash leaves Flower waiting."""
        with _lost():
            given = self._client.PullTaskInput(PullTaskInputRequest())
            pulled = self._client.PullMessages(PullAppMessagesRequest())
        context = context_from_proto(given.context)
        TaskIdentity.task_id = given.task_id
        TaskIdentity.run_id = given.run.run_id
        TaskIdentity.node_id = context.node_id
        if not pulled.messages_list:
            raise TaskLostError("a task came without a message")
        fab = fab_from_proto(given.fab)
        return Received(
            header=message_from_proto(pulled.messages_list[0]),
            context=context,
            bundle=fab.content,
            bundle_name=given.run.fab_hash,
            tree=pulled.message_object_trees[0],
        )

    def content(self, received: Received, *, most_bytes: int) -> tuple[Message, int]:
        """The whole message and its size in bytes.

        Raises MessageError for one of more than ``most_bytes``, before anything is made of it, and
        for one that is damaged.
        """
        count = ByteCount(most_bytes)
        try:
            if len(_names(received)) > MOST_OBJECTS:
                raise MessageError("a message has too many parts", expected=str(MOST_OBJECTS))
            contents = self._pulled(received, count.add)
        except MessageError:
            self.drop(received)
            raise
        self._forget(received)
        try:
            message = inflate_object_from_contents(received.tree.object_id, contents)
        except Exception as error:
            raise MessageError("a message is damaged", given=type(error).__name__) from error
        if not isinstance(message, Message):
            raise MessageError("a message is none", given=type(message).__name__)
        # The name that replies refer to is no part of what is sent.
        message.metadata.__dict__["_message_id"] = received.tree.object_id
        return message, count.total

    def drop(self, received: Received) -> None:
        """Let the SuperNode forget a message that is not read.

        Not before all of it is there: Flower 1.41 hands out a task before it has the message's
        objects, and gives up, with any reply to it, where one is gone that it is about to keep.
        """
        self._pulled(received, lambda _: b"")
        self._forget(received)

    def _pulled(self, received: Received, keep: Callable[[bytes], bytes]) -> dict[str, bytes]:
        context = received.context
        node = Node(node_id=context.node_id)
        pull = make_pull_object_fn_protobuf(self._client.PullObject, node, context.run_id)
        with _lost():
            return pull_objects(
                _names(received),
                lambda name: keep(pull(name)),
                initial_backoff=FIRST_WAIT,
                backoff_cap=LONGEST_WAIT,
            )

    def _forget(self, received: Received) -> None:
        context = received.context
        node = Node(node_id=context.node_id)
        confirm = make_confirm_message_received_fn_protobuf(
            self._client.ConfirmMessageReceived, node, context.run_id
        )
        with _lost():
            confirm(received.tree.object_id)

    def answer(self, reply: Message, context: Context) -> None:
        """Hand over the reply."""
        with _lost():
            push_message(self._client, reply, context)

    def finish(self, context: Context | None, *, failed: str = "") -> None:
        """End the task; ``context`` is kept for the run's next one. ``failed``: why it did."""
        with _lost():
            self._client.PushTaskOutput(
                PushTaskOutputRequest(
                    context=None if context is None else context_to_proto(context),
                    sub_status=SubStatus.FAILED if failed else SubStatus.COMPLETED,
                    details=failed,
                )
            )

    @contextmanager
    def alive(self) -> Generator[None]:
        """Tell the SuperNode that the task is being worked on, as long as it is."""
        sender = HeartbeatSender(self._beat)
        sender.start()
        try:
            yield
        finally:
            if sender.is_running:
                sender.stop()

    def _beat(self) -> bool:
        try:
            self._client.SendTaskHeartbeat(SendTaskHeartbeatRequest())
        except httpx.TransportError:
            return False
        except httpx.HTTPStatusError:
            return True  # the task is over; the next call says so where it can be handled
        return True

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._client.close()


class Runtime:
    """The Runtime API of the SuperNode at ``address``, which takes whoever has ``secret``."""

    def __init__(self, address: str, secret: bytes) -> None:
        self._address = address
        self._client = self._connect(
            SuperExecAuthHttpInterceptor(master_secret=secret, protected_methods=(_ACQUIRE,))
        )

    def acquire(self) -> Channel | None:
        """The next task, or None; raises httpx.HTTPError where the SuperNode does not answer."""
        taken = self._client.AcquireTask(AcquireTaskRequest(supported_task_types=_KINDS))
        if not taken.HasField("task") or not taken.token:
            return None
        return Channel(self._connect(RuntimeTokenHttpInterceptor(taken.token)))

    def _connect(
        self, own: SuperExecAuthHttpInterceptor | RuntimeTokenHttpInterceptor
    ) -> RuntimeHttpClient:
        own_name = (
            "SuperExec" if isinstance(own, SuperExecAuthHttpInterceptor) else "flwr-clientapp"
        )
        version = RuntimeVersionHttpInterceptor(component_name=own_name)
        return RuntimeHttpClient.from_server_address(
            self._address, insecure=True, root_certificates=None, interceptors=[version, own]
        )


def _names(received: Received) -> list[str]:
    return [one.object_id for one in iterate_object_tree(received.tree)]


@contextmanager
def _lost() -> Generator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise TaskLostError(
            "the site's node no longer knows this task", given=type(error).__name__
        ) from error
