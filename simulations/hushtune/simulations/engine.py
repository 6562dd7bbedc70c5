"""Two engines with one signature: Flower's messages in this process, or Flower's simulation on Ray.

Both call the real ``ClientApp`` with real ``Message`` objects. The in-process grid is a Flower
``Grid`` whose nodes are called one after the other.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import islice
from typing import Any

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid, ServerApp
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from hushtune.client.cohort import clipped_sums
from hushtune.client.together import in_turns
from hushtune.common.environment import QUIET
from hushtune.common.errors import SiteError
from hushtune.common.messages import TRAIN_ACTIONS

Serve = Callable[[Grid], None]
log = logging.getLogger(__name__)

_RUN_ID, _FIRST_NODE = 1, 1


def run_in_process(
    serve: Serve,
    client_app: ClientApp,
    *,
    num_sites: int,
    run_config: Mapping[str, str],
    together: int = 1,
    most_rows: int = 32,
) -> None:
    """Call ``serve`` with a grid of ``num_sites`` nodes in this process; ``together``: how many of
    them are trained at once, ``most_rows`` computed at once."""
    grid = InProcessGrid(
        client_app,
        num_sites=num_sites,
        run_config=run_config,
        together=together,
        most_rows=most_rows,
    )
    serve(grid)


def run_on_flower(
    serve: Serve, client_app: ClientApp, *, num_sites: int, run_config: Mapping[str, str]
) -> None:
    """Call ``serve`` with the grid of Flower's own simulation, on Ray."""
    os.environ.update(QUIET)
    from flwr.simulation import run_simulation

    failures: list[BaseException] = []
    server_app = ServerApp()

    @server_app.main()
    def main(grid: Grid, context: Context) -> None:  # pyright: ignore[reportUnusedFunction]
        del context
        try:
            serve(grid)
        except BaseException as error:  # kept whole: Flower would wrap it
            failures.append(error)
            raise

    try:
        with _quiet_flower():
            run_simulation(
                server_app,
                with_run_config(client_app, run_config),
                num_sites,
                backend_config={
                    "client_resources": {"num_cpus": 1, "num_gpus": _gpu_share(num_sites)},
                    "init_args": {"log_to_driver": False},
                },
            )
    except KeyboardInterrupt:
        raise
    except BaseException as error:
        if failures:
            raise failures[0] from None
        raise SiteError(
            "Flower's simulation could not run",
            given=str(error)[:300],
            remedy="pip install 'flwr[simulation]', or set simulation.engine = \"inprocess\"",
        ) from error


def _gpu_share(num_sites: int) -> float:
    """Of the GPU, where there is one: Ray hides it from actors that ask for none."""
    import torch

    return 1.0 / num_sites if torch.cuda.is_available() else 0.0


@contextmanager
def _quiet_flower() -> Generator[None]:
    """Flower's own log only where something is wrong: progress is shown by the observer."""
    logger = logging.getLogger("flwr")
    kept = logger.level, logger.propagate
    logger.setLevel(logging.CRITICAL)
    logger.propagate = False  # opacus gives the root logger a handler of its own
    try:
        yield
    finally:
        logger.setLevel(kept[0])
        logger.propagate = kept[1]


def with_run_config(client_app: ClientApp, run_config: Mapping[str, str]) -> ClientApp:
    """The same app for nodes whose Flower run has no configuration of its own."""

    def configured(context: Context) -> Context:
        # A new one: Flower refuses a context whose configuration was changed.
        return Context(
            run_id=context.run_id,
            node_id=context.node_id,
            node_config=context.node_config,
            state=context.state,
            run_config=dict(run_config),
        )

    return around(lambda message, context: client_app(message, configured(context)))


def around(call: Callable[[Message, Context], Message]) -> ClientApp:
    """An app whose every answer ``call`` gives; what it holds is shipped to Ray's workers."""
    app = ClientApp()
    for action in TRAIN_ACTIONS:

        @app.train(action)
        def train(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
            return call(message, context)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        return call(message, context)

    @app.query()
    def query(message: Message, context: Context) -> Message:  # pyright: ignore[reportUnusedFunction]
        return call(message, context)

    return app


class InProcessGrid(Grid):
    """A Flower grid whose nodes live in this process; final.

    A node that raises becomes an error reply that names the kind of the error and nothing of what
    it says, as an exception's text may hold a row.
    """

    def __init__(
        self,
        client_app: ClientApp,
        *,
        num_sites: int,
        run_config: Mapping[str, Any],
        together: int = 1,
        most_rows: int = 32,
    ) -> None:
        self._app = client_app
        self._together, self._most_rows = together, most_rows
        self._run = Run.create_empty(run_id=_RUN_ID)
        self._replies: dict[str, Message] = {}
        self._count = 0
        self._contexts = {
            node: Context(
                run_id=_RUN_ID,
                node_id=node,
                node_config={"partition-id": place, "num-partitions": num_sites},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for place, node in enumerate(range(_FIRST_NODE, _FIRST_NODE + num_sites))
        }
        _identify()

    def set_run(self, run: Run) -> None:
        """See Flower's ``Grid``."""
        self._run = run

    @property
    def run(self) -> Run:
        """See Flower's ``Grid``."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """See Flower's ``Grid``."""
        return Message(content, dst_node_id, message_type=message_type, group_id=group_id, ttl=ttl)

    def get_node_ids(self) -> Iterable[int]:
        """See Flower's ``Grid``; sorted."""
        return list(self._contexts)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Call each node at once; the replies wait to be pulled."""
        pushed: dict[str, Message] = {}
        for message in messages:
            self._count += 1
            identity = f"{message.metadata.dst_node_id}-{self._count}"
            message.metadata.__dict__["_message_id"] = identity
            pushed[identity] = message
        for identities in batched(pushed, self._together):
            calls = [partial(self._call, pushed[identity]) for identity in identities]
            self._replies |= dict(zip(identities, self._called(calls), strict=True))
        return list(pushed)

    def _called(self, calls: Sequence[Callable[[], Message]]) -> Sequence[Message]:
        if len(calls) == 1:
            return [calls[0]()]
        return in_turns(calls, partial(clipped_sums, most_rows=self._most_rows))

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Hand out the replies, each once."""
        return [
            self._replies.pop(identity) for identity in message_ids if identity in self._replies
        ]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Push, then pull; nothing to wait for."""
        del timeout
        return self.pull_messages(self.push_messages(messages))

    def _call(self, message: Message) -> Message:
        try:
            return self._app(message, self._contexts[message.metadata.dst_node_id])
        except Exception as error:
            kind, node = type(error).__name__, message.metadata.dst_node_id
            log.error("node %s failed: %s", node, kind)
            log.debug("node %s", node, exc_info=True)
            return Message(Error(code=0, reason=type(error).__name__), reply_to=message)


def batched(keys: Iterable[str], size: int) -> Iterator[list[str]]:
    """So many at a time, in order.

    >>> list(batched("abcde", 2))
    [['a', 'b'], ['c', 'd'], ['e']]
    """
    left = iter(keys)
    while batch := list(islice(left, size)):
        yield batch


def _identify() -> None:
    """Give this process the task identity that Flower asks of whoever makes a message.

    Flower keeps it in an internal class; this is the one place that touches it.
    """
    TaskIdentity.run_id = _RUN_ID
    TaskIdentity.node_id = _FIRST_NODE - 1
    TaskIdentity.task_id = 1
