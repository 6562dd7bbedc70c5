"""The ledger: durable, private, chained, counted once, and safe between processes."""

import dataclasses
import errno
import json
import multiprocessing
import os
import signal
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.errors import (
    BudgetExceededError,
    DiskFullError,
    LedgerError,
    MessageError,
)
from hushtune.common.privacy import accountant, ledger_files
from hushtune.common.privacy.ledger import (
    GENESIS,
    KEPT_REPLIES,
    KeptReply,
    Ledger,
    LedgerEntry,
    Limit,
)
from hushtune.common.privacy.ledger_entry import RECORD, unit_name
from hushtune.common.privacy.plan import DpSgdEvent, Relation

ADD = Relation.ADD_OR_REMOVE_ONE
ROUND = DpSgdEvent(sampling_probability=0.13, noise_multiplier=1.7, steps=3)
BIG = DpSgdEvent(sampling_probability=0.13, noise_multiplier=1.7, steps=36)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "north.sqlite"


@pytest.fixture
def ledger(path: Path) -> Ledger:
    return Ledger(path)


def fill(ledger: Ledger, rounds: int, *, run: str = "r", dataset: str = "d") -> list[LedgerEntry]:
    return [
        ledger.charge_with_reply(
            ROUND, dataset=dataset, run=run, round=number, reply=b"reply %d" % number
        )
        for number in range(1, rounds + 1)
    ]


