"""The process that answers a site's orders: ``python -m ...deployment.executor SITE.toml ...``.

It stays alive between orders, its imports and the model with it. What it runs is the client app
that is installed at the site, never what a bundle holds. One order's failure ends nothing; a
SuperNode that is gone for longer than its patience does, with status ``LOST``.
"""

from __future__ import annotations

import argparse
import logging
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import httpx
from flwr.app import Context, Error, Message

from hushtune.client.app import app, what_leaves
from hushtune.client.charging import unexpected
from hushtune.client.deployment.bundle import check_bundle, signed_config
from hushtune.client.deployment.decisions import (
    charges,
    decision_of,
    group_round,
    names_of_order,
    size_of,
    spent_since,
)
from hushtune.client.deployment.history_file import HISTORY, Order, Spent, append_order
from hushtune.client.deployment.json_log import flower_logs_to_ours, log_event, log_to
from hushtune.client.deployment.lifeline import end_with_parent
from hushtune.client.deployment.runtime import Channel, Received, Runtime, TaskLostError
from hushtune.client.deployment.site_file import SiteFile
from hushtune.common.deployment import SITE_KEY
from hushtune.common.envelope import opened, sealed
from hushtune.common.errors import HushtuneError, SiteError
from hushtune.common.signing import read_private

log = logging.getLogger("hushtune.client.deployment.executor")  # also where it is run as a module

LOST = 75
"""Exit status where the SuperNode is gone."""
POLL_SECONDS, PATIENCE_SECONDS = 0.1, 10.0
ACQUIRED, BEGUN, ENDED, READY = "acquired", "order", "decided", "ready"
"""Events that the supervisor follows."""

App = Callable[[Message, Context], Message]


class Tasks(Protocol):
    """Where tasks come from."""

    def acquire(self) -> Channel | None:
        """The next one, if there is one; raises httpx.HTTPError where nobody answers."""
        ...


@dataclass(frozen=True, kw_only=True)
class _Done:
    """A reply, and what the history tells of it. ``context``: to be kept for the run, if any."""

    reply: Message
    context: Context | None = None
    run: str = ""
    round: int | None = None
    received: int = 0
    spent: Spent | None = None


@dataclass(frozen=True)
class Executor:
    """Answers tasks for the site whose ``site.toml`` is ``file``, with one app."""

    file: Path
    app: App

    def serve(
        self,
        tasks: Tasks,
        *,
        patience: float = PATIENCE_SECONDS,
        sleep: Callable[[float], None] = time.sleep,
        now: Callable[[], float] = time.monotonic,
    ) -> None:
        """Answer tasks for ever; raises TaskLostError where none can be had for ``patience`` s."""
        heard = now()
        while True:
            try:
                channel = tasks.acquire()
                heard = now()
            except httpx.HTTPError as error:
                if now() - heard > patience:
                    raise TaskLostError(
                        "the site's node does not answer", given=type(error).__name__
                    ) from error
                channel = None
            if channel is None:
                sleep(POLL_SECONDS)
                continue
            with channel:
                try:
                    self.answer(channel)
                except Exception:
                    log.exception("an order is dropped")

    def answer(self, channel: Channel) -> None:
        """Take one task's message, decide, write down what was decided, and reply."""
        log_event(log, ACQUIRED)
        received = channel.receive()
        header, began = received.header.metadata, time.monotonic()
        told = {"run": str(header.run_id), "round": group_round(header.group_id)}
        log_event(log, BEGUN, **told, kind=header.message_type)
        with channel.alive():
            done = self._decide(channel, received)
            order = self._write_down(done, received, seconds=time.monotonic() - began)
            if order is None:
                unwritten = SiteError("the site cannot write down what it decides")
                done = _Done(reply=_error_reply(unwritten, received.header))
            if not done.reply.has_error():
                done.reply.content = sealed(done.reply.content)
            channel.answer(done.reply, received.context)
            channel.finish(done.context)
        if order is not None:
            log_event(log, ENDED, **{k: v for k, v in order.to_dict().items() if k != "time"})

    def _decide(self, channel: Channel, received: Received) -> _Done:
        try:
            site = SiteFile.read(self.file)
            config = received.context.run_config
            check_bundle(
                site.table.server.sign_key, received.bundle, config, named=received.bundle_name
            )
        except HushtuneError as error:
            log.error("an order is refused unread: %s", error)
            with suppress(TaskLostError):  # the reply will tell
                channel.drop(received)
            return _Done(reply=_error_reply(error, received.header))
        size, message = 0, None
        before = len(charges(site))
        try:
            most = site.table.server.max_message_megabytes * 2**20
            message, size = channel.content(received, most_bytes=most)
            message.content = opened(message.content)
            context = _at_site(received.context, self.file)
            reply, kept = self.app(message, context), _as_flower_has_it(received.context, context)
        except TaskLostError:
            raise
        except Exception as error:
            log.exception("an order could not be answered")
            known = error if isinstance(error, HushtuneError) else unexpected(error)
            reply, kept = _error_reply(known, received.header), None
        run, number = names_of_order(None if message is None else message.content)
        return _Done(
            reply=_without_paths(reply, site, received.header),
            context=kept,
            run=run,
            round=number,
            received=size,
            spent=spent_since(site, before),
        )

    def _write_down(self, done: _Done, received: Received, *, seconds: float) -> Order | None:
        header, decided = received.header.metadata, decision_of(done.reply)
        number = group_round(header.group_id) if done.round is None else done.round
        try:
            return append_order(
                self.file.parent / HISTORY,
                run=done.run or str(header.run_id),
                round=number,
                kind=header.message_type,
                decision=decided.decision,
                code=decided.code,
                reason=decided.reason,
                spent=done.spent,
                seconds=round(seconds, 3),
                received=done.received,
                sent=0 if done.reply.has_error() else size_of(done.reply.content),
            )
        except HushtuneError as error:
            log.error("what was decided cannot be written down, so nothing leaves: %s", error)
            return None


