"""When a command looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Generator

import pytest
from rich.console import Console

from hushtune.simulations import garbage
from hushtune.simulations.show_progress import ProgressView


@pytest.fixture(autouse=True)
def as_before() -> Generator[None]:
    """What the process does with garbage is its own again afterwards."""
    threshold = gc.get_threshold()
    yield
    gc.unfreeze()
    gc.set_threshold(*threshold)


def test_once_rounds_begin_new_objects_alone_are_looked_at_and_not_too_seldom() -> None:
    gc.unfreeze()
    garbage.look_hardly_ever()
    assert gc.get_threshold()[0] >= 1_000_000

    ProgressView(Console(quiet=True)).started(rounds=3, done=0)

    assert 0 < gc.get_threshold()[0] <= 200_000
    assert gc.get_freeze_count() > 10_000
    assert gc.isenabled()
