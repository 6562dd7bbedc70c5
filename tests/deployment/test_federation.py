"""A whole federation of processes on loopback: runs, faults while it runs, and what is left."""

from __future__ import annotations

import json
import os
import signal
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest

from hushtune.common.privacy.ledger import Ledger

from .processes import Federation, hushtune, wait_until

SIZES = {"north": 200, "south": 160, "west": 120}

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[Federation]:
    """Three sites that have joined, all by commands in processes of their own."""
    folder = tmp_path_factory.mktemp("federation")
    with Federation(folder, SIZES, model=tiny_bert, apart=True) as made:
        made.begin()
        yield made


def charges(federation: Federation, run: str) -> dict[str, Counter[int]]:
    """How often each site was charged for each round of a run, by its own ledger."""
    name = federation.rows(run) and federation.state(run)["run"]
    return {
        site: Counter(
            entry.round
            for entry in Ledger(one.folder / "policy.sqlite").entries()
            if entry.run == name
        )
        for site, one in federation.sites.items()
    }


def test_a_run_ends_with_a_model_and_statements_at_every_site(federation: Federation) -> None:
    run = federation.run("first")
    assert run.ended(seconds=180) == 0, run.said
    rows = federation.rows("first")
    assert [row["accepted"] for row in rows] == [sorted(SIZES)] * 3
    assert charges(federation, "first") == {key: Counter({1: 1, 2: 1, 3: 1}) for key in SIZES}
    hushtune("verify", federation.out("first"), apart=True)
    for site in federation.sites.values():
        (result,) = (site.folder / "runs").glob("*/manifest.json")
        hushtune("verify", result.parent)
        told = json.loads((result.parent / "privacy.json").read_text(encoding="utf-8"))
        assert list(told["sites"]) == [site.name]
        assert 0 < told["sites"][site.name]["epsilon"] <= 8.0


@pytest.mark.nightly
def test_idle_rounds_are_quick(federation: Federation) -> None:
    """The sites' executors keep what a round needs: seconds are of many rounds with little work."""
    run = federation.run("quick", train__rounds=8, train__local_steps=1)
    assert run.ended(seconds=180) == 0, run.said
    seconds = sorted(row["seconds"]["training"] for row in federation.rows("quick"))
    print("seconds a round:", seconds)
    assert all(row["accepted"] == sorted(SIZES) for row in federation.rows("quick"))


@pytest.mark.nightly
def test_a_site_that_is_killed_comes_back_and_is_charged_once_a_round(
    federation: Federation,
) -> None:
    run = federation.run("killed", "--answer-seconds", 20, train__rounds=14)
    federation.wait_for_round("killed", 2)
    lost = federation.sites["west"]
    assert lost.joined is not None
    lost.joined.kill()
    wait_until(lambda: len(lost.processes()) <= 1, seconds=20)  # its children have noticed
    lost.join()
    assert run.ended(seconds=400) == 0, run.said
    rows = federation.rows("killed")
    without = [row["round"] for row in rows if "west" not in row["accepted"]]
    assert without, "it was never missed"
    counted = charges(federation, "killed")
    assert counted["north"] == counted["south"] == Counter(range(1, 15))
    assert set(counted["west"].values()) <= {1}
    accepted = {row["round"] for row in rows if "west" in row["accepted"]}
    assert accepted <= set(counted["west"])
    wait_until(lambda: lost.status().get("state") == "connected", seconds=180)


def test_a_server_that_is_killed_goes_on_from_its_checkpoint(federation: Federation) -> None:
    run = federation.run("server-killed", train__rounds=12)
    federation.wait_for_round("server-killed", 3)
    assert federation.server is not None
    federation.server.kill()
    assert run.ended(seconds=120) != 0
    before = federation.rows("server-killed")
    federation.start()
    for site in federation.sites.values():
        wait_until(
            lambda site=site: site.status().get("state") == "connected",
            seconds=240,
            why=lambda site=site: str(site.status()),
        )
    again = federation.run("server-killed", "--resume", train__rounds=12)
    assert again.ended(seconds=240) == 0, again.said
    rows = federation.rows("server-killed")
    assert [row["round"] for row in rows] == list(range(1, 13))
    assert rows[: len(before) - 1] == before[:-1]  # all that its checkpoint had
    for site, counted in charges(federation, "server-killed").items():
        assert counted == Counter(range(1, 13)), site


def test_a_site_that_stands_still_is_left_behind_and_its_late_answer_changes_nothing(
    federation: Federation,
) -> None:
    run = federation.run("still", "--answer-seconds", 15, train__rounds=6)
    federation.wait_for_round("still", 1)
    executor = federation.sites["south"].processes()["executor"]
    os.kill(executor, signal.SIGSTOP)
    try:
        federation.wait_for_round("still", 3)
    finally:
        os.kill(executor, signal.SIGCONT)
    assert run.ended(seconds=240) == 0, run.said
    rows = federation.rows("still")
    assert any(row["rejected"].get("south") for row in rows)
    assert all({"north", "west"} <= set(row["accepted"]) for row in rows)
    assert set(charges(federation, "still")["south"].values()) <= {1}
    assert all(row["update_norm"] < 1e3 for row in rows)


def test_the_same_site_joins_once(federation: Federation) -> None:
    site = federation.sites["north"]
    said = hushtune("site", "join", site.folder, status=2, apart=True)
    assert "HT806" in said
    assert str(site.processes()["join"]) in said
    assert site.status()["state"] == "connected"


def test_no_row_key_or_path_of_a_site_is_anywhere_else(federation: Federation) -> None:
    """Read last, when all of the above has left its traces: logs, databases, messages, results."""
    own = [b"remark", b"verdict"]  # what a site's own log may tell its own people
    secrets: list[bytes] = []
    for site in federation.sites.values():
        own.append(str(site.folder).encode())
        keys = [path.read_bytes().strip() for path in (site.folder / "keys").iterdir()]
        assert len(keys) >= 2
        secrets += [*keys, *(line for key in keys for line in key.splitlines()[2:-1])]
        lines = (federation.root / f"{site.name}.csv").read_bytes().splitlines()
        secrets += [line.rpartition(b",")[0] for line in lines[1:]]
    places = list(federation.folder.rglob("*"))
    places += [path for path in federation.root.glob("*.out") if path.stem not in SIZES]
    outside = [path for path in places if path.is_file()]
    assert {"state.json", "north.json", "server.jsonl"} <= {path.name for path in outside}
    for path in outside:
        held = path.read_bytes()
        for secret in own + secrets:
            assert secret not in held, f"{path} holds {secret[:60]!r}"
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        with suppress(OSError):
            held = path.read_bytes()
            assert not [secret for secret in secrets if secret in held], held
    for site in federation.sites.values():  # nor are rows in the site's own logs
        for log in (*site.folder.glob("*.jsonl"), federation.root / f"{site.name}.out"):
            held = log.read_bytes()
            assert not [secret for secret in secrets if secret in held], log