def tamper(path: Path, statement: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(statement)
    db.close()


def spent(ledger: Ledger, dataset: str = "d") -> float:
    return ledger.epsilon(dataset=dataset, delta=1e-5, relation=ADD)


# --- what is kept -------------------------------------------------------------------------------


def test_charges_are_chained_and_there_after_reopening(ledger: Ledger, path: Path) -> None:
    assert ledger.head() == GENESIS
    entries = fill(ledger, 3)
    assert [entry.sequence for entry in entries] == [1, 2, 3]
    assert [entry.previous for entry in entries] == [GENESIS, entries[0].hash, entries[1].hash]
    assert Ledger(path).entries("d") == entries
    assert Ledger(path).head() == entries[-1].hash
    assert ledger.entries("another") == []


def test_rounds_add_up_to_the_whole_run_and_never_fall(ledger: Ledger) -> None:
    seen = [spent(ledger)]
    for number in range(1, 13):
        ledger.charge(ROUND, dataset="d", run="r", round=number)
        seen.append(spent(ledger))
    assert seen[0] == 0.0
    assert seen == sorted(set(seen))
    assert seen[-1] == accountant.epsilon([BIG], delta=1e-5, relation=ADD)
    assert seen[-1] > 2 * seen[1]


def test_epsilon_never_falls_whatever_is_charged(ledger: Ledger) -> None:
    before = 0.0
    for number, (rate, sigma) in enumerate(
        [(0.1, 50.0), (0.001, 900.0), (0.1, 3.9), (0.5, 8.0), (0.1, 0.24), (0.01, 4.0)], start=1
    ):
        event = DpSgdEvent(sampling_probability=rate, noise_multiplier=sigma, steps=number)
        ledger.charge(event, dataset="d", run="r", round=number)
        after = spent(ledger)
        assert after >= before
        before = after


def test_two_runs_on_one_data_set_add_up(ledger: Ledger) -> None:
    fill(ledger, 3, run="first")
    one = spent(ledger)
    fill(ledger, 3, run="second")
    event = DpSgdEvent(sampling_probability=0.13, noise_multiplier=1.7, steps=18)
    assert spent(ledger) == accountant.epsilon([event], delta=1e-5, relation=ADD) > one
    fill(ledger, 3, run="first", dataset="other")
    assert spent(ledger, "other") == one


def limited(epsilon: float = 1e6, **others: Any) -> Limit:
    return Limit(epsilon=epsilon, delta=1e-5, relation=ADD, **others)


def test_a_limit_counts_what_is_there(ledger: Ledger) -> None:
    limit = limited(accountant.epsilon([BIG], delta=1e-5, relation=ADD))
    ledger.check(BIG, dataset="d", run="r", limit=limit)
    fill(ledger, 11)
    ledger.check(ROUND, dataset="d", run="r", limit=limit)
    fill(ledger, 1, run="one more")
    with pytest.raises(BudgetExceededError, match="budget"):
        ledger.check(ROUND, dataset="d", run="r", limit=limit)
    ledger.check(ROUND, dataset="fresh", run="r", limit=limit)
    with pytest.raises(BudgetExceededError, match="budget"):  # whatever the rows are called
        ledger.check(
            ROUND, dataset="fresh", run="r", limit=dataclasses.replace(limit, whole_ledger=True)
        )


@pytest.mark.parametrize("terms", [{"max_rounds": 3}, {"max_steps": 11}])
def test_rounds_and_steps_are_limited_within_the_transaction(
    ledger: Ledger, terms: dict[str, Any]
) -> None:
    limit = limited(**terms)
    for number in range(3):
        ledger.charge(ROUND, dataset="d", run=f"run {number}", round=1, limit=limit)
    with pytest.raises(BudgetExceededError, match="rounds or steps"):
        ledger.charge(ROUND, dataset="d", run="another", round=1, limit=limit)
    ledger.charge(ROUND, dataset="other", run="another", round=1, limit=limit)
    with pytest.raises(BudgetExceededError, match="rounds or steps"):
        ledger.charge(
            ROUND, dataset="d 2", run="x", round=1, limit=limited(**terms, whole_ledger=True)
        )


def test_units_do_not_add_up(ledger: Ledger) -> None:
    """What a record lost is not what a patient lost."""
    limit = limited()
    ledger.charge(ROUND, dataset="d", run="r", round=1, limit=limit, unit=unit_name("patient"))
    for unit in (RECORD, unit_name("row")):
        with pytest.raises(LedgerError, match="another unit"):
            ledger.charge(ROUND, dataset="d", run="s", round=1, limit=limit, unit=unit)
    assert [entry.unit for entry in ledger.entries()] == ["group patient"]


@pytest.mark.parametrize("changed", [{"noise_multiplier": 1.8}, {"sampling_probability": 0.12}])
def test_rate_and_noise_cannot_change_within_a_run(
    ledger: Ledger, changed: dict[str, float]
) -> None:
    limit = limited()
    ledger.charge(ROUND, dataset="d", run="r", round=1, limit=limit)
    other = dataclasses.replace(ROUND, **changed)  # even where it costs less
    with pytest.raises(LedgerError, match="cannot change"):
        ledger.charge(other, dataset="d", run="r", round=2, limit=limit)
    ledger.charge(other, dataset="d", run="another", round=2, limit=limit)
    ledger.charge(dataclasses.replace(ROUND, steps=1), dataset="d", run="r", round=2, limit=limit)


def test_a_charge_pays_for_a_refusal_or_for_a_reply(ledger: Ledger) -> None:
    """Two processes on one round: one failed and said so, so the other's reply must not leave."""
    ledger.charge(ROUND, dataset="d", run="r", round=1)
    with pytest.raises(LedgerError, match="refused before"):
        ledger.charge_with_reply(ROUND, dataset="d", run="r", round=1, reply=b"x")
    assert ledger.resend("r", 1, dataset="d") is None


def test_batches_follow_from_a_secret_of_the_ledger(ledger: Ledger, tmp_path: Path) -> None:
    key = ledger.batch_key()
    assert len(key) == 32
    assert Ledger(ledger.path).batch_key() == key
    assert Ledger(tmp_path / "other.sqlite").batch_key() != key
    assert key not in ledger.path.read_bytes()  # what is kept is only what it is derived from


def test_a_limit_is_kept_within_the_transaction(ledger: Ledger) -> None:
    enough = accountant.epsilon([ROUND], delta=1e-5, relation=ADD)
    limit = Limit(epsilon=enough, delta=1e-5, relation=ADD)
    ledger.charge(ROUND, dataset="d", run="r", round=1, limit=limit)
    with pytest.raises(BudgetExceededError, match="budget"):
        ledger.charge_with_reply(ROUND, dataset="d", run="r", round=2, reply=b"x", limit=limit)
    assert len(ledger.entries()) == 1
    assert ledger.resend("r", 2, dataset="d") is None


# --- a round that is asked for again ------------------------------------------------------------


def test_a_resent_round_gives_the_same_bytes_and_one_charge(ledger: Ledger, path: Path) -> None:
    entry = ledger.charge_with_reply(ROUND, dataset="d", run="r", round=1, reply=b"\0bytes\xff")
    again = Ledger(path)
    assert again.resend("r", 1, dataset="d") == KeptReply(entry, b"\0bytes\xff")
    assert (
        again.charge_with_reply(ROUND, dataset="d", run="r", round=1, reply=b"\0bytes\xff") == entry
    )
    assert again.charge(ROUND, dataset="d", run="r", round=1) == entry
    assert again.entries() == [entry]


def test_a_round_cannot_be_answered_twice_with_different_bytes(ledger: Ledger) -> None:
    fill(ledger, 1)
    with pytest.raises(LedgerError, match="other bytes"):
        ledger.charge_with_reply(ROUND, dataset="d", run="r", round=1, reply=b"trained anew")
    kept = ledger.resend("r", 1, dataset="d")
    assert kept is not None
    assert kept.reply == b"reply 1"


def test_a_round_cannot_be_charged_for_something_else(ledger: Ledger) -> None:
    fill(ledger, 1)
    with pytest.raises(LedgerError, match="something else"):
        ledger.charge(BIG, dataset="d", run="r", round=1)
    assert len(ledger.entries()) == 1


def test_the_charge_and_its_reply_are_one_transaction(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(errno.EIO, "a fault between charge and reply")

    monkeypatch.setattr("hushtune.common.privacy.ledger.ledger_replies.keep", fail)
    with pytest.raises(LedgerError):
        ledger.charge_with_reply(ROUND, dataset="d", run="r", round=1, reply=b"x")
    assert Ledger(path).entries() == []


def test_old_replies_go_and_their_rounds_are_not_trained_anew(ledger: Ledger) -> None:
    fill(ledger, KEPT_REPLIES + 2)
    fill(ledger, 1, run="other")
    for number in (1, 2):
        with pytest.raises(LedgerError, match="no longer kept"):
            ledger.resend("r", number, dataset="d")
        with pytest.raises(LedgerError, match="other bytes"):
            ledger.charge_with_reply(ROUND, dataset="d", run="r", round=number, reply=b"anew")
    for number in range(3, KEPT_REPLIES + 3):
        kept = ledger.resend("r", number, dataset="d")
        assert kept is not None
        assert kept.reply == b"reply %d" % number
    assert ledger.resend("other", 1, dataset="d") is not None
    assert ledger.resend("r", 99, dataset="d") is None


def test_the_file_does_not_grow_with_replies(ledger: Ledger, path: Path) -> None:
    for number in range(1, 31):
        body = bytes([number]) * 100_000
        ledger.charge_with_reply(ROUND, dataset="d", run="r", round=number, reply=body)
    assert path.stat().st_size < (KEPT_REPLIES + 3) * 100_000
    ledger.verify()


# --- other hands --------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE charges SET event = replace(event, '1.7', '9.9') WHERE sequence = 2",
        "UPDATE charges SET dataset = 'another' WHERE sequence = 2",
        "UPDATE charges SET round = 99 WHERE sequence = 2",
        "UPDATE charges SET event = 'nonsense' WHERE sequence = 2",
        "UPDATE charges SET hash = previous WHERE sequence = 2",
        "UPDATE charges SET sequence = 9 WHERE sequence = 4",
        "DELETE FROM charges WHERE sequence = 1",
        "DELETE FROM charges WHERE sequence = 2",
        "DELETE FROM charges WHERE sequence = 4",
        "DELETE FROM charges WHERE sequence > 2",
        "DELETE FROM charges",
        "DROP TABLE charges",
        "UPDATE charges SET run = x'00' WHERE sequence = 2",
        "UPDATE replies_kept SET reply = x'00' WHERE sequence = 3",
        "UPDATE replies_kept SET reply = 'reply 3' WHERE sequence = 3",
    ],
)
def test_an_edit_or_a_missing_row_is_detected(ledger: Ledger, path: Path, statement: str) -> None:
    fill(ledger, 4)
    Ledger(path)
    tamper(path, statement)
    with pytest.raises(LedgerError):
        Ledger(path)


