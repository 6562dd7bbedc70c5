"""A ledger that is only looked at: everything is checked, nothing is touched."""

import contextlib
import json
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
from pathlib import Path

import pytest

from hushtune.common.errors import LedgerError
from hushtune.common.privacy import ledger_files
from hushtune.common.privacy.ledger import GENESIS, Ledger
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.simulations.ledgers import export_document, spending

ROUND = DpSgdEvent(sampling_probability=0.13, noise_multiplier=1.7, steps=3)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "ledger" / "north.sqlite"
    fill(Ledger(path), 1, 2, 3)
    return path


def fill(ledger: Ledger, *rounds: int, run: str = "r") -> None:
    name = ledger.name_of("rows")
    for number in rounds:
        ledger.charge_with_reply(
            ROUND, dataset=name, run=run, round=number, reply=b"reply %d" % number
        )


def state(folder: Path) -> dict[str, tuple[object, ...]]:
    """Everything about a folder that a write would change: names, bytes, modes and times."""
    found: dict[str, tuple[object, ...]] = {}
    for file in (folder, *sorted(folder.iterdir())):
        at = file.stat()
        content = file.read_bytes() if file.is_file() else b""
        found[file.name] = (content, at.st_mode, at.st_ino, at.st_mtime_ns)
        if not file.name.endswith("-journal"):  # the superuser's SQLite confirms whose it is
            found[file.name] += (at.st_ctime_ns,)
    return found


def cut_short(path: Path) -> None:
    """Leave what a crash leaves in the middle of a commit: changed pages, and a hot journal."""
    code = (
        "import os, signal, sqlite3, sys\n"
        "db = sqlite3.connect(sys.argv[1], isolation_level=None)\n"
        "db.execute('PRAGMA cache_size=1')\n"  # so that pages reach the file before the commit
        "db.execute('BEGIN IMMEDIATE')\n"
        "db.execute('DELETE FROM charges')\n"
        "db.execute('CREATE TABLE filler (x)')\n"
        "db.executemany('INSERT INTO filler VALUES (?)', [(bytes(3000),)] * 300)\n"
        "os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    done = subprocess.run([sys.executable, "-c", code, str(path)], check=False)
    assert done.returncode == -signal.SIGKILL
    assert Path(f"{path}-journal").stat().st_size > 512
    assert path.stat().st_size > 300_000


def test_a_record_is_what_the_ledger_says(path: Path) -> None:
    ledger = Ledger(path)
    ledger.resend("r", 2, dataset=ledger.name_of("rows"))
    record = read_ledger(path)
    assert list(record.entries) == ledger.entries()
    assert record.head == ledger.head()
    assert record.resent == {2: 1}
    assert [reply.num_bytes for reply in record.replies.values()] == [7, 7, 7]


def test_looking_changes_nothing(path: Path) -> None:
    path.parent.chmod(0o500)
    before = state(path.parent)
    read_ledger(path)
    assert state(path.parent) == before
    path.parent.chmod(0o700)


def test_looking_works_where_nothing_can_be_written(path: Path) -> None:
    """A real read-only mount, as even the superuser may not write there."""
    command = [shutil.which("unshare") or "unshare", "-Urm", "sh", "-c"]
    script = (
        'mount --bind "$1" "$1" && mount -o remount,bind,ro "$1" || exit 99\n'
        'touch "$1/x" 2>/dev/null && exit 98\n'
        'exec "$2" -c "'
        "from pathlib import Path\n"
        "import sys\n"
        "from hushtune.common.privacy.ledger_record import read_ledger\n"
        "print(len(read_ledger(Path(sys.argv[1])).entries))\n"
        '" "$1/north.sqlite"\n'
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    for prepare in (lambda: None, lambda: cut_short(path)):
        prepare()
        try:
            done = subprocess.run(
                [*command, script, "sh", str(path.parent), sys.executable],
                env=environment,
                capture_output=True,
                text=True,
                check=False,
            )
        except FileNotFoundError:
            pytest.skip("no unshare here")
        if done.returncode in (1, 99) and "hushtune" not in done.stderr:
            pytest.skip(f"no mounts of one's own here: {done.stderr.strip()}")
        assert (done.returncode, done.stdout) == (0, "3\n"), done.stderr


def test_a_commit_that_was_cut_short_is_seen_as_rolled_back_and_left_alone(path: Path) -> None:
    cut_short(path)
    before = state(path.parent)
    assert [entry.round for entry in read_ledger(path).entries] == [1, 2, 3]
    assert state(path.parent) == before
    Ledger(path)  # the owner rolls it back for good
    assert not Path(f"{path}-journal").exists()
    assert len(read_ledger(path).entries) == 3


def test_a_ledger_that_was_only_just_made_is_an_empty_one(tmp_path: Path) -> None:
    path = tmp_path / "new.sqlite"
    ledger_files.create_private(path)
    assert read_ledger(path).head == GENESIS
    assert path.stat().st_size == 0
    Ledger(path)
    assert read_ledger(path).entries == ()
    with contextlib.closing(sqlite3.connect(path)) as db, db:
        db.execute("DELETE FROM secret")  # as a crash leaves it between the tables and the key
    assert read_ledger(path).entries == ()
    Ledger(path).name_of("rows")


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("UPDATE charges SET round = 9 WHERE sequence = 2", "row 2"),
        ("DELETE FROM charges WHERE sequence = 3", "held 3 before"),
        ("DROP TABLE charges", "cannot be read"),
        ("UPDATE replies_kept SET reply = x'00' WHERE sequence = 3", "reply kept for charge 3"),
        ("INSERT INTO answers VALUES (9, 'x', '')", "reply kept for charge 9"),
        ("INSERT INTO resent VALUES (2, 'often')", "'often' of charge 2"),
        ("INSERT INTO resent VALUES (2, 0)", "0 of charge 2"),
        ("INSERT INTO resent VALUES (9, 1)", "1 of charge 9"),
        ("DELETE FROM secret", "its key is gone"),
        ("UPDATE secret SET key = randomblob(32)", "its key was exchanged"),
    ],
)
def test_an_altered_ledger_is_refused(path: Path, change: str, reason: str) -> None:
    db = sqlite3.connect(path)
    with db:
        db.execute(change)
    db.close()
    before = state(path.parent)
    with pytest.raises(LedgerError, match=reason):
        read_ledger(path)
    assert state(path.parent) == before


