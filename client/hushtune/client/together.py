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

    Where that fails each sum is computed by itself, so that a site's rows fail its own call alone.
    Raises what a call raised, or what stopped this thread, when all have ended.
    """
    sites = [_Site(call) for call in calls]
    try:
        for site in sites:
            site.go_on()
        while waiting := [site for site in sites if site.asked is not None]:
            found = _computed([site.asked for site in waiting if site.asked is not None], compute)
            for site in waiting:
                site.go_on(found.pop(0))
    except BaseException as stopped:  # by whoever runs this: no site may be left waiting
        for site in sites:
            while site.asked is not None:
                site.go_on(stopped)
        raise
    for site in sites:
        site.join()
    for site in sites:
        if site.error is not None:
            raise site.error
    return [site.reply[0] for site in sites]


def _computed(asked: Sequence[Asked], compute: Compute) -> list[Sums | BaseException]:
    try:
        return list(compute(asked))
    except Exception as error:
        if len(asked) == 1:
            return [error]
        return [each for one in asked for each in _computed([one], compute)]


class _Site(threading.Thread, Generic[_Reply]):
    """A call that runs while ``go_on`` waits; ``asked``: what it waits for, None once it ended."""

    def __init__(self, call: Callable[[], _Reply]) -> None:
        super().__init__(daemon=True)
        self._call = call
        self._turn, self._paused = threading.Semaphore(0), threading.Semaphore(0)
        self._found: Sums | BaseException | None = None
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
        """Let it run, with what it waited for, until it waits again or has ended; begins it first.

        What stops the thread that waits here is raised when the site has paused.
        """
        self.asked, self._found = None, found
        if not self.is_alive():
            self.start()
        self._turn.release()
        try:
            self._paused.acquire()
        except BaseException:
            self._paused.acquire()
            raise

    def wait_for(self, asked: Asked) -> Sums:
        """Called in its own thread."""
        self.asked = asked
        self._paused.release()
        self._turn.acquire()
        found, self._found = self._found, None
        if isinstance(found, BaseException):
            raise found
        assert found is not None
        return found