def test_a_ledger_that_is_open_notices_too(ledger: Ledger, path: Path) -> None:
    fill(ledger, 2)
    tamper(path, "UPDATE charges SET event = replace(event, '1.7', '9.9') WHERE sequence = 1")
    uses: list[Callable[[], object]] = [
        lambda: ledger.entries("d"),
        ledger.head,
        lambda: spent(ledger),
        lambda: ledger.charge(ROUND, dataset="d", run="r", round=3),
        lambda: ledger.check(ROUND, dataset="d", run="r", limit=limited()),
        lambda: ledger.resend("r", 1, dataset="d"),
    ]
    for use in uses:
        with pytest.raises(LedgerError, match="row 1"):
            use()


def test_a_head_that_was_taken_away_is_missed(ledger: Ledger, path: Path) -> None:
    head = path.with_name(path.name + ".head")
    assert head.read_text() == f"0 {GENESIS}\n"  # from the start
    old = path.read_bytes()
    fill(ledger, 2)
    head.unlink()
    with pytest.raises(LedgerError, match=r"\.head"):
        Ledger(path)
    with pytest.raises(LedgerError, match=r"\.head"):
        ledger.charge(ROUND, dataset="d", run="r", round=3)
    path.write_bytes(old)
    Ledger(path)  # both put back: what a noted hash alone tells


