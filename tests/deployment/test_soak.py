"""Many rounds between processes, under faults that a seed chooses; and nothing wears out.

``HUSHTUNE_SOAK_ROUNDS`` says how many rounds (200), ``HUSHTUNE_SOAK_SEED`` which faults.
"""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from hushtune.common.privacy.ledger import Ledger
from hushtune.common.signed_files import Signed

from .processes import Federation, Institution, Started, hushtune, wait_until
from .proxy import BadLine

SIZES = {"north": 200, "south": 160, "west": 120}
ROUNDS = int(os.environ.get("HUSHTUNE_SOAK_ROUNDS", "200"))
ANSWER_SECONDS = 15
NAME = "soak"
STEADY = "north"
"""A site whose processes are never ended, so that their growth shows."""
MOST_GROWTH = {"rss": 48 * 2**20, "files": 12}
"""Of a process between two samples: bytes that are resident, and open files.

Python's allocator and torch's caches still grow by some MB after a quarter of the rounds; a leak of
a round's messages (0.1 MB and more) or of its connections goes far beyond."""

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture
def federation(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path
) -> Iterator[tuple[Federation, BadLine]]:
    """Three sites that have joined, west over a line that can be bad."""
    with Federation(tmp_path_factory.mktemp("soak"), SIZES, model=tiny_bert) as made:
        line = BadLine(made.port)
        made.stack.callback(line.close)
        made.reroute("west", line.port)
        made.begin()
        yield made, line


@dataclass
class Soak:
    """A run under faults; ``done`` counts what was done to it."""

    federation: Federation
    line: BadLine
    run: Started
    done: Counter[str] = field(default_factory=Counter[str])

    @property
    def round(self) -> int:
        return len(self.federation.rows(NAME))

    # ------------------------------------------------------------------------- faults ----

    def kill_site(self, site: Institution) -> None:
        """SIGKILL to the supervisor, whose children end with it."""
        assert site.joined is not None
        site.joined.kill()
        wait_until(lambda: len(site.processes()) <= 1, seconds=20)
        site.join()

    def kill_executor(self, site: Institution) -> None:
        """SIGKILL, in the middle of an order or between two."""
        if (pid := site.processes().get("executor")) is not None:
            os.kill(pid, signal.SIGKILL)

    def restart(self, site: Institution) -> None:
        """As a service manager does."""
        assert site.joined is not None
        site.joined.stop()
        site.join()

    def freeze(self, site: Institution, seconds: float) -> None:
        """SIGSTOP to one of its processes."""
        processes = site.processes()
        pid = processes[sorted(processes)[self.done.total() % len(processes)]]
        os.kill(pid, signal.SIGSTOP)
        threading.Event().wait(seconds)
        try:
            os.kill(pid, signal.SIGCONT)
        except ProcessLookupError:
            return

    def cut(self, seconds: float) -> None:
        """The line to west carries nothing for a while, and is then reset."""
        self.line.cut = True
        threading.Event().wait(seconds)
        self.line.heal()

    def kill_server(self) -> None:
        """SIGKILL; the run goes on from its checkpoint."""
        server = self.federation.server
        assert server is not None
        server.kill()
        assert self.run.ended(seconds=120) != 0
        self.federation.start()
        self.resume()

    # -------------------------------------------------------------------------- the run ----

    def resume(self) -> None:
        self.done["resumed"] += 1
        assert self.done["resumed"] < 20, self.run.said[-3000:]
        self.run = self.federation.run(
            NAME, "--resume", "--answer-seconds", ANSWER_SECONDS, train__rounds=ROUNDS
        )

    def wait_for_round(self, number: int, *, seconds: float = 300) -> None:
        """Until so many rounds are over; a run that too few sites were left for is resumed."""
        deadline = time.monotonic() + seconds
        while self.round < number:
            assert time.monotonic() < deadline, self.federation.state(NAME)
            status = self.run.process.poll()
            if status is not None:
                said = self.run.said
                assert status == 2, said[-3000:]
                assert "HT501" in said or "HT805" in said, said[-3000:]
                self.resume()
            time.sleep(0.2)


def faults(soak: Soak, random: random.Random) -> list[tuple[str, Callable[[], None]]]:
    """One of each kind, at a site and for a time that are drawn."""
    sites = soak.federation.sites
    lost = sites[random.choice(sorted(set(SIZES) - {STEADY}))]
    frozen, seconds = sites[random.choice(sorted(SIZES))], random.uniform(1.0, 12.0)
    return [
        (f"kill {lost.name}", lambda: soak.kill_site(lost)),
        (f"kill executor of {lost.name}", lambda: soak.kill_executor(lost)),
        (f"restart {lost.name}", lambda: soak.restart(lost)),
        (f"freeze {frozen.name} for {seconds:.1f} s", lambda: soak.freeze(frozen, seconds)),
        (f"cut west for {seconds:.1f} s", lambda: soak.cut(seconds)),
    ]


def processes_of(federation: Federation) -> dict[str, int]:
    """Process numbers by what they are: the server, the run's own process, and of the sites."""
    assert federation.server is not None
    found = {"server": federation.server.process.pid, "run": federation.state(NAME)["pid"]}
    for name, site in federation.sites.items():
        found |= {f"{name} {kind}": pid for kind, pid in site.processes().items()}
    return found


