"""A ledger that was rolled back, head file and all, is noticed by who saw its charges."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import CheckpointError, QuorumError
from hushtune.common.planning import site_plans
from hushtune.common.privacy import accountant
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.server.chains import Head, Shown, heads_before, note_heads

from .finished import institutions, run_there
from .institutions import SIZES
from .test_handover import own_rows

EVENT = DpSgdEvent(sampling_probability=0.1, noise_multiplier=3.0, steps=1)


def chain(count: int, *, start: Head = Head(), run: str = "r") -> list[LedgerEntry]:  # noqa: B008
    """Charges that follow one another."""
    found: list[LedgerEntry] = []
    number, last = start.sequence, start.hash
    for _ in range(count):
        entry = LedgerEntry.after(
            number, last, dataset="d", run=run, round=number + 1, unit="example", event=EVENT
        )
        found.append(entry)
        number, last = entry.sequence, entry.hash
    return found


def shown(entries: list[LedgerEntry], **before: Head) -> Shown:
    return Shown({"north": tuple(entry.to_dict() for entry in entries)}, before)


def test_charges_that_continue_are_taken_gaps_included() -> None:
    entries = chain(6)
    told = shown([])
    for entry in (entries[0], entries[1], entries[1], entries[3], entries[5]):  # one sent again
        assert told.objection("north", entry) is None
        told = told.with_charge("north", entry)
    assert told.head("north") == Head(6, entries[5].hash)


def test_a_chain_that_was_begun_again_is_named_and_stays_so() -> None:
    entries = chain(4)
    back = Head(2, entries[1].hash)
    other = chain(4, start=back, run="again")  # charges 3 to 6, from the state after charge 2
    told = shown(entries)
    assert "charge 3 after charge 4" in (told.objection("north", other[0]) or "")
    assert "charge 5, which does not follow" in (told.objection("north", other[2]) or "")
    told = told.with_charge("north", other[2])
    assert told.objection("north", other[3])  # once broken, it stays so
    assert told.objection("south", other[3]) is None


def test_what_was_shown_before_the_run_counts() -> None:
    entries = chain(5)
    before = Head(4, entries[3].hash)
    assert shown([], north=before).objection("north", entries[4]) is None
    assert shown([], north=before).objection("north", entries[3])
    elsewhere = chain(1, start=Head(4, "1" * 64), run="again")
    assert "does not follow" in (shown([], north=before).objection("north", elsewhere[0]) or "")


def test_heads_are_kept_between_runs(tmp_path: Path) -> None:
    entries = chain(5)
    rows = {"north": tuple(entry.to_dict() for entry in entries[:3])}
    assert heads_before(tmp_path, "one", resumed=False) == {}
    note_heads(tmp_path, "one", rows, {})
    assert heads_before(tmp_path, "two", resumed=False) == {"north": Head(3, entries[2].hash)}
    # A run that goes on has its own charges in its checkpoint, and begins where it began.
    assert heads_before(tmp_path, "one", resumed=True) == {"north": Head()}
    # Another run came in between: its charges are later than those of the one that goes on.
    later = {"north": (entries[4].to_dict(),)}
    note_heads(tmp_path, "two", later, heads_before(tmp_path, "two", resumed=False))
    assert heads_before(tmp_path, "one", resumed=True) == {}
    note_heads(tmp_path, "one", rows, {})
    assert heads_before(tmp_path, "three", resumed=False)["north"].sequence == 5  # never lower
    other = {"north": tuple(entry.to_dict() for entry in chain(2, run="again"))}
    note_heads(tmp_path, "three", other, heads_before(tmp_path, "three", resumed=False))
    for resumed in (False, True):
        assert heads_before(tmp_path, "four", resumed=resumed)["north"].broken
    (tmp_path / "north.json").write_text("{}")
    with pytest.raises(CheckpointError, match="cannot be read"):
        heads_before(tmp_path, "five", resumed=False)


def copied(folder: Path, to: Path) -> None:
    to.mkdir(exist_ok=True)
    for path in folder.glob("policy.sqlite*"):
        shutil.copy2(path, to / path.name)


def test_a_site_whose_ledger_is_put_back_is_refused_and_its_charge_counts(
    settings: Any, tmp_path: Path
) -> None:
    institutions(tmp_path)
    folder = tmp_path / "north"

    def before_round(number: int) -> None:
        if number == 2:
            copied(folder, tmp_path / "older")
        if number == 3:
            copied(tmp_path / "older", folder)

    config = own_rows(settings)
    place = run_there(tmp_path, config, before_round=before_round)
    rows = place.result.history
    assert [row["accepted"] for row in rows] == [sorted(SIZES), sorted(SIZES), ["south", "west"]]
    assert "ledger: its ledger was rolled back" in rows[2]["rejected"]["north"]
    charges = place.result.charges["north"]
    assert [row["sequence"] for row in charges] == [1, 2, 2]  # it has spent that, whatever it says
    plan = site_plans(config)["north"]
    thrice = accountant.epsilon([plan.event(2)] * 3, delta=plan.delta, relation=plan.relation)
    assert rows[2]["epsilon"]["north"] == thrice
    told = place.handed_over()
    assert told["without_receipt"] == ["north"]
    assert told["sites"]["north"]["shown"]["num_charges"] == 3
    noted = json.loads((tmp_path / "coordinator" / "heads" / "north.json").read_text())
    assert "charge 2 after charge 2" in noted["last"]["broken"]
    # In a later run too, until the coordinator has looked into it.
    again = run_there(tmp_path, config, out="second")
    assert all("rolled back" in row["rejected"]["north"] for row in again.result.history)
    (tmp_path / "coordinator" / "heads" / "north.json").unlink()
    third = run_there(tmp_path, config, out="third")
    assert [row["accepted"] for row in third.result.history] == [sorted(SIZES)] * 3


def test_a_ledger_that_is_put_back_between_runs_is_refused(settings: Any, tmp_path: Path) -> None:
    institutions(tmp_path)
    folder = tmp_path / "north"
    copied(folder, tmp_path / "older")
    assert list((tmp_path / "older").iterdir()) == []  # no charge yet, and no ledger
    config = own_rows(settings)
    run_there(tmp_path, config)
    for path in folder.glob("policy.sqlite*"):
        path.unlink()
    second = run_there(tmp_path, config, out="second")
    assert all("rolled back" in row["rejected"]["north"] for row in second.result.history)
    assert len(Ledger(folder / "policy.sqlite").entries()) == 3


def test_steps_of_secure_sums_are_looked_at_too(settings: Any, tmp_path: Path) -> None:
    institutions(tmp_path, {"trust": ["distributed"], "min_noise_multiplier": 0.05})
    privacy = {"trust": "distributed", "epsilon": 8.0, "delta": 1e-3}
    config = own_rows(settings, privacy=privacy, train__rounds=2)

    def before_round(number: int) -> None:
        if number == 2:  # the ledger is gone, and begun anew
            for path in (tmp_path / "north").glob("policy.sqlite*"):
                path.unlink()

    with pytest.raises(QuorumError, match="rolled back"):
        run_there(tmp_path, config, before_round=before_round)