def test_a_rewritten_chain_is_detected_by_its_head(ledger: Ledger, path: Path) -> None:
    fill(ledger, 1)
    cheaper = DpSgdEvent(sampling_probability=0.13, noise_multiplier=99.0, steps=3)
    forged = LedgerEntry.after(
        0, GENESIS, dataset="d", run="r", round=1, unit=RECORD, event=cheaper
    )
    event = json.dumps(cheaper.to_dict(), sort_keys=True)
    tamper(path, f"UPDATE charges SET event = '{event}', hash = '{forged.hash}'")
    with pytest.raises(LedgerError, match="1 charges"):
        Ledger(path)


def test_a_forged_charge_breaks_the_chain_after_it(ledger: Ledger, path: Path) -> None:
    """Its own hash fits, and so does the head; the next charge's link does not."""
    first, second, _ = fill(ledger, 3)
    cheaper = DpSgdEvent(sampling_probability=0.13, noise_multiplier=99.0, steps=3)
    forged = LedgerEntry.after(
        1, first.hash, dataset="d", run="r", round=2, unit=RECORD, event=cheaper
    )
    event = json.dumps(cheaper.to_dict(), sort_keys=True)
    tamper(
        path,
        f"UPDATE charges SET event = '{event}', hash = '{forged.hash}'"
        f" WHERE sequence = {second.sequence}",
    )
    with pytest.raises(LedgerError, match="row 3"):
        Ledger(path)


@pytest.mark.parametrize("part", [0.0, 0.01, 0.3, 0.5, 0.9])
def test_a_truncated_file_is_detected(ledger: Ledger, path: Path, part: float) -> None:
    fill(ledger, 40)
    os.truncate(path, int(path.stat().st_size * part))
    with pytest.raises(LedgerError):
        Ledger(path)


def test_an_older_file_put_back_is_detected(ledger: Ledger, path: Path) -> None:
    fill(ledger, 2)
    old = path.read_bytes()
    ledger.charge(ROUND, dataset="d", run="r", round=3)
    path.write_bytes(old)
    with pytest.raises(LedgerError, match="2 charges and held 3"):
        Ledger(path)
    with pytest.raises(LedgerError):
        ledger.charge(ROUND, dataset="d", run="r", round=4)


def test_a_deleted_file_is_missed(ledger: Ledger, path: Path) -> None:
    fill(ledger, 1)
    path.unlink()
    with pytest.raises(LedgerError):
        ledger.charge(ROUND, dataset="d", run="r", round=2)
    assert not path.exists()
    with pytest.raises(LedgerError, match="held 1 before"):
        Ledger(path)


