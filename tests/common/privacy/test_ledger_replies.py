"""Kept replies: how many, how large, gone for good when dropped, and counted when sent again."""

import errno
import os
import random
import sqlite3
from collections.abc import Iterator
from pathlib import Path

import pytest

from hushtune.common.errors import DiskFullError, LedgerError
from hushtune.common.privacy import ledger_files, ledger_replies
from hushtune.common.privacy.ledger import KEPT_REPLIES, Ledger
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.privacy.plan import DpSgdEvent

ROUND = DpSgdEvent(sampling_probability=0.13, noise_multiplier=1.7, steps=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "north.sqlite"


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is synced: these tests are about what is in the file, not about a loss of power."""
    pragmas = [pragma.replace("EXTRA", "OFF") for pragma in ledger_files._PRAGMAS]
    assert "synchronous=OFF" in pragmas
    monkeypatch.setattr(ledger_files, "_PRAGMAS", pragmas)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def keep(ledger: Ledger, run: str, reply: bytes, *, dataset: str = "d", round: int = 1) -> None:
    ledger.charge_with_reply(ROUND, dataset=dataset, run=run, round=round, reply=reply)


def kept(path: Path) -> list[int]:
    """The charges whose replies are still there."""
    replies = read_ledger(path).replies
    return [sequence for sequence, reply in replies.items() if reply.num_bytes is not None]


# --- bounds -------------------------------------------------------------------------------------


@pytest.mark.usefixtures("hurried")
def test_a_thousand_runs_leave_a_bounded_file(path: Path) -> None:
    """A server that names a new run for every round cannot fill a site's disk with replies."""
    ledger = Ledger(path)
    sizes: list[int] = []
    for number in range(1000):
        keep(ledger, f"run {number}", bytes([number % 256]) * 20_000)
        sizes.append(path.stat().st_size)
    assert kept(path) == list(range(1001 - ledger_replies.MOST_REPLIES, 1001))
    charges = 1000 * 700  # what a thousand charges and the digests of their replies take
    assert max(sizes) < ledger_replies.MOST_REPLIES * 24_000 + charges
    ledger.verify()
    with pytest.raises(LedgerError, match="no longer kept"):
        ledger.resend("run 0", 1, dataset="d")
    with pytest.raises(LedgerError, match="other bytes"):
        keep(ledger, "run 0", b"trained anew")
    assert len(ledger.entries()) == 1000


@pytest.mark.usefixtures("hurried")
def test_the_bytes_of_all_replies_together_are_bounded(
    path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ledger_replies, "MOST_BYTES", 1_000_000)
    ledger = Ledger(path)
    for number in range(1, 21):
        keep(ledger, f"run {number}", bytes(300_000), dataset=f"d{number % 2}")
        assert path.stat().st_size < 1_300_000
    assert kept(path) == [18, 19, 20]
    # The newest is kept whatever its size: it may be on its way, and be lost there.
    keep(ledger, "large", bytes(5_000_000))
    assert kept(path) == [21]
    assert len((ledger.resend("large", 1, dataset="d") or pytest.fail("gone")).reply) == 5_000_000
    # The room of what was dropped is given back to the file system.
    keep(ledger, "small", b"x")
    assert kept(path) == [22]
    assert path.stat().st_size < 200_000


@pytest.mark.usefixtures("hurried")
def test_the_bound_of_a_run_counts_its_own_replies_only(path: Path) -> None:
    ledger = Ledger(path)
    for number in range(1, 4):
        keep(ledger, "other", b"x", round=number)
        keep(ledger, "r", b"x", dataset="another", round=number)
    for number in range(1, KEPT_REPLIES + 3):
        keep(ledger, "r", b"x", round=number)
    assert kept(path) == [*range(1, 7), *range(9, 9 + KEPT_REPLIES)]


@pytest.mark.usefixtures("hurried")
def test_a_dropped_reply_leaves_the_file(path: Path) -> None:
    ledger = Ledger(path)
    secret = random.Random(3).randbytes(50_000)
    keep(ledger, "r", secret)
    pieces = [secret[at : at + 64] for at in range(0, len(secret), 1000)]
    assert all(piece in path.read_bytes() for piece in pieces[5:7])
    for number in range(2, KEPT_REPLIES + 2):
        keep(ledger, "r", b"short", round=number)
    assert 1 not in kept(path)
    content = path.read_bytes()
    assert not [piece for piece in pieces if piece in content]


# --- sent again ---------------------------------------------------------------------------------


def test_what_is_handed_out_again_is_counted_for_good(path: Path) -> None:
    ledger = Ledger(path)
    for run, dataset, round, times in (
        ("a", "d", 1, 3),
        ("a", "d", 2, 0),
        ("a", "e", 1, 1),
        ("b", "d", 1, 2),
    ):
        keep(ledger, run, b"reply", dataset=dataset, round=round)
        for _ in range(times):
            assert ledger.resend(run, round, dataset=dataset) is not None
    head = ledger.head()
    again = Ledger(path)
    assert again.num_resent("d", "a") == 3
    assert again.num_resent("d") == 5
    assert again.num_resent(run="a") == 4
    assert again.num_resent() == 6
    assert again.num_resent("nobody's") == 0
    assert read_ledger(path).resent == {1: 3, 3: 1, 4: 2}
    assert again.head() == head
    assert len(again.entries()) == 4


def test_what_was_never_answered_or_is_gone_is_not_counted(path: Path) -> None:
    ledger = Ledger(path)
    ledger.charge(ROUND, dataset="d", run="refused", round=1)
    assert ledger.resend("refused", 1, dataset="d") is None
    assert ledger.resend("r", 1, dataset="d") is None
    for number in range(1, KEPT_REPLIES + 2):
        keep(ledger, "r", b"x", round=number)
    with pytest.raises(LedgerError, match="no longer kept"):
        ledger.resend("r", 1, dataset="d")
    assert ledger.num_resent() == 0


@pytest.mark.parametrize(
    ("fault", "expected"),
    [
        (sqlite3.OperationalError("disk I/O error"), LedgerError),
        (sqlite3.OperationalError("database or disk is full"), DiskFullError),
        (OSError(errno.EIO, "Input/output error"), LedgerError),
    ],
    ids=str,
)
def test_a_reply_that_cannot_be_counted_stays_and_so_does_its_charge(
    path: Path,
    monkeypatch: pytest.MonkeyPatch,
    fault: Exception,
    expected: type[Exception],
) -> None:
    """As where a charge cannot be written: refused by name, and as it was once the disk is well."""
    ledger = Ledger(path)
    keep(ledger, "r", b"reply")
    entries = ledger.entries()

    def fail(*_: object) -> Iterator[None]:
        raise fault

    with monkeypatch.context() as patch:
        patch.setattr(ledger_replies, "count_resent", fail)
        with pytest.raises(expected, match="nothing was"):
            ledger.resend("r", 1, dataset="d")
    assert Ledger(path).entries() == entries
    assert (ledger.resend("r", 1, dataset="d") or pytest.fail("gone")).reply == b"reply"
    assert ledger.num_resent() == 1
