"""A site that is killed before the hand-over gets model and statement when it is back."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from .processes import Federation, Started, hushtune, wait_until

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


def test_a_site_that_was_away_at_the_end_is_handed_the_run_by_resume(
    tmp_path: Path, tiny_bert: Path
) -> None:
    with Federation(tmp_path, {"north": 120, "west": 120}, model=tiny_bert) as federation:
        federation.begin()
        brief = ("--answer-seconds", 10, "--connect-seconds", 1)
        run = federation.run("late", *brief, simulation__quorum=1)
        federation.wait_for_round("late", 2)
        west = federation.sites["west"]
        assert west.joined is not None
        west.joined.kill()
        wait_until(lambda: len(west.processes()) <= 1, seconds=20)
        assert run.ended(seconds=120) == 0, run.said
        again = f"hushtune server run {federation.folder} --resume --name late"
        assert "not handed over to west" in run.said
        assert again in run.said
        assert not list(west.folder.glob("runs/*/manifest.json"))
        assert federation.state("late")["status"] == "finished"
        told = (federation.folder / "flower" / "run.jsonl").read_text(encoding="utf-8")
        lines = [json.loads(line) for line in told.splitlines()]
        assert {line["run"] for line in lines} == {"late"}
        assert [r["round"] for r in lines if r.get("event") == "round"] == [1, 2, 3]
        assert {(r["round"], r["site"]) for r in lines if "goes on without" in str(r)} <= {
            (2, "west"),
            (3, "west"),
        }
        assert [r["site"] for r in lines if "signed no receipt" in str(r)] == ["west"]
        charges, trained = federation.rows("late"), west.orders()

        west.join()
        resumed = Started(tmp_path / "resumed.out", *again.split()[1:])
        federation.stack.callback(resumed.stop)
        assert resumed.ended(seconds=240) == 0, resumed.said
        assert "handed over to every site, each with a signed receipt: north, west" in resumed.said
        for site in federation.sites.values():
            (manifest,) = site.folder.glob("runs/*/manifest.json")
            hushtune("verify", manifest.parent)
        hushtune("verify", federation.out("late"))
        assert federation.rows("late") == charges
        since = west.orders()[len(trained) :]
        assert not [order for order in since if order["kind"].startswith("train")]
        said = hushtune("server", "run", federation.folder, "--resume", "--name", "late")
        assert "handed over to every site" in said