def test_a_head_that_lags_after_a_crash_is_fine_and_a_damaged_one_is_not(
    ledger: Ledger, path: Path
) -> None:
    entries = fill(ledger, 3)
    ledger_files.write_head(path, 2, entries[1].hash)
    assert Ledger(path).entries() == entries
    ledger_files.head_path(path).write_text("nonsense")
    with pytest.raises(LedgerError, match="head"):
        Ledger(path)


def test_another_kind_of_file_is_refused(path: Path) -> None:
    path.touch(0o600)
    path.write_bytes(b"this is no database at all" * 100)
    with pytest.raises(LedgerError, match="could not be used"):
        Ledger(path)


# --- the file -----------------------------------------------------------------------------------


def test_every_file_is_the_owner_s_alone_from_the_start(path: Path) -> None:
    before = os.umask(0)
    try:
        ledger = Ledger(path)
        fill(ledger, 1)
        with ledger._writing() as db:  # pyright: ignore[reportPrivateUsage]
            # While a transaction has changes, its journal is there too.
            db.execute("CREATE TABLE something (x)")
            modes = {file.name: file.stat().st_mode & 0o777 for file in path.parent.iterdir()}
    finally:
        os.umask(before)
    assert set(modes) == {f"{path.name}{suffix}" for suffix in ("", ".head", "-journal")}
    assert set(modes.values()) == {0o600}


def test_a_file_that_others_can_read_is_refused(ledger: Ledger, path: Path) -> None:
    path.chmod(0o640)
    with pytest.raises(LedgerError, match="chmod 600"):
        Ledger(path)


def test_settings_are_the_durable_ones(ledger: Ledger) -> None:
    with ledger._connection() as db:  # pyright: ignore[reportPrivateUsage]
        assert db.execute("PRAGMA synchronous").fetchone() == (3,)  # EXTRA
        assert db.execute("PRAGMA journal_mode").fetchone() == ("delete",)
        assert db.execute("PRAGMA secure_delete").fetchone() == (1,)
        assert db.execute("PRAGMA auto_vacuum").fetchone() == (1,)  # FULL


def test_opening_and_asking_write_nothing(ledger: Ledger, path: Path) -> None:
    fill(ledger, 2)
    before = {file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()}
    again = Ledger(path)
    again.entries()
    again.num_resent()
    assert again.resend("r", 3, dataset="d") is None
    assert before == {
        file: (file.read_bytes(), file.stat().st_mtime_ns) for file in path.parent.iterdir()
    }


def test_a_full_disk_is_named_and_nothing_is_charged(ledger: Ledger, path: Path) -> None:
    fill(ledger, 1)

    def fill_the_disk() -> None:
        with ledger._writing() as db:  # pyright: ignore[reportPrivateUsage]
            pages = db.execute("PRAGMA page_count").fetchone()[0]
            db.execute(f"PRAGMA max_page_count = {pages}")
            db.execute("UPDATE charges SET event = 'x'")
            db.execute("UPDATE replies_kept SET reply = zeroblob(1000000)")

    with pytest.raises(DiskFullError, match="disk is full"):
        fill_the_disk()
    assert len(Ledger(path).entries()) == 1


def test_other_faults_of_the_disk_are_named(path: Path) -> None:
    with pytest.raises(DiskFullError), ledger_files.disk_errors(path):
        raise OSError(errno.ENOSPC, "No space left on device")
    for fault in (
        sqlite3.OperationalError("attempt to write a readonly database"),
        sqlite3.OperationalError("database is locked"),
        PermissionError(errno.EACCES, "Permission denied"),
    ):
        with (
            pytest.raises(LedgerError, match="nothing was released"),
            ledger_files.disk_errors(path),
        ):
            raise fault


ALLOW = """
import resource, signal, sys
from hushtune.common.errors import HushtuneError
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import DpSgdEvent
event = DpSgdEvent(sampling_probability=0.13, noise_multiplier=1.7, steps=3)
ledger = Ledger(sys.argv[1])
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), -1))
try:
    ledger.charge_with_reply(event, dataset="d", run="r", round=2, reply=bytes(200_000))
    print("released")
except HushtuneError as error:
    print(error.code, error.message)
"""


