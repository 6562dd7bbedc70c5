"""What the server sees of a data set's name: nothing that depends on its rows alone."""

from __future__ import annotations

import hashlib
import json
import os
import sqlite3
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.config_io import load_config
from hushtune.common.errors import LedgerError
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.common.tasks.workspace import open_workspace
from hushtune.server import checkpoint
from hushtune.simulations import run

EVENT = DpSgdEvent(sampling_probability=0.1, noise_multiplier=1.0, steps=3)


def test_one_ledger_gives_one_name_and_two_give_two(tmp_path: Path) -> None:
    first, second = Ledger(tmp_path / "a.sqlite"), Ledger(tmp_path / "b.sqlite")
    name = first.name_of("rows")
    assert name == first.name_of("rows") == Ledger(tmp_path / "a.sqlite").name_of("rows")
    assert name != first.name_of("other rows")
    assert name != second.name_of("rows")
    assert hashlib.sha256(b"rows").hexdigest() not in name


@pytest.mark.parametrize("how", ["exchanged", "gone", "short"])
def test_an_exchanged_or_missing_key_is_detected(tmp_path: Path, how: str) -> None:
    """It would give every data set a new name, and so a new budget."""
    ledger = Ledger(tmp_path / "a.sqlite")
    ledger.charge(EVENT, dataset=ledger.name_of("rows"), run="r", round=1)
    with sqlite3.connect(tmp_path / "a.sqlite") as db:
        if how == "gone":
            db.execute("DELETE FROM secret")
        else:
            db.execute("UPDATE secret SET key = ?", (os.urandom(32 if how == "exchanged" else 8),))
    db.close()
    with pytest.raises(LedgerError, match="key"):
        ledger.name_of("rows")
    if how == "exchanged":
        with pytest.raises(LedgerError, match="key"):
            Ledger(tmp_path / "a.sqlite").name_of("rows")


def test_a_charge_shows_no_hash_of_the_rows(settings: Any, tmp_path: Path) -> None:
    """Who knows all rows but one could else test a guess of that one."""
    seen: list[str] = []
    for folder in ("one", "two"):
        out = tmp_path / folder
        run(settings.config(privacy__trust="site", train__rounds=1), out)
        workspace = open_workspace(load_config(out / "config.toml"))
        shown = checkpoint.load(out / "checkpoint").charges["north"][0]
        text = json.dumps(shown)
        assert workspace.data.fingerprints["north"] not in text
        seen.append(str(shown["dataset"]))
    assert seen[0] != seen[1]  # the same rows, and another ledger
