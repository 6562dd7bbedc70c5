"""What keeps a site joined: two children, watched, started again, and their state told.

It decides nothing about orders and loads nothing heavy. Why a node is not connected is told by the
server's own answer (``probe``), by what Flower's node says, and by what was so before.
"""

from __future__ import annotations

import logging
import queue
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hushtune.client.deployment import probe as probing
from hushtune.client.deployment.children import (
    Child,
    Line,
    back_off,
    end_children,
    start_child,
    why_ended,
)
from hushtune.client.deployment.json_log import utc_now, write_line
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.deployment.status_file import (
    WRITE_SECONDS,
    State,
    Status,
    seconds_since,
    write_status,
)
from hushtune.common.errors import DeploymentError, HushtuneError

NODE, EXECUTOR = "node", "executor"
MODULES = {name: f"hushtune.client.deployment.{name}" for name in (NODE, EXECUTOR)}
TURN_SECONDS = 0.25
PROBE_SECONDS = 10.0
HELD_SECONDS = 120.0
"""Flower 1.41 counts a node that was killed as connected for 60 to 100 s."""
STEADY_SECONDS = 60.0
"""A child that stayed up for so long has not failed at its start."""

Look = Callable[[], probing.Finding]


@dataclass
class _Watch:
    """A child, and how it fared."""

    child: Child | None = None
    failures: int = 0
    due: float = 0.0
    error: str = ""


