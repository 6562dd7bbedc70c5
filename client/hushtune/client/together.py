"""Sites of a simulation whose steps are computed at once: each runs its own code, one at a time.

A site's round runs in a thread of its own, and only ever one thread runs. Where a site needs the
clipped sum of a step it waits; once all wait, their sums are computed by one call, and each goes
on. What a site draws, charges, noises and sends is its own, in the order that it would be alone.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from torch import Tensor, nn

from hushtune.common.adapter import AdapterState
from hushtune.common.model import Level
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Units

Sums = Mapping[str, Tensor]
_Reply = TypeVar("_Reply")
_thread = threading.local()


@dataclass(frozen=True, kw_only=True)
class Asked:
    """A clipped sum that a site waits for: see ``dp.clipped_sum``. ``begin``: the adapter of the
    round, of which ``trained`` holds what has moved."""

    task: Task
    units: Units
    begin: AdapterState
    trained: Mapping[str, nn.Parameter]
    clip_norm: float
    microbatch: int
    level: Level


Compute = Callable[[Sequence[Asked]], Sequence[Sums]]


def is_together() -> bool:
    """Whether this thread is that of a site whose steps are computed with others'."""
    return getattr(_thread, "site", None) is not None


def sum_for(asked: Asked) -> Sums:
    """Wait for a clipped sum; raises what computing it raised."""
    return _thread.site.wait_for(asked)


def in_turns(calls: Sequence[Callable[[], _Reply]], compute: Compute) -> list[_Reply]:
    """What each call returns; the sums that they ask for meanwhile are computed together.

    Raises what a call raised, or what stopped computing, when all have ended.
    """
    sites = [_Site(call) for call in calls]
    for site in sites:
        site.start()
        site.go_on()
    stopped: BaseException | None = None
    while waiting := [site for site in sites if site.asked is not None]:
        found: Sequence[Sums | BaseException]
        try:
            found = compute([site.asked for site in waiting if site.asked is not None])
        except BaseException as error:
            stopped = None if isinstance(error, Exception) else error
            found = [error] * len(waiting)
        for site, sums in zip(waiting, found, strict=True):
            site.go_on(sums)
    for site in sites:
        site.join()
    errors = [site.error for site in sites if site.error is not None]
    if stopped is not None or errors:
        raise errors[0] if stopped is None else stopped
    return [site.reply[0] for site in sites]


class _Site(threading.Thread, Generic[_Reply]):
    """A call that runs while ``go_on`` waits; ``asked``: what it waits for, None once it ended."""

    def __init__(self, call: Callable[[], _Reply]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._found: Sums | BaseException = {}
        self.asked: Asked | None = None
        self.reply: list[_Reply] = []
        self.error: BaseException | None = None

    def run(self) -> None:
        self._turn.acquire()
        _thread.site = self
        try:
            self.reply.append(self._call())
        except BaseException as error:  # the caller's to raise
            self.error = error
        self._paused.release()

    def go_on(self, found: Sums | BaseException | None = None) -> None:
        """Let it run, with what it waited for, until it waits again or has ended."""
        self.asked = None
        if found is not None:
            self._found = found
        self._turn.release()
        self._paused.acquire()

    def wait_for(self, asked: Asked) -> Sums:
        """Called in its own thread."""
        self.asked = asked
        self._paused.release()
        self._turn.acquire()
        if isinstance(self._found, BaseException):
            raise self._found
        return self._found
