"""Wrappers around the real client and server while a block runs: canaries, planted faults, ears.

What is audited is the product as it stands, so nothing of this is a setting of it. Names in its
modules are replaced and put back; each wrapper calls what it found there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Generator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from typing import Any

from flwr.app import Context

from hushtune.client import app as client
from hushtune.client import dp
from hushtune.client.site import Site
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Units
from hushtune.server import central, plain
from hushtune.server.aggregation import central_dp

_HARDLY_ANY = 1e-6


class Plant(StrEnum):
    """A fault that an audit should find.

    No noise is a millionth of it, as the source of noise refuses to add none. A reset accountant
    forgets all charges but the last: the server's record of them, or each site's own ledger. A
    ledger that forgot by beginning its chain anew would be refused by the server at once.
    """

    NO_NOISE = "no-noise"
    HALF_NOISE = "half-noise"
    NO_CLIP = "no-clip"
    RESET_ACCOUNTANT = "reset-accountant"
    RESET_LEDGER = "reset-ledger"


@contextmanager
def wrapped(holder: Any, name: str, around: Callable[[Any], Any]) -> Generator[None]:
    """``holder.name`` is ``around`` of what it was while the block runs."""
    found = getattr(holder, name)
    setattr(holder, name, around(found))
    try:
        yield
    finally:
        setattr(holder, name, found)


@contextmanager
def sites_with(change: Callable[[Site], Site]) -> Generator[None]:
    """Every site that is opened while the block runs is ``change`` of it."""

    def around(sound: Callable[[Context], Site]) -> Callable[[Context], Site]:
        return lambda context: change(sound(context))

    with wrapped(client, "open_site", around):
        yield


@contextmanager
def noised_gradients_heard(hear: Callable[[dp.Gradients, PrivacyPlan], None]) -> Generator[None]:
    """``hear`` gets each noised mean gradient that a site makes, and the plan it made it by."""

    def around(sound: Callable[..., dict[str, Any]]) -> Callable[..., dict[str, Any]]:
        def mean(total: dp.Gradients, plan: PrivacyPlan, noise: NoiseSource) -> dict[str, Any]:
            found = sound(total, plan, noise)
            hear(found, plan)
            return found

        return mean

    with wrapped(dp, "noisy_mean", around):
        yield


@contextmanager
def planted(fault: Plant | None) -> Generator[None]:
    """The fault is in client and server while the block runs: in what records are protected by,
    and in what whole clients are."""
    match fault:
        case None:
            yield
        case Plant.NO_NOISE | Plant.HALF_NOISE:
            part = _HARDLY_ANY if fault is Plant.NO_NOISE else 0.5
            with (
                wrapped(dp, "noisy_mean", lambda sound: _quieter_mean(sound, part)),
                wrapped(central_dp, "split", lambda sound: _quieter_split(sound, part)),
            ):
                yield
        case Plant.NO_CLIP:
            with (
                wrapped(dp, "clipped_sum", _unclipped_gradients),
                wrapped(central_dp, "clipped_sum", _unclipped_clients),
            ):
                yield
        case Plant.RESET_ACCOUNTANT:
            with (
                wrapped(plain, "appended_charges", _only_the_last),
                wrapped(central, "charged", _only_this_round),
            ):
                yield
        case Plant.RESET_LEDGER:
            with wrapped(Ledger, "entries", _newest_alone):
                yield


def _quieter_mean(sound: Callable[..., Any], part: float) -> Callable[..., Any]:
    def mean(total: dp.Gradients, plan: PrivacyPlan, noise: NoiseSource) -> Any:
        quiet = replace(plan, noise_multiplier=part * plan.noise_multiplier)
        return sound(total, quiet, noise)

    return mean


def _quieter_split(sound: Callable[..., tuple[float, float]], part: float) -> Callable[..., Any]:
    def split(mechanism: central_dp.Mechanism) -> tuple[float, float]:
        of_sum, of_count = sound(mechanism)
        return part * of_sum, of_count

    return split


def _unclipped_gradients(sound: Callable[..., Any]) -> Callable[..., Any]:
    def clipped_sum(task: Task, units: Units, **how: Any) -> Any:
        return sound(task, units, **{**how, "clip_norm": math.inf})

    return clipped_sum


def _unclipped_clients(sound: Callable[..., Any]) -> Callable[..., Any]:
    def clipped_sum(updates: Any, **how: Any) -> Any:
        return sound(updates, **{**how, "clip_norm": math.inf})

    return clipped_sum


def _only_the_last(sound: Callable[..., Any]) -> Callable[..., Any]:
    def appended(charges: Mapping[str, Any], new: Mapping[str, Any]) -> Any:
        return sound({site: rows for site, rows in charges.items() if site not in new}, new)

    return appended


def _newest_alone(sound: Callable[..., Any]) -> Callable[..., Any]:
    def entries(ledger: Ledger, *args: Any) -> Any:
        return sound(ledger, *args)[-1:]

    return entries


def _only_this_round(sound: Callable[..., Any]) -> Callable[..., Any]:
    def charged(ledger: Any, *args: Any, **how: Any) -> Any:
        del ledger
        return sound((), *args, **how)

    return charged