@dataclass
class Supervisor:
    """One join of a site: ``run`` returns when ``stop`` is set.

    ``commands``: arguments of each child. ``before``: what an earlier join had written last.
    """

    site: SiteFile
    home: Path
    commands: Mapping[str, Callable[[], list[str]]]
    renew: Callable[[], None]
    log: logging.Handler
    show: Callable[[Status], None]
    status: Status
    before: Status | None = None
    look: Look | None = None
    stop: threading.Event = field(default_factory=threading.Event)

    def __post_init__(self) -> None:
        self._lines: queue.Queue[tuple[str, Line]] = queue.Queue()
        self._found: queue.Queue[probing.Finding] = queue.Queue()
        self._watched = {NODE: _Watch(), EXECUTOR: _Watch()}
        self._written = float("-inf")
        self._probed = float("-inf")
        self._probing = False
        self._connected = False
        self._refused_since: float | None = None
        self._holding = ""
        self._taken = False

    def run(self) -> None:
        """Keep the site joined until ``stop`` is set; end the children then, whatever happened."""
        try:
            while not self.stop.is_set():
                self._turn()
                self._hear(TURN_SECONDS)
        finally:
            self._say("the site leaves")
            end_children([w.child for w in self._watched.values() if w.child is not None])
            self._drain()
            self._now(replace(self.status.at(State.STOPPED), order=None), always=True)

    def _turn(self) -> None:
        for name, watch in self._watched.items():
            if watch.child is not None and watch.child.ended:
                self._drain()
                self._ended(name, watch)
            if watch.child is None and time.monotonic() >= watch.due:
                self._start(name, watch)
        node = self._watched[NODE].child
        if not self._connected and node is not None and node.uptime > PROBE_SECONDS / 2:
            self._probe()
        while not self._found.empty():
            self._probed_so(self._found.get())
        if time.monotonic() - self._written > WRITE_SECONDS:
            self._now(self.status, always=True)

    def _start(self, name: str, watch: _Watch) -> None:
        watch.child = start_child(
            name, MODULES[name], self.commands[name](), home=self.home, lines=self._lines
        )
        self._say(f"{name} started", pid=watch.child.process.pid)

    def _hear(self, seconds: float) -> None:
        try:
            self._heard(*self._lines.get(timeout=seconds))
        except queue.Empty:
            return
        self._drain()

    def _drain(self) -> None:
        while not self._lines.empty():
            self._heard(*self._lines.get())

    def _heard(self, name: str, line: Line) -> None:
        self._log(line)
        if line.get("level") in ("error", "critical"):
            self._watched[name].error = str(line.get("error") or line.get("message", ""))[:300]
        if name == NODE:
            self._node_said(str(line.get("message", "")))
        else:
            self._executor_said(line)

    def _node_said(self, message: str) -> None:
        if message.startswith(_CONNECTED) or (
            not self._connected and any(words in message for words in _ANSWERED)
        ):
            self._connected, self._refused_since = True, None
            self._watched[NODE].failures = 0
            self._now(replace(self._at_work(), connected_at=utc_now(), last_error=None))
        elif message.startswith("Connection attempt failed"):
            self._connected = False
            self._probe()
        elif f"[code: {_ACTIVATION_FAILED}]" in message:
            self._taken = True
        elif "address already in use" in message.lower():
            self.renew()
            self._end(EXECUTOR)

    def _executor_said(self, line: Line) -> None:
        event = line.get("event")
        if event in ("acquired", "order"):
            self._holding = str(event)
        if event == "order":
            order = {key: line.get(key) for key in ("run", "round", "kind")}
            self._now(replace(self.status, order={**order, "since": utc_now()}))
            self._now(self._at_work())
        elif event == "decided":
            self._holding = ""
            self._watched[EXECUTOR].failures = 0
            row = {key: value for key, value in line.items() if key not in _OF_A_LINE}
            status = replace(self.status, order=None, last_order={**row, "time": line.get("time")})
            if row.get("decision") != "answered":
                status = replace(status, refusals=status.refusals + 1)
            if isinstance(spent := row.get("spent"), dict):
                status = replace(status, epsilon=spent["epsilon"], limit=spent["limit"])
            self._now(status)
            self._now(self._at_work())
        elif event is None and str(line.get("message", "")).startswith("an order is dropped"):
            self._holding = ""
            self._now(replace(self.status, order=None))
            self._now(self._at_work())

    def _at_work(self) -> Status:
        if not self._connected:
            return self.status
        return self.status.at(State.WORKING if self.status.order else State.CONNECTED)

    def _ended(self, name: str, watch: _Watch) -> None:
        """A child is gone: say so, and when it is started again."""
        child = watch.child
        assert child is not None
        watch.child = None
        watch.failures = 1 if child.uptime > STEADY_SECONDS else watch.failures + 1
        counted = {name: getattr(self.status.restarts, name) + 1}
        why = why_ended(child.process.returncode)
        self._say(f"{name} ended: {why}", level="warning")
        status = replace(self.status, restarts=replace(self.status.restarts, **counted))
        if name == NODE:
            self._now(status)
            self._node_ended(watch, why)
        else:
            error = {"message": f"the process that answers orders ended: {why}"}
            last = {"time": utc_now(), "code": "HT800", "do": watch.error or _DO, **error}
            self._now(replace(status, order=None, last_error=last))
            self._now(self.status.at(State.FAILING) if watch.failures > 2 else self._at_work())
            if self._holding == "acquired":
                # Flower waits for ever for the answer to an order that was taken and never read.
                self._end(NODE)
            self._holding = ""
            watch.due = time.monotonic() + back_off(watch.failures)

    def _node_ended(self, watch: _Watch, why: str) -> None:
        was_connected, self._connected = self._connected, False
        wait = back_off(watch.failures)
        if self._taken:
            self._taken = False
            now = time.monotonic()
            self._refused_since = self._refused_since or now
            if now - self._refused_since < HELD_SECONDS and self._left_without_a_word():
                self._fails(State.HELD, probing.still_held(self.site.name))
                wait = min(wait, 5.0)
            else:
                self._fails(State.NOT_ENROLLED, probing.not_enrolled(self.site.name))
                wait = min(wait, 15.0)
        elif not was_connected or watch.failures > 2:
            self._say(f"the node says: {watch.error or why}", level="warning")
            self._probe()
        watch.due = time.monotonic() + wait

    def _left_without_a_word(self) -> bool:
        """Whether this site was connected, as far as the server may know, until just now."""
        if self.status.connected_at is not None:
            return True
        last = self.before
        if last is None or last.connected_at is None or last.state == State.STOPPED:
            return False
        return seconds_since(last.updated) < HELD_SECONDS

    def _probe(self) -> None:
        if self._probing or time.monotonic() - self._probed < PROBE_SECONDS:
            return
        self._probing, self._probed = True, time.monotonic()
        server = self.site.table.server
        look = self.look or (lambda: probing.probe(server.address, server.certificate))
        threading.Thread(target=lambda: self._found.put(look()), daemon=True).start()

    def _probed_so(self, found: probing.Finding) -> None:
        self._probing = False
        if self._connected:
            return
        if found.error is not None:
            self._fails(found.state, found.error)
        elif self.status.state not in (State.HELD, State.NOT_ENROLLED):
            watch = self._watched[NODE]
            if watch.failures:  # the server answers, and the node ends: it does not take the key
                self._fails(State.NOT_ENROLLED, probing.not_enrolled(self.site.name))
            elif self.status.state != State.STARTING:
                self._now(self.status.at(State.STARTING))

    def _fails(self, state: State, error: DeploymentError) -> None:
        last = {"time": utc_now(), **_as_dict(error)}
        again = self.status.last_error or {}
        if state != self.status.state or last["message"] != again.get("message"):
            self._log({"level": "error", "source": "join", **last})
        self._now(replace(self.status.at(state), last_error=last))

    def _end(self, name: str) -> None:
        child = self._watched[name].child
        if child is not None and not child.ended:
            child.process.terminate()

    def _say(self, message: str, *, level: str = "info", **more: Any) -> None:
        line = {"time": utc_now(), "level": level, "source": "join", "message": message, **more}
        self._log(line)

    def _log(self, line: Line) -> None:
        """Logs of several sites may be looked at together, so that each line names its own."""
        write_line(self.log, {**line, "site": self.site.name})

    def _now(self, status: Status, *, always: bool = False) -> None:
        """Tell of a status where it is another one, and write it down."""
        changed, self.status = status != self.status, status
        if changed or always:
            try:
                write_status(self.site.status, status)
            except HushtuneError as error:
                self._say(f"the status cannot be written: {error.message}", level="error")
            self._written = time.monotonic()
        self.show(status)


def _as_dict(error: DeploymentError) -> dict[str, Any]:
    told = {"given": error.given, "expected": error.expected, "do": error.remedy}
    return {"code": error.code, "message": error.message, **told}


_CONNECTED = ("SuperNode ID:", "Connection successful")
_ANSWERED = ("in `RUNNING` status", "a non-`RUNNING` status", "Receiving: ", "Sent successfully")
"""What Flower's node says where the server answers it, with a refusal as well as with an order:
after an outage it says nothing else if the run is over by then."""
_ACTIVATION_FAILED = 2004
"""Flower's code where a node's key is not known, or its node is connected already."""
_OF_A_LINE = frozenset(("time", "level", "source", "event"))
_DO = "see log.jsonl of the site"
