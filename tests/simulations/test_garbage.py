"""When a command looks for garbage."""

from __future__ import annotations

import gc
from collections.abc import Generator
from pathlib import Path
from typing import Any

import pytest
from flwr.app import ArrayRecord
from rich.console import Console

from hushtune.simulations import garbage, run
from hushtune.simulations.show_progress import ProgressView


@pytest.fixture(autouse=True)
def as_before() -> Generator[None]:
    """What the process does with garbage is its own again afterwards."""
    threshold, was_frozen = gc.get_threshold(), gc.get_freeze_count() > 0
    yield
    gc.set_threshold(*threshold)
    gc.unfreeze()
    if was_frozen:
        gc.freeze()


def test_once_rounds_begin_new_objects_alone_are_looked_at_and_not_too_seldom() -> None:
    gc.unfreeze()
    garbage.look_hardly_ever()
    assert gc.get_threshold()[0] >= 1_000_000

    with ProgressView(Console(quiet=True)) as view:
        view.started(rounds=3, done=0)

        assert gc.isenabled()
        assert 0 < gc.get_threshold()[0] <= 20_000
        assert gc.get_freeze_count() > 10_000
    assert gc.get_freeze_count() == 0


def test_what_others_left_out_stays_left_out() -> None:
    gc.freeze()
    left_out = gc.get_freeze_count()
    garbage.look_hardly_ever()

    with ProgressView(Console(quiet=True)) as view:
        view.started(rounds=3, done=0)

    assert gc.get_freeze_count() == pytest.approx(left_out, rel=0.01)


def test_nothing_is_left_out_where_more_will_load() -> None:
    gc.unfreeze()
    garbage.look_seldom()

    with ProgressView(Console(quiet=True)) as view:
        view.started(rounds=3, done=0)

        assert gc.get_freeze_count() == 0


@pytest.mark.parametrize(
    ("trust", "unit"), [("site", "example"), ("server", "client"), ("distributed", "example")]
)
def test_no_message_of_a_run_waits_for_it(
    settings: Any, tmp_path: Path, trust: str, unit: str
) -> None:
    """A message is as large as an adapter, and a round has two for each site."""
    config = settings.config(
        privacy__trust=trust, privacy__unit=unit, train__rounds=2, train__warmup_rounds=0
    )
    gc.collect()
    gc.disable()
    try:
        run(config, tmp_path / "run")
        left = [record for record in gc.get_objects() if isinstance(record, ArrayRecord)]
    finally:
        gc.enable()
    assert not left
