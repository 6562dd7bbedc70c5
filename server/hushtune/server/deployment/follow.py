"""Follows a run of Flower's by what it tells in its folder, and by what Flower knows of it."""

from __future__ import annotations

import time
from collections.abc import Callable, Generator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hushtune.common.errors import HushtuneError, RunError
from hushtune.server.deployment.handed_over import again_command
from hushtune.server.deployment.status import error_fields, read_state, run_status, write_state
from hushtune.server.deployment.superexec import OUTPUT

if TYPE_CHECKING:
    from flwr.supercore.control import ControlHttpClient

OnStatus = Callable[[Mapping[str, Any]], None]

_POLL, _ASK_FLOWER, _LAST_WORDS = 0.3, 2.0, 10.0


def follow(
    client: ControlHttpClient, folder: Path, number: int, on_status: OnStatus
) -> dict[str, Any]:
    """Tell of a run until it is over; its last status. Raises what ended it without a result."""
    asked, ended = 0.0, None
    while True:
        found = run_status(folder)
        on_status(found)
        now = time.monotonic()
        if found["status"] == "finished":
            return found
        state = read_state(folder)
        # Not where the process is merely gone: Flower's word may follow.
        if state.get("status") in ("failed", "interrupted"):
            raise told_error(state.get("error"))
        if now - asked >= _ASK_FLOWER:
            asked = now
            details = end_of(client, number)
            gone = found["status"] == "interrupted"
            ended = (ended or now) if gone or details is not None else None
            # The ServerApp's own words come last, where it was there to say them; where its
            # process is gone, Flower may take minutes to notice.
            if ended is not None and ((gone and details) or now - ended >= _LAST_WORDS):
                error = _ended(folder, details)
                _tell_interrupted(folder, error)
                raise error
        time.sleep(_POLL)


def _tell_interrupted(folder: Path, error: HushtuneError) -> None:
    """Have a run's folder say what ended it, where its ServerApp could not."""
    told = {"status": "interrupted", "error": error_fields(error)}
    write_state(folder, {**read_state(folder), **told})


def _ended(folder: Path, details: str | None) -> RunError:
    log = folder.parent.parent / "flower" / OUTPUT
    return RunError(
        "the run's process ended without a word",
        given=details or "Flower knows no reason",
        remedy=f"see {log}; then {again_command(folder)}",
    )


def told_error(error: Mapping[str, Any] | None) -> HushtuneError:
    """The error that a run's ``state.json`` tells of, as one of its class."""
    error = error or {}
    kinds = {kind.code: kind for kind in _kinds(HushtuneError)}
    kind = kinds.get(str(error.get("code")), HushtuneError)
    return kind(
        str(error.get("message") or "the run failed without a word"),
        given=error.get("given"),
        expected=error.get("expected"),
        remedy=error.get("do"),
    )


def _kinds(kind: type[HushtuneError]) -> Generator[type[HushtuneError]]:
    yield kind
    for below in kind.__subclasses__():
        yield from _kinds(below)


def end_of(client: ControlHttpClient, number: int) -> str | None:
    """What Flower says of a run that is over; None while it goes on."""
    from flwr.proto.control_pb2 import ListRunsRequest  # pylint: disable=no-name-in-module

    runs = client.ListRuns(ListRunsRequest(run_id=number)).run_dict
    if number not in runs:
        return "Flower knows no such run"
    status = runs[number].status
    if status.status != "finished":
        return None
    return f"{status.sub_status}: {status.details}"[:500]
