"""A site is killed where it hurts most: no charge is lost, and epsilon never falls.

What is done to it and what is looked at afterwards is in ``crash_site.py``. What SIGKILL cannot
show is a missing sync: the kernel still writes what it was given. That a commit is synced is tested
by its settings (``test_ledger.py::test_settings_are_the_durable_ones``), not by this.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

pytestmark = pytest.mark.slow

FAULTS = {
    "the charge follows the reply": "lost charge",
    "the reply is kept in a second transaction": "was not answered when asked for again",
    "the head is written before the commit": "refused: the privacy ledger was changed",
}
STRACE = shutil.which("strace")

SEEDED = [60, pytest.param(200, marks=pytest.mark.nightly)]
OF_A_ROUND: list[list[Any]] = [
    ["one round", 1],
    *(["one round", 6, fault] for fault in FAULTS),
    *([["system calls", 8]] if STRACE else []),
]

Points = list[dict[str, Any]]


@pytest.fixture(scope="module")
def experiments(request: pytest.FixtureRequest) -> list[list[list[Any]]]:
    """For two processes, as they share nothing and most machines have two cores."""
    asked = {
        item.callspec.params["number"]
        for item in request.session.items
        if isinstance(item, pytest.Function)
        and item.module is request.module
        and item.originalname == "test_killed_at_seeded_points_no_charge_is_lost"
    }
    return [[["seeded", number] for number in sorted(asked)], OF_A_ROUND]


@pytest.fixture(scope="module")
def labs(experiments: list[list[list[Any]]]) -> Iterator[list[subprocess.Popen[str]]]:
    """The experiments, running side by side."""
    memory = Path("/dev/shm")  # a SIGKILL spares what the kernel has, on whatever disk
    usable = memory.is_dir() and os.access(memory, os.W_OK)
    with tempfile.TemporaryDirectory(dir=memory if usable else None) as folder:
        started: list[subprocess.Popen[str]] = []
        for number, given in enumerate(experiments):
            place = Path(folder) / str(number)
            place.mkdir()
            program = Path(__file__).with_name("crash_site.py")
            started.append(
                subprocess.Popen(
                    [sys.executable, str(program), str(place), json.dumps(given)],
                    stdout=subprocess.PIPE,
                    text=True,
                    env=os.environ
                    | {"PYTHONPATH": os.pathsep.join(sys.path), "CUDA_VISIBLE_DEVICES": ""},
                )
            )
        try:
            yield started
        finally:
            for lab in started:
                lab.kill()
                lab.communicate()


@pytest.fixture(scope="module")
def found(
    labs: list[subprocess.Popen[str]], experiments: list[list[list[Any]]]
) -> dict[tuple[Any, ...], Points]:
    """The points of every experiment."""
    told: dict[tuple[Any, ...], Points] = {}
    for lab, given in zip(labs, experiments, strict=True):
        out, _ = lab.communicate(timeout=540)
        assert lab.returncode == 0
        for experiment, line in zip(given, out.splitlines(), strict=True):
            told[tuple(experiment)] = json.loads(line)
    return told


def wrong(points: Points) -> Points:
    return [point for point in points if point["wrong"]]


@pytest.mark.parametrize("number", SEEDED)
def test_killed_at_seeded_points_no_charge_is_lost(found: Any, number: int) -> None:
    points = found["seeded", number]
    assert len(points) == number
    assert all(point["killed"] for point in points)
    assert not wrong(points)
    # The points are spread: over rounds, over kinds, before and after replies left.
    assert {round for round, *_ in (point["at"] for point in points)} == set(range(5))
    assert {point["num_left"] for point in points} == {0, 1, 2}


def test_killed_at_every_operation_of_a_round_no_charge_is_lost(found: Any) -> None:
    points = found["one round", 1]
    assert len(points) > 120
    assert all(point["killed"] for point in points)
    assert not wrong(points)


@pytest.mark.parametrize("fault", FAULTS)
def test_a_wrong_order_of_things_is_seen(found: Any, fault: str) -> None:
    points = found["one round", 6, fault]
    assert any(FAULTS[fault] in said for point in points for said in point["wrong"]), points


@pytest.mark.skipif(
    STRACE is None and os.environ.get("HUSHTUNE_NEEDS_STRACE") != "1", reason="needs strace"
)
def test_killed_or_failed_in_system_calls_no_charge_is_lost(found: Any) -> None:
    """A second instrument: calls inside SQLite's commit, seen and interfered with by strace."""
    points = found["system calls", 8]
    kills = [point for point in points if "KILL" in point["at"]]
    assert len(kills) >= 20
    assert all(point["killed"] for point in kills)
    failed = [point for point in points if "EIO" in point["at"]]
    assert all(point["injected"] and not point["killed"] for point in failed)
    # SQLite makes little of a folder that cannot be synced; every other failure refuses a round.
    assert sum(len(point["refused"]) == 1 for point in failed) > len(failed) / 2
    assert all(len(point["refused"]) <= 1 for point in failed)
    assert not wrong(points)