def sample(federation: Federation) -> dict[str, dict[str, int]]:
    """Resident bytes and open files of each process."""
    found: dict[str, dict[str, int]] = {}
    for name, pid in processes_of(federation).items():
        pages = int(Path(f"/proc/{pid}/statm").read_text().split()[1])
        files = len(os.listdir(f"/proc/{pid}/fd"))
        found[name] = {"pid": pid, "rss": pages * os.sysconf("SC_PAGE_SIZE"), "files": files}
    return found


def test_nothing_is_lost_doubled_or_worn_out(federation: tuple[Federation, BadLine]) -> None:
    made, line = federation
    seed = int(os.environ.get("HUSHTUNE_SOAK_SEED") or random.SystemRandom().randrange(10**6))
    print(f"HUSHTUNE_SOAK_SEED={seed} HUSHTUNE_SOAK_ROUNDS={ROUNDS}")
    drawn = random.Random(seed)
    run = made.run(NAME, "--answer-seconds", ANSWER_SECONDS, train__rounds=ROUNDS)
    soak = Soak(made, line, run)
    began, quarter = time.monotonic(), max(5, ROUNDS // 4)
    next_fault = 2
    server_killed, first = False, dict[str, dict[str, int]]()
    while next_fault < 0.7 * ROUNDS:
        if not first and next_fault >= quarter:
            soak.wait_for_round(quarter, seconds=600)
            first = sample(made)
        soak.wait_for_round(next_fault, seconds=600)
        if not server_killed and next_fault > quarter // 3:
            what, act, server_killed = "kill the server", soak.kill_server, True
        else:
            what, act = drawn.choice(faults(soak, drawn))
        print(f"{time.monotonic() - began:6.1f} s, round {soak.round}: {what}", flush=True)
        act()
        soak.done[what.split()[0]] += 1
        next_fault = soak.round + drawn.randint(2, 5)
    soak.wait_for_round(ROUNDS - 3, seconds=900)
    last = sample(made)
    assert soak.run.ended(seconds=300) == 0, soak.run.said[-3000:]
    print(f"{time.monotonic() - began:6.1f} s: over; {dict(soak.done)}")
    assert first, "no round was left to compare with"
    check_growth(first, last)
    check_rounds(made)
    check_books(made)


def check_growth(first: dict[str, dict[str, int]], last: dict[str, dict[str, int]]) -> None:
    """No process has grown beyond the margin; those that were started again count too."""
    for name in sorted(set(first) & set(last)):
        before, after = first[name], last[name]
        same = "" if before["pid"] == after["pid"] else " (started again)"
        megabytes = [one["rss"] / 2**20 for one in (before, after)]
        print(
            f"{name:16} {megabytes[0]:7.1f} -> {megabytes[1]:7.1f} MiB, "
            f"{before['files']:3} -> {after['files']:3} files{same}"
        )
    for name in ("server", "run", *(f"{STEADY} {kind}" for kind in ("join", "node", "executor"))):
        for what, most in MOST_GROWTH.items():
            assert last[name][what] - first[name][what] < most, (name, what)
    for kind in ("join", "node", "executor"):
        assert last[f"{STEADY} {kind}"]["pid"] == first[f"{STEADY} {kind}"]["pid"]


def check_rounds(federation: Federation) -> None:
    """All rounds are there, and the model is finite."""
    rows = federation.rows(NAME)
    assert [row["round"] for row in rows] == list(range(1, ROUNDS + 1))
    missed = Counter(site for row in rows for site in SIZES if site not in row["accepted"])
    seconds = sorted(row["seconds"]["training"] for row in rows)
    print(f"missed rounds: {dict(missed)}; seconds a round: median {seconds[len(rows) // 2]:.2f}")
    for row in rows:
        for site, why in row["rejected"].items():
            print(f"  round {row['round']} without {site}: {why[:120]}")
    model = load_file(federation.out(NAME) / "model.safetensors")
    assert model
    for key, values in model.items():
        assert np.isfinite(values).all(), key


def check_books(federation: Federation) -> None:
    """Every charge once, chains that hold, and one epsilon at both ends."""
    rows, name = federation.rows(NAME), federation.state(NAME)["run"]
    hushtune("verify", federation.out(NAME))
    told = Signed.read(federation.out(NAME) / "statement.json").document["sites"]
    for site, one in federation.sites.items():
        path = one.folder / "policy.sqlite"
        hushtune("ledger", "verify", path)
        charged = [entry.round for entry in Ledger(path).entries() if entry.run == name]
        assert len(charged) == len(set(charged)), f"{site} was charged twice for a round"
        accepted = {row["round"] for row in rows if site in row["accepted"]}
        assert accepted <= set(charged), f"{site} has not paid for {accepted - set(charged)}"
        receipt, shown = told[site]["receipt"], told[site]["shown"]
        assert receipt is not None, told[site]
        result = one.folder / "runs" / name
        hushtune("verify", result)
        own = json.loads((result / "privacy.json").read_text(encoding="utf-8"))["sites"][site]
        print(
            f"{site}: {len(charged)} charges, {shown['num_charges']} shown; epsilon "
            f"{own['epsilon']} at the site, {shown['epsilon']} by what was shown"
        )
        assert receipt["epsilon"] == own["epsilon"]
        assert receipt["charges_of_run"] == len(charged)
        if shown["num_charges"] == len(charged):
            assert shown["epsilon"] == pytest.approx(own["epsilon"], rel=1e-9)
        else:  # a charge whose answer was lost is known to the site alone, until its receipt
            assert shown["num_charges"] < len(charged)
            assert shown["epsilon"] < own["epsilon"]
