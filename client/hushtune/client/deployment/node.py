"""Flower's SuperNode, which waits less and answers what it was asked: ``... deployment.node``.

Flower 1.41 waits 3 s between two looks for an order and 0.5 s between two looks for the answer, so
that an exchange of nothing takes seconds. Replaced are the clock that the worker loop sleeps by,
how long it waits for an object that the server does not have yet, the two functions that take an
order and send an answer (``one_at_a_time``), and how much is read of either (``intake``).
Everything else, arguments included, is ``flower-supernode``.
"""

from __future__ import annotations

import ast
import importlib
import inspect
import logging
import os
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from types import ModuleType
from typing import Any

from flwr.app import Error, Message

from hushtune.client.deployment.intake import Intake, count_answers
from hushtune.client.deployment.json_log import flower_logs_to_ours, log_to
from hushtune.client.deployment.lifeline import end_with_parent
from hushtune.client.deployment.site_file import MOST_MEGABYTES
from hushtune.common.environment import be_quiet
from hushtune.common.errors import DeploymentError, MessageError

log = logging.getLogger("hushtune.client.deployment.node")  # also where it is run as a module

WORKER = "flwr.supernode.start_client_internal"
"""The module of Flower whose worker loop sleeps."""
PARENT, MOST = "--parent-pid", "--most-megabytes"

ANSWER_WAIT, ORDER_WAIT, IDLE_WAIT = 0.1, 0.25, 1.0
"""Seconds between two looks: for an answer, for an order at first, for an order at last."""
OBJECT_WAIT = (0.05, 1.0)
"""Seconds between two looks for a part of an order that the server has not got yet, at first and at
last; Flower would begin with a whole second, in every exchange."""
PATIENCE = 0.1
"""Of the time since the last order: so long is the wait for the next one, between these two.

Each look costs the server some 15 ms of work in its one thread, which sites that hardly wait would
take from each other."""


class BriskClock:
    """What the worker loop knows of the module ``time``: sleeping, and less of it.

    It sleeps under a second only while it waits for an answer, which tells that there was an order.
    """

    def __init__(
        self,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        self._sleep, self._now = sleep, now
        self._last_order = float("-inf")

    def sleep(self, seconds: float) -> None:
        """Sleep for at most the time that suits what is waited for."""
        if seconds < 1:
            self._last_order = self._now()
            self._sleep(min(seconds, ANSWER_WAIT))
        else:
            since = self._now() - self._last_order
            self._sleep(min(seconds, IDLE_WAIT, max(ORDER_WAIT, PATIENCE * since)))


def wait_less(worker: ModuleType | None = None) -> BriskClock:
    """Have Flower's worker loop sleep by a BriskClock.

    Raises DeploymentError where the module does not sleep by its name ``time``, as another version
    of Flower might not.
    """
    worker = importlib.import_module(WORKER) if worker is None else worker
    asked = {
        node.attr
        for node in ast.walk(ast.parse(inspect.getsource(worker)))
        if isinstance(node, ast.Attribute)
        and isinstance(node.value, ast.Name)
        and node.value.id == "time"
    }
    if worker.__dict__.get("time") is not time or asked != {"sleep"}:
        raise DeploymentError(
            "this version of Flower waits in another way than the one that hushtune knows",
            given=f"{WORKER} of flwr {importlib.import_module('flwr').__version__}",
            expected="a module that asks time.sleep of its clock, and nothing else",
            remedy="install the version of flwr that hushtune names",
        )
    clock = BriskClock()
    worker.__dict__["time"] = clock
    return clock


def one_at_a_time(intake: Intake, worker: ModuleType | None = None) -> None:
    """Have Flower's worker loop send the answer to each order before it asks for the next.

    An order that is too large is refused at once, by the node itself.

    Flower 1.41 sends whatever answer is there. Where one is left over, of an order that was given
    up because its run or the server ended, the node would from then on send each answer an order
    too late: for every round that waits for it, never. And an order that was taken in part is left
    in its store, where the executor waits minutes for the rest.
    """
    worker = importlib.import_module(WORKER) if worker is None else worker
    take, send = worker.__dict__["_pull_and_store_message"], worker.__dict__["_push_messages"]

    def take_whole(
        *, state: Any, object_store: Any, receive: Callable[[], Any], get_fab: Any, **more: Any
    ) -> Any:
        before, orders = set(_open_orders(state)), list[Any]()

        def received() -> Any:
            found = receive()
            if found is not None:
                orders.append(found[0])
                intake.checked_tree(found[1])
            return found

        intake.begin()
        try:
            run = take(
                state=state,
                object_store=object_store,
                receive=received,
                get_fab=lambda *named: intake.bundle(get_fab(*named)),
                **more,
            )
        except MessageError as error:
            log.error("the node does not take an order: %s", error)
            run = None
        if run is None:
            for name in set(_open_orders(state)) - before:
                state.delete_messages(message_ids=[name])
                object_store.delete(name)
        if run is None and intake.refused is not None and orders:
            reason = f"{intake.refused.code} {intake.refused.message}"
            refusal = Message(Error(code=0, reason=reason), reply_to=orders[0])
            worker.__dict__["_insert_message"](refusal, state, object_store)
            return orders[0].metadata.run_id
        return run

    def send_all(*, state: Any, **more: Any) -> None:
        send(state=state, **more)
        while _open_orders(state):
            send(state=state, **more)

    worker.__dict__["_pull_and_store_message"] = take_whole
    worker.__dict__["_push_messages"] = send_all
    pull = partial(
        worker.__dict__["pull_objects"], initial_backoff=OBJECT_WAIT[0], backoff_cap=OBJECT_WAIT[1]
    )

    def pull_counted(names: list[str], pull_object_fn: Callable[[str], bytes]) -> dict[str, bytes]:
        return pull(names, lambda name: intake.part(pull_object_fn(name)))

    worker.__dict__["pull_objects"] = pull_counted


def _open_orders(state: Any) -> list[str]:
    """The orders that a node's store holds, by their names: sending an answer takes its order out.

    Flower's own way of asking would mark them as taken.
    """
    with state.lock_msg_store:
        entries = list(state.msg_store.items())
    return [name for name, entry in entries if not entry.message.metadata.reply_to_message_id]


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the SuperNode; ``--parent-pid N`` and ``--most-megabytes N`` (of a message) are ours, all
    else is ``flower-supernode``'s."""
    be_quiet()
    given = list(sys.argv[1:] if arguments is None else arguments)
    ours: dict[str, int] = {}
    for name in (PARENT, MOST):
        if name in given:
            place = given.index(name)
            ours[name] = int(given[place + 1])
            del given[place : place + 2]
    if PARENT in ours:
        end_with_parent(ours[PARENT])
    intake = Intake(ours.get(MOST, MOST_MEGABYTES) * 2**20)
    wait_less()
    one_at_a_time(intake)
    count_answers(intake)
    flower_logs_to_ours()
    log_to(sys.stdout, source="node")
    from flwr.supercore.exit import ExitCode, flwr_exit
    from flwr.supernode.cli.flower_supernode import flower_supernode

    sys.argv = ["flower-supernode", *given]
    flower_supernode()
    # It comes back where the connection broke for good, with its own server still in a thread.
    flwr_exit(ExitCode.SUPERNODE_CONNECTION_ERROR, "The connection to the SuperLink is lost.")


if __name__ == "__main__":
    try:
        main()
    except DeploymentError as error:
        print(error, file=sys.stderr)
        sys.stderr.flush()
        os._exit(2)