@pytest.mark.parametrize("room", [0, 600, 20_000, 100_000, 190_000])
def test_a_write_that_fails_at_commit_releases_nothing(
    ledger: Ledger, path: Path, room: int
) -> None:
    """The system itself stops files at `room` bytes: the journal, then the database."""
    fill(ledger, 1)
    command = [sys.executable, "-c", ALLOW, str(path), str(room)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
    assert done.stdout.startswith("HT402"), done.stdout + done.stderr
    assert "nothing was released" in done.stdout
    assert [entry.round for entry in Ledger(path).entries()] == [1]
    assert Ledger(path).resend("r", 2, dataset="d") is None
    fill(ledger, 2)


@pytest.mark.parametrize("code", [errno.EIO, errno.EROFS, errno.ENOSPC])
@pytest.mark.parametrize("call", ["fsync", "replace", "mkstemp"])
def test_a_head_that_cannot_be_written_refuses_and_keeps_the_charge(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch, call: str, code: int
) -> None:
    """The charge is durable by then, so it counts; its reply stays inside until asked for again."""
    fill(ledger, 1)

    def fail(*_: object, **__: object) -> None:
        raise OSError(code, os.strerror(code))

    where = {"fsync": (os, "fsync"), "replace": (Path, "replace")}
    with monkeypatch.context() as patch:
        patch.setattr(*where.get(call, (tempfile, "mkstemp")), fail)
        with pytest.raises(DiskFullError if code == errno.ENOSPC else LedgerError):
            ledger.charge_with_reply(ROUND, dataset="d", run="r", round=2, reply=b"paid for")
    assert {file.name for file in path.parent.iterdir()} == {path.name, f"{path.name}.head"}
    assert [entry.round for entry in Ledger(path).entries()] == [1, 2]
    kept = ledger.resend("r", 2, dataset="d")
    assert kept is not None
    assert kept.reply == b"paid for"


def test_a_read_only_ledger_releases_nothing(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (entry,) = fill(ledger, 1)
    real = sqlite3.connect

    def read_only(database: str, **options: Any) -> sqlite3.Connection:
        return real(database.replace("mode=rw", "mode=ro"), **options)

    with monkeypatch.context() as patch:
        patch.setattr(sqlite3, "connect", read_only)
        for use in (
            lambda: ledger.resend("r", 1, dataset="d"),
            lambda: ledger.charge(ROUND, dataset="d", run="r", round=2),
            lambda: ledger.charge_with_reply(ROUND, dataset="d", run="r", round=2, reply=b"x"),
        ):
            with pytest.raises(LedgerError, match="nothing was released"):
                use()
    assert ledger.entries() == [entry]
    assert ledger.num_resent() == 0


# --- entries off the wire -----------------------------------------------------------------------


def test_an_entry_survives_json_and_an_edited_one_does_not(ledger: Ledger) -> None:
    (entry,) = fill(ledger, 1)
    raw = json.loads(json.dumps(entry.to_dict()))
    assert LedgerEntry.from_dict(raw) == entry
    for change in ({"round": 2}, {"hash": GENESIS}, {"event": {}}, {"event": None}, {"round": "x"}):
        with pytest.raises(MessageError):
            LedgerEntry.from_dict(raw | change)
    with pytest.raises(MessageError):
        LedgerEntry.from_dict({key: raw[key] for key in raw if key != "previous"})


# --- processes ----------------------------------------------------------------------------------


def charge_many(path: Path, run: str, rounds: int) -> None:
    ledger = Ledger(path)
    for number in range(1, rounds + 1):
        ledger.charge_with_reply(ROUND, dataset="d", run=run, round=number, reply=run.encode())


def test_processes_at_once_all_land(path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    workers = [spawn.Process(target=charge_many, args=(path, run, 10)) for run in ("a", "b")]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    entries = Ledger(path).entries("d")
    assert [entry.sequence for entry in entries] == list(range(1, 21))
    assert sorted((entry.run, entry.round) for entry in entries) == [
        (run, number) for run in ("a", "b") for number in range(1, 11)
    ]


def take_the_last(folder: Path, run: str, barrier: Any, won: Any) -> None:
    # The real figure takes a process seconds, and this is about who gets it.
    accountant.epsilon = lambda events, **_: float(sum(event.steps for event in events))
    limit = Limit(epsilon=float(ROUND.steps), delta=1e-5, relation=ADD)
    for number in range(8):
        ledger = Ledger(folder / f"{number}.sqlite")
        barrier.wait(60)
        try:
            ledger.charge_with_reply(
                ROUND, dataset="d", run=run, round=1, reply=run.encode(), limit=limit
            )
            won.put((number, run))
        except BudgetExceededError:
            won.put((number, None))


def test_of_two_processes_one_gets_the_last_of_a_budget(tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    barrier, won = spawn.Barrier(2), spawn.Queue()
    workers = [
        spawn.Process(target=take_the_last, args=(tmp_path, run, barrier, won))
        for run in ("a", "b")
    ]
    for worker in workers:
        worker.start()
    told = [won.get(timeout=120) for _ in range(16)]
    for worker in workers:
        worker.join(120)
    assert [worker.exitcode for worker in workers] == [0, 0]
    for number in range(8):
        ledger = Ledger(tmp_path / f"{number}.sqlite")
        (entry,) = ledger.entries()
        assert sorted(str(run) for at, run in told if at == number) == sorted(["None", entry.run])
        kept = ledger.resend(entry.run, 1, dataset="d")
        assert kept is not None
        assert kept.reply == entry.run.encode()


def test_threads_at_once_all_land(ledger: Ledger, path: Path) -> None:
    threads = [threading.Thread(target=charge_many, args=(path, run, 5)) for run in ("a", "b", "c")]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert len(ledger.entries("d")) == 15


CHARGE_AND_WAIT = """
import sys, time
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import DpSgdEvent
event = DpSgdEvent(sampling_probability=0.13, noise_multiplier=1.7, steps=3)
Ledger(sys.argv[1]).charge_with_reply(event, dataset="d", run="r", round=1, reply=b"kept")
print("charged", flush=True)
time.sleep(60)
"""


def test_a_charge_survives_kill_9(path: Path) -> None:
    command = [sys.executable, "-c", CHARGE_AND_WAIT, str(path)]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment) as child:
        assert child.stdout is not None
        assert child.stdout.readline() == b"charged\n"
        child.send_signal(signal.SIGKILL)
    assert child.returncode == -signal.SIGKILL
    ledger = Ledger(path)
    assert [entry.round for entry in ledger.entries("d")] == [1]
    kept = ledger.resend("r", 1, dataset="d")
    assert kept is not None
    assert kept.reply == b"kept"


def test_a_transaction_cut_short_leaves_nothing(path: Path) -> None:
    code = CHARGE_AND_WAIT.replace(
        "Ledger(sys.argv[1])",
        "import hushtune.common.privacy.ledger_replies as replies, os, signal\n"
        "replies.keep = lambda *_, **__: os.kill(os.getpid(), signal.SIGKILL)\n"
        "Ledger(sys.argv[1])",
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", code, str(path)], env=environment, check=False, timeout=120
    )
    assert done.returncode == -signal.SIGKILL
    assert Ledger(path).entries() == []


def test_no_head_is_put_back_by_a_process_that_was_slower(
    ledger: Ledger, path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Else an older copy of the ledger would fit it."""
    at_last = ledger_files.read_head
    slower = threading.Thread(
        target=lambda: Ledger(path).charge(ROUND, dataset="d", run="r", round=98)
    )
    calls: list[Path] = []

    def read_head(place: Path) -> tuple[int, str] | None:
        found = at_last(place)
        if threading.current_thread() is threading.main_thread():
            calls.append(place)
            if len(calls) == 2:  # the charge is made, and its head is about to be written
                slower.start()
                slower.join(0.5)
        return found

    monkeypatch.setattr(ledger_files, "read_head", read_head)
    ledger.charge(ROUND, dataset="d", run="r", round=97)
    slower.join()
    noted = at_last(path)
    assert noted is not None
    assert noted == (len(ledger.entries()), ledger.head())
