"""A federation of processes that is killed as a whole, and one with no way to anywhere else."""

from __future__ import annotations

import os
import random
import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest

from hushtune.common.privacy.ledger import Ledger

from .processes import Federation, hushtune, wait_until

SIZES = {"north": 200, "south": 160, "west": 120}
ROOT = Path(__file__).parents[2]

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.mark.parametrize("seed", range(3))
def test_all_are_killed_at_once_and_come_back_in_any_order(
    tmp_path: Path, tiny_bert: Path, seed: int
) -> None:
    """As when the power of a building fails: no round is lost that had ended, none paid twice."""
    drawn, rounds = random.Random(seed), 8
    with Federation(tmp_path, SIZES, model=tiny_bert) as federation:
        federation.begin()
        run = federation.run("power", train__rounds=rounds)
        federation.wait_for_round("power", drawn.randint(1, rounds - 3))
        before = federation.rows("power")
        ends = [*federation.sites.values(), federation]
        drawn.shuffle(ends)
        for end in ends:
            process = end.server if isinstance(end, Federation) else end.joined
            assert process is not None
            process.kill()
        assert run.ended(seconds=120) != 0
        drawn.shuffle(ends)
        for end in ends:
            if isinstance(end, Federation):
                end.start()
            else:
                wait_until(lambda site=end: len(site.processes()) <= 1, seconds=60)
                end.join()
        for site in federation.sites.values():
            site.wait_for("connected", seconds=240)
        again = federation.run("power", "--resume", train__rounds=rounds)
        assert again.ended(seconds=240) == 0, again.said
        rows = federation.rows("power")
        assert [row["round"] for row in rows] == list(range(1, rounds + 1))
        assert rows[: len(before) - 1] == before[:-1]
        for site in federation.sites.values():
            counted = Counter(
                entry.round for entry in Ledger(site.folder / "policy.sqlite").entries()
            )
            assert counted == Counter(range(1, rounds + 1)), site.name
            hushtune("verify", next((site.folder / "runs").iterdir()))


@pytest.mark.skipif(
    shutil.which("unshare") is None or shutil.which("ip") is None or os.geteuid() != 0,
    reason="needs unshare and ip, as root",
)
def test_a_run_needs_no_way_to_anywhere_but_the_coordinator() -> None:
    """A network namespace with nothing but loopback: nothing is fetched while a run goes on."""
    options = "-q -p no:cacheprovider -k test_a_run_ends_with_a_model_and_statements_at_every_site"
    test = f"{sys.executable} -m pytest {options} tests/deployment/test_federation.py"
    command = f"ip link set lo up && exec {test}"
    done = subprocess.run(
        ["unshare", "--net", "sh", "-c", command],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=400,
        check=False,
    )
    assert done.returncode == 0, done.stdout[-5000:]
    assert "1 passed" in done.stdout


@pytest.mark.skipif(shutil.which("strace") is None, reason="needs strace")
def test_a_site_is_killed_before_and_after_its_charge(tmp_path: Path, tiny_bert: Path) -> None:
    """At each of the first writes of an order that are to reach the disk, by the kernel itself."""
    rounds = 60
    with Federation(tmp_path, SIZES, model=tiny_bert) as federation:
        federation.begin()
        run = federation.run("written", "--answer-seconds", 8, train__rounds=rounds)
        west, new = federation.sites["west"], set[int]()
        ledger = west.folder / "policy.sqlite"
        federation.wait_for_round("written", 2)
        for when in range(1, 6):
            pid, before = west.processes()["executor"], len(Ledger(ledger).entries())
            traced = subprocess.Popen(
                [
                    *("strace", "-f", "-qq", "-o", "/dev/null", "-p", str(pid)),
                    *("-e", f"inject=fsync,fdatasync:signal=KILL:when={when}"),
                ]
            )
            assert traced.wait(timeout=60) is not None
            new.add(len(Ledger(ledger).entries()) - before)
            wait_until(lambda dead=pid: west.processes().get("executor", dead) != dead, seconds=60)
            over = len(federation.rows("written"))
            wait_until(
                lambda after=over: any(
                    "west" in row["accepted"] for row in federation.rows("written")[after:]
                ),
                seconds=90,
                why=lambda: f"{west.status()}",
            )
        assert {0, 1} <= new, "one of the two was not met"
        assert run.ended(seconds=300) == 0, run.said
        counted = Counter(entry.round for entry in Ledger(ledger).entries())
        assert set(counted.values()) == {1}
        rows = federation.rows("written")
        accepted = {row["round"] for row in rows if "west" in row["accepted"]}
        assert accepted <= set(counted)
        assert len(accepted) < rounds
        hushtune("verify", federation.out("written"))
