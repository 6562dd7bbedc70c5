"""Sites and labels may be called anything: a run with such names is a run like any other."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hushtune.client.site import ledger_path
from hushtune.common.privacy.ledger import Ledger
from hushtune.simulations import run

from ..conftest import made_up_rows, write_csv

SITES = ("\u5317\u4eac" * 15, "n" * 300, "../evil", r"_$\frac$")


@pytest.mark.pictures
def test_a_run_of_sites_with_long_and_hostile_names(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    rows = made_up_rows(dict.fromkeys(SITES, 50), labels=("bad", r"$\bad$"))
    data = write_csv(tmp_path / "rows.csv", rows)
    out = tmp_path / "out"
    summary = run(
        settings.config(data__file=str(data), privacy__trust="site", train__rounds=2), out
    )
    assert set(summary["sites"]) == set(SITES)
    assert summary["rejected"] == {}
    for site in SITES:
        assert [entry.round for entry in Ledger(ledger_path(out, site)).entries()] == [1, 2]
    files = sorted((out / "ledger").iterdir())
    assert len(files) == 2 * len(SITES)
    assert not [path for path in files if path.name.startswith(".")]
    assert (out / "curve.png").stat().st_size > 0
    assert (out / "sites.png").stat().st_size > 0
    checked = hushtune("ledger", "verify", out, "--json")
    assert checked.status == 0, checked.err
    told = json.loads(checked.out.splitlines()[-1])["ledgers"]
    assert any(site.startswith("\u5317\u4eac\u5317\u4eac") for site in told)