TABLES = {
    "charges": ("sequence", "dataset", "run", "round", "unit", "event", "previous", "hash"),
    "answers": ("sequence", "digest", "asked"),
    "replies_kept": ("sequence", "reply"),
    "resent": ("sequence", "times"),
    "secret": ("only_one", "key"),
}
STRANGE = ("'text'", "NULL", "x'ff00'", "1.5", "9223372036854775807", "-1", "CAST(x'ff' AS TEXT)")


@pytest.mark.parametrize("value", STRANGE)
@pytest.mark.parametrize(
    ("table", "column"), [(table, column) for table, row in TABLES.items() for column in row]
)
def test_whatever_stands_in_a_cell_a_ledger_is_read_or_refused(
    path: Path, table: str, column: str, value: str
) -> None:
    """A cell's type is no promise of SQLite's: what is no ledger's must not come out as a crash."""
    Ledger(path).resend("r", 2, dataset=Ledger(path).name_of("rows"))
    row = "only_one = 1" if table == "secret" else "sequence = 2"
    with contextlib.closing(sqlite3.connect(path)) as db:
        try:
            with db:
                if table == "answers":  # of which the digest alone is left
                    db.execute(f"DELETE FROM replies_kept WHERE {row}")
                db.execute(f"UPDATE {table} SET {column} = {value} WHERE {row}")
        except sqlite3.Error:
            pytest.skip("SQLite itself refuses this")
    try:
        record = read_ledger(path)
        json.dumps([spending(record, delta=1e-5), export_document({"north": record})])
        Ledger(path).verify()
        Ledger(path).num_resent()
    except LedgerError:
        return


def test_missing_foreign_emptied_and_readable_files_are_refused(path: Path) -> None:
    with pytest.raises(LedgerError, match="cannot be read"):
        read_ledger(path.with_name("south.sqlite"))
    assert not path.with_name("south.sqlite").exists()
    for file in (path, ledger_files.head_path(path)):
        file.chmod(0o640)
        with pytest.raises(LedgerError, match="chmod 600"):
            read_ledger(path)
        file.chmod(0o600)
    whole = path.read_bytes()
    for content in (b"", whole[:5000], b"this is no database at all" * 100):
        path.write_bytes(content)
        with pytest.raises(LedgerError):
            read_ledger(path)
    path.write_bytes(whole)
    ledger_files.head_path(path).write_text("nonsense")
    with pytest.raises(LedgerError, match="head"):
        read_ledger(path)


def test_an_older_ledger_put_back_with_its_head_is_told_by_a_noted_hash(path: Path) -> None:
    """The two files agree with each other; only somebody else's note tells them from the true."""
    old = {file: file.read_bytes() for file in path.parent.iterdir()}
    earlier = Ledger(path).head()
    fill(Ledger(path), 4, 5)
    noted = Ledger(path).head()
    record = read_ledger(path)
    assert record.num_charges_since(noted) == 0
    assert record.num_charges_since(earlier) == 2
    assert record.num_charges_since(GENESIS) == 5
    for file, content in old.items():
        file.write_bytes(content)
    Ledger(path)
    rolled_back = read_ledger(path)
    with pytest.raises(LedgerError, match="rolled back or replaced"):
        rolled_back.num_charges_since(noted)
    # Nor does another history of the same length pass for the true one.
    fill(Ledger(path), 4, 5, run="another")
    with pytest.raises(LedgerError, match="rolled back or replaced"):
        read_ledger(path).num_charges_since(noted)
    assert read_ledger(path).num_charges_since(earlier) == 2