def _at_site(given: Context, file: Path) -> Context:
    """What the app is told: Flower's context, with the site's own file for its node."""
    return Context(
        run_id=given.run_id,
        node_id=given.node_id,
        node_config={SITE_KEY: str(file)},
        state=given.state,
        run_config=signed_config(given.run_config),
        series_id=given.series_id,
    )


def _as_flower_has_it(given: Context, own: Context) -> Context:
    """Flower's context with the state that the app left."""
    return Context(
        run_id=given.run_id,
        node_id=given.node_id,
        node_config=given.node_config,
        state=own.state,
        run_config=given.run_config,
        series_id=given.series_id,
    )


def _error_reply(error: HushtuneError, header: Message) -> Message:
    return Message(Error(code=0, reason=what_leaves(error)), reply_to=header)


def _without_paths(reply: Message, site: SiteFile, header: Message) -> Message:
    """An error reply that names no folder of the site, wherever its parts lie."""
    if not reply.has_error():
        return reply
    reason = reply.error.reason or ""
    table = site.table
    folders = {site.folder, table.data.file.parent, table.policy.parent, Path.home()}
    folders |= set() if table.model is None else {table.model, table.model.parent}
    for folder in sorted(folders - {Path("/")}, key=lambda path: len(str(path)), reverse=True):
        reason = reason.replace(f"{folder}/", "").replace(str(folder), "its folder")
    if reason == reply.error.reason:
        return reply
    return Message(Error(code=reply.error.code, reason=reason), reply_to=header)


def main(arguments: Sequence[str] | None = None) -> None:
    """Answer orders until the node is gone, or the parent."""
    parser = argparse.ArgumentParser(prog="hushtune executor", description=__doc__)
    parser.add_argument("site", type=Path, help="the site's site.toml")
    parser.add_argument("--runtime", required=True, help="host:port of the node's Runtime API")
    parser.add_argument("--secret", required=True, type=Path, help="the file with its secret")
    parser.add_argument("--parent-pid", type=int, help="the process with which this one ends")
    parser.add_argument("--patience", type=float, default=PATIENCE_SECONDS, help="seconds")
    given = parser.parse_args(arguments)
    if given.parent_pid is not None:
        end_with_parent(given.parent_pid)
    log_to(sys.stdout, source="executor")
    flower_logs_to_ours()
    log_event(log, READY)
    file = SiteFile.read(given.site).file
    tasks = Runtime(given.runtime, read_private(given.secret))
    try:
        Executor(file, app).serve(tasks, patience=given.patience)
    except TaskLostError as error:
        log.error("%s", error)
        sys.exit(LOST)


if __name__ == "__main__":
    main()
