"""A site that dies by SIGKILL at a chosen operation, again and again, and what it leaves behind.

A program, not a test: ``test_crash.py`` starts it and reads the JSON that it prints. A site is a
forked process that answers one order after another with the real ``answer``, a real task and a real
ledger on disk, and writes every reply to a pipe, so that the parent knows exactly what left. It
counts its own operations (``Clock``) and kills itself at the k-th. Then a fresh process looks at
the ledger, asks for every round again and goes on to the end (``aftermath``).

SIGKILL ends a process, not the machine: what the kernel was given is still written. So this shows
the order of operations and SQLite's recovery; it cannot see that something was not synced
(``PRAGMA synchronous`` could be OFF). Only a loss of power would tell.
"""

from __future__ import annotations

import ctypes
import gc
import json
import os
import random
import shutil
import signal
import sqlite3
import struct
import subprocess
import sys
import traceback
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import torch

from hushtune.client import app, charging
from hushtune.client import rounds as work_of_rounds
from hushtune.common.errors import HushtuneError
from hushtune.common.messages import ClientUpdate, decode_reply, encode_order
from hushtune.common.privacy import accountant, ledger_files, ledger_replies
from hushtune.common.privacy.ledger import KEPT_REPLIES, Ledger, LedgerEntry
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.privacy.plan import Relation

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))
from client.families import make_order, moved, private_plan, tensor_task
from client.test_app import make_site

ROUNDS = 5
"""More than are kept, so that replies are dropped along the way."""

PLAN = private_plan(noise_multiplier=4.0)
RELATION = Relation.ADD_OR_REMOVE_ONE
DATASET = "data of north"
FILE = "north.sqlite"

torch.set_num_threads(1)
TASK = tensor_task(8)
STATE = moved(TASK.model)


def epsilon_of(num_events: int) -> float:
    return accountant.epsilon([PLAN.event(1)] * num_events, delta=1e-5, relation=RELATION)


# --- the clock ----------------------------------------------------------------------------------


class Clock:
    """Counts operations of four kinds, and ends the process at one of them.

    line: each line of the ledger's modules and of the client's app, before it runs. sql: each
    instruction of SQLite's virtual machine and each statement. system: each file that is opened,
    renamed, removed or synced by Python, before and after a sync. send: each piece of a reply.
    """

    def __init__(self, kill: tuple[str, int] | None) -> None:
        self.counts: Counter[str] = Counter()
        self.last: dict[str, int] = {}  # when each line of code was last reached
        self.trained = 0
        self.kill = kill
        self.on = False

    def tick(self, kind: str) -> None:
        if not self.on:
            return
        self.counts[kind] += 1
        if self.kill == (kind, self.counts[kind]):
            os.kill(os.getpid(), signal.SIGKILL)

    def start(self) -> None:
        sys.addaudithook(self._audit)
        self._wrap_sync()
        self._wrap_connect()
        self._skip_training()
        self.on = True
        sys.settrace(self._trace)

    def stop(self) -> None:
        sys.settrace(None)
        self.on = False

    def _audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(("os.", "tempfile.")) or (
            event == "open" and ".sqlite" in str(arguments[0])
        ):
            self.tick("system")

    def _wrap_sync(self) -> None:
        sync = os.fsync

        def counted(file: int) -> None:
            self.tick("system")
            sync(file)
            self.tick("system")

        os.fsync = counted

    def _wrap_connect(self) -> None:
        connect = sqlite3.connect

        def counted(*arguments: Any, **options: Any) -> sqlite3.Connection:
            db = connect(*arguments, **options)
            db.set_progress_handler(lambda: self.tick("sql"), 1)
            db.set_trace_callback(lambda _: self.tick("sql"))
            return db

        sqlite3.connect = counted

    def _skip_training(self) -> None:
        """Nothing of the ledger happens while a model trains, and tracing it takes long."""
        train = work_of_rounds.train_locally

        def untraced(*arguments: Any, **options: Any) -> Any:
            sys.settrace(None)
            try:
                return train(*arguments, **options)
            finally:
                self.trained = self.counts["line"]
                sys.settrace(self._trace)

        work_of_rounds.train_locally = untraced

    def _trace(self, frame: Any, event: str, _: Any) -> Any:
        name = frame.f_code.co_filename
        traced = (app.__file__, work_of_rounds.__file__, charging.__file__)
        return self._line if "/privacy/ledger" in name or name in traced else None

    def _line(self, frame: Any, event: str, _: Any) -> Any:
        if event == "line":
            self.tick("line")
            self.last[f"{frame.f_code.co_filename}:{frame.f_lineno}"] = self.counts["line"]
        return self._line


# --- the site -----------------------------------------------------------------------------------

HEADER = struct.Struct("<cIQ")
ANSWER, ACKNOWLEDGED, COUNTS, REFUSED = b"a", b"e", b"c", b"r"

Send = Callable[[bytes, int, bytes], None]


@dataclass(frozen=True)
class Piece:
    """What a site sent: of which kind, about which round, and whether all of it came out."""

    kind: bytes
    round: int
    body: bytes
    whole: bool = True


def wire(file: int, clock: Clock) -> Send:
    """Writes pieces to a pipe, a little at a time."""

    def write(content: bytes) -> None:
        while content:
            clock.tick("send")
            content = content[os.write(file, content[:1024]) :]

    def send(kind: bytes, round: int, body: bytes) -> None:
        write(HEADER.pack(kind, round, len(body)) + body)
        clock.tick("send")

    return send


def answers(folder: Path, rounds: range, send: Send, late: list[Callable[[], object]]) -> None:
    """A site's life: an order, an answer; `late` is what a planted fault puts off till then."""
    site = make_site(TASK, folder, rows=8, epsilon=1e6)
    assert site.ledger is not None
    for number in rounds:
        content = app.answer(encode_order(make_order(STATE, PLAN, round=number)), site)
        reply = decode_reply(content)
        if isinstance(reply, ClientUpdate):
            text = str(content.config_records["hushtune"]["json"]).encode()
            adapter = content.array_records["adapter"]["state"].data
            send(ANSWER, number, text + b"\0" + adapter)
        else:
            send(REFUSED, number, f"{reply.code} {reply.reason}".encode())
        while late:
            late.pop()()
        spent = site.ledger.epsilon(dataset=DATASET, delta=1e-5, relation=RELATION)
        send(ACKNOWLEDGED, number, struct.pack("<d", spent))


def forked(
    work: Callable[[int], None], attend: Callable[[int], None] | None = None
) -> tuple[bytes, int]:
    """Run `work` in a fork that writes into a pipe; what it wrote, and how it ended."""
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        status = 1
        try:
            os.close(reading)
            work(writing)
            status = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writing)
    if attend is not None:
        attend(child)
    with os.fdopen(reading, "rb") as pipe:
        written = pipe.read()
    _, status = os.waitpid(child, 0)
    return written, os.waitstatus_to_exitcode(status)


def run_site(
    folder: Path,
    rounds: range,
    *,
    kill: tuple[str, int] | None = None,
    fault: str | None = None,
    attend: Callable[[int], None] | None = None,
) -> tuple[list[Piece], int]:
    """What a site sent until its end, the last piece perhaps cut short, and how it ended."""

    def work(file: int) -> None:
        late = plant(fault)
        clock = Clock(kill)
        if attend is not None:
            allow_tracing()
            os.kill(os.getpid(), signal.SIGSTOP)  # until the attendant is there
        else:
            clock.start()
        try:
            answers(folder, rounds, wire(file, clock), late)
        except HushtuneError as error:  # the site cannot even be opened
            wire(file, clock)(REFUSED, rounds.start, str(error).encode())
        clock.stop()
        lines = [last for last in clock.last.values() if last > clock.trained]
        told = {"counts": clock.counts, "lines after training": lines}
        wire(file, clock)(COUNTS, 0, json.dumps(told).encode())

    written, ended = forked(work, attend)
    pieces: list[Piece] = []
    while len(written) >= HEADER.size:
        kind, number, size = HEADER.unpack_from(written)
        body = written[HEADER.size : HEADER.size + size]
        pieces.append(Piece(kind, number, body, len(body) == size))
        written = written[HEADER.size + size :]
    return pieces, ended


# --- faults, to see that they are seen ----------------------------------------------------------


def plant(fault: str | None) -> list[Callable[[], object]]:
    """Break the product in this process; what is returned has yet to be done after a reply left."""
    late: list[Callable[[], object]] = []
    keep = Ledger.charge_with_reply
    append = Ledger._append

    def charge_later(self: Ledger, event: Any, **given: Any) -> LedgerEntry:
        late.append(lambda: keep(self, event, **given))
        entries = self.entries()
        place = {name: given[name] for name in ("dataset", "run", "round", "unit")}
        return LedgerEntry.after(len(entries), self.head(), event=event, **place)

    def two_transactions(self: Ledger, event: Any, **given: Any) -> LedgerEntry:
        reply, asked, own = given.pop("reply"), given.pop("asked"), given.pop("keep")
        entry = self.charge(event, **given)
        with self._writing() as db:
            ledger_replies.keep(db, entry, reply, asked=asked, is_new=True)
            if own is not None:
                own()
        return entry

    def head_first(self: Ledger, *given: Any, **more: Any) -> tuple[LedgerEntry, bool]:
        entry, is_new = append(self, *given, **more)
        ledger_files.write_head(self.path, entry.sequence, entry.hash)
        return entry, is_new

    if fault == "the charge follows the reply":
        Ledger.charge_with_reply = charge_later
    elif fault == "the reply is kept in a second transaction":
        Ledger.charge_with_reply = two_transactions
    elif fault == "the head is written before the commit":
        Ledger._append = head_first
    else:
        assert fault is None, fault
    return late


# --- what is left -------------------------------------------------------------------------------


def aftermath(folder: Path, rounds: range, sent: list[Piece], fault: str | None) -> list[str]:
    """What is wrong with what a site left, and with how it goes on; nothing where all is well."""
    left = {piece.round: piece for piece in sent if piece.kind == ANSWER}
    said = [struct.unpack("<d", p.body)[0] for p in sent if p.kind == ACKNOWLEDGED and p.whole]

    def work(file: int) -> None:
        late = plant(fault)
        # What training gives has no part in the order of things, and takes most of the time.
        work_of_rounds.train_locally = lambda *_, **__: STATE
        try:
            wrong = [*as_left(folder, left, said), *going_on(folder, rounds, left, late)]
        except HushtuneError as error:
            wrong = [f"refused: {error.message}"]
        with os.fdopen(file, "w") as pipe:
            json.dump(wrong, pipe)

    written, ended = forked(work)
    return json.loads(written) if ended == 0 else [f"the aftermath ended with {ended}"]


def as_left(folder: Path, left: dict[int, Piece], said: list[float]) -> Iterator[str]:
    """What the ledger must hold, looked at before it is opened again, and after."""
    path = folder / FILE
    if not path.exists():
        if left:
            yield "replies left and there is no ledger"
        return
    looked = read_ledger(path)
    ledger = Ledger(path)
    charged = {entry.round: entry for entry in ledger.entries()}
    if list(looked.entries) != ledger.entries():
        yield "opening the ledger changed it"
    if len(charged) < len(looked.entries):
        yield "a round was charged twice"
    for number, reply in left.items():
        if number not in charged:
            yield f"lost charge: the reply of round {number} left and is not charged"
        elif reply.whole:
            text, _, adapter = reply.body.partition(b"\0")
            if json.loads(text)["charge"] != charged[number].to_dict():
                yield f"the reply of round {number} tells of another charge"
            if looked.replies[charged[number].sequence].digest != sha256(adapter).hexdigest():
                yield f"the reply of round {number} that left is not the one on record"
    spent = ledger.epsilon(dataset=DATASET, delta=1e-5, relation=RELATION)
    if spent < epsilon_of(len(left)):
        yield f"epsilon {spent} is below that of the {len(left)} replies that left"
    if said and spent < max(said):
        yield f"epsilon fell from {max(said)} to {spent}"


def going_on(
    folder: Path, rounds: range, left: dict[int, Piece], late: list[Callable[[], object]]
) -> Iterator[str]:
    """Every round is asked for, from the oldest whose reply must be kept, and on to the end."""
    before = Ledger(folder / FILE).entries()
    num_resent = Ledger(folder / FILE).num_resent()
    again: dict[int, bytes] = {}

    def send(kind: bytes, round: int, body: bytes) -> None:
        if kind == ANSWER:
            again[round] = body

    asked = range(max(0, len(before) - KEPT_REPLIES), rounds.stop)
    answers(folder, asked, send, late)
    for number in asked:
        # The charge and its reply are one: a round that was charged has a reply to send again.
        if number not in again:
            yield f"round {number} was not answered when asked for again"
        elif number in left and not again[number].startswith(left[number].body):
            yield f"round {number} was answered again with other bytes"
    ledger = Ledger(folder / FILE)
    entries = ledger.entries()
    if entries[: len(before)] != before:
        yield "a charge was lost in going on"
    if sorted(entry.round for entry in entries) != list(range(rounds.stop)):
        yield f"in the end these rounds are charged: {[entry.round for entry in entries]}"
    if ledger.num_resent() - num_resent != len([e for e in before if e.round in again]):
        yield "a reply was handed out again uncounted"
    if ledger.epsilon(dataset=DATASET, delta=1e-5, relation=RELATION) < epsilon_of(rounds.stop):
        yield "the final epsilon is below that of the undisturbed run"


# --- experiments --------------------------------------------------------------------------------


@dataclass(frozen=True)
class Start:
    """The folder of a site that has answered some rounds, and what it sent until then.

    From here it is asked for the last of them again and then for the rest; `told` is what an
    undisturbed site counts until one new round is answered.
    """

    folder: Path
    number: int
    sent: list[Piece]
    asked: range
    told: dict[str, Any]


def starts(folder: Path, fault: str | None) -> list[Start]:
    """One for each round of a run."""
    found: list[Start] = []
    sent: list[Piece] = []
    now = folder / "0"
    now.mkdir()
    for number in range(ROUNDS):
        following = folder / str(number + 1)
        shutil.copytree(now, following)
        asked = range(max(0, number - 1), number + 1)
        pieces, ended = run_site(following, asked, fault=fault)
        assert ended == 0
        assert [p.kind for p in pieces] == [ANSWER, ACKNOWLEDGED] * len(asked) + [COUNTS]
        told = json.loads(pieces[-1].body)
        found.append(Start(now, number, list(sent), range(asked.start, ROUNDS), told))
        sent += pieces[-3:-1]
        now = following
    return found


def killed_at(folder: Path, start: Start, kill: tuple[str, int], fault: str | None) -> Any:
    """Kill a site at one operation, and look at what follows."""
    killed = folder / "killed"
    if killed.exists():
        shutil.rmtree(killed)
    shutil.copytree(start.folder, killed)
    sent, ended = run_site(killed, start.asked, kill=kill, fault=fault)
    return {
        "at": [start.number, *kill],
        "killed": ended == -signal.SIGKILL,
        "num_left": len([piece for piece in sent if piece.kind == ANSWER]),
        "wrong": aftermath(killed, range(ROUNDS), [*start.sent, *sent], fault),
    }


def seeded(folder: Path, num_points: int) -> list[dict[str, Any]]:
    """Kill at points drawn by a seeded generator from all rounds, so many of each kind."""
    drawn = random.Random(2026)
    found = starts(folder, None)
    points: list[dict[str, Any]] = []
    for kind, share in {"line": 0.35, "sql": 0.3, "system": 0.25, "send": 0.1}.items():
        every = [
            (start, number)
            for start in found
            for number in range(1, start.told["counts"][kind] + 1)
        ]
        for start, number in drawn.sample(every, round(num_points * share)):
            points.append(killed_at(folder, start, (kind, number), None))
    return points


def one_round(folder: Path, step: int, fault: str | None = None) -> list[dict[str, Any]]:
    """Kill at every `step`th system call, write and line of code after the training of a round."""
    start = starts(folder, fault)[1]
    kills = [
        *(("line", number) for number in sorted(start.told["lines after training"])),
        *(
            (kind, number)
            for kind in ("system", "send")
            for number in range(1, start.told["counts"][kind] + 1)
        ),
    ]
    return [killed_at(folder, start, kill, fault) for kill in kills[::step]]


# --- strace -------------------------------------------------------------------------------------

SYNCS = ("fsync", "fdatasync")
SYSCALLS = (*SYNCS, "pwrite64", "unlink", "unlinkat", "rename", "renameat", "renameat2")


def allow_tracing() -> None:
    """Where only a parent may trace a process (Yama), let anyone trace this one."""
    ctypes.CDLL(None).prctl(0x59616D61, ctypes.c_ulong(-1), 0, 0, 0)


def attendant(log: Path, *options: str) -> Callable[[int], None]:
    """Attaches strace to a stopped process, and lets it go."""

    def attend(child: int) -> None:
        os.waitpid(child, os.WUNTRACED)
        command = ["strace", "-o", str(log), *options, "-p", str(child)]
        strace = subprocess.Popen(command, stderr=subprocess.PIPE)
        assert strace.stderr is not None
        said = strace.stderr.readline()
        os.kill(child, signal.SIGCONT)
        if b"attached" not in said:
            os.kill(child, signal.SIGKILL)
            raise SystemExit(f"strace: {said.decode()}")
        attendants.append(strace)

    return attend


attendants: list[subprocess.Popen[bytes]] = []


def straced(
    folder: Path, rounds: range, options: Sequence[str]
) -> tuple[list[Piece], int, list[str]]:
    """What a site under strace sent, how it ended, and the calls that strace saw."""
    folder.mkdir()
    log = folder.with_suffix(".log")
    sent, ended = run_site(folder, rounds, attend=attendant(log, *options))
    strace = attendants.pop()
    strace.wait()
    assert strace.stderr is not None
    strace.stderr.close()
    return sent, ended, log.read_text().splitlines()


def system_calls(folder: Path, num_points: int) -> list[dict[str, Any]]:
    """Kill at, or fail, system calls themselves, those inside SQLite's commit included."""
    rounds = range(3)
    # A question mark: not every kind of machine has every call.
    every = ",".join(f"?{name}" for name in SYSCALLS)
    *_, log = straced(folder / "whole", rounds, ["-e", f"trace={every}"])
    points: list[dict[str, Any]] = []
    for name, total in sorted(Counter(line.split("(")[0] for line in log if "(" in line).items()):
        at = range(1, total + 1)
        faults = {"signal=KILL": random.Random(name).sample(at, min(num_points, total))}
        if name in SYNCS:
            faults["error=EIO"] = list(at)
        for fault, numbers in faults.items():
            for number in numbers:
                what = f"inject={name}:{fault}:when={number}"
                sent, ended, log = straced(folder / "site", rounds, ["-e", what])
                points.append(
                    {
                        "at": what,
                        "killed": ended == -signal.SIGKILL,
                        "injected": "INJECTED" in "".join(log),
                        "refused": [p.body.decode() for p in sent if p.kind == REFUSED],
                        "wrong": aftermath(folder / "site", rounds, sent, None),
                    }
                )
                shutil.rmtree(folder / "site")
    return points


EXPERIMENTS: dict[str, Callable[..., list[dict[str, Any]]]] = {
    "seeded": seeded,
    "one round": one_round,
    "system calls": system_calls,
}


def main() -> None:
    """``crash_site.py FOLDER EXPERIMENTS``: prints the points of each, a line of JSON each."""
    folder = Path(sys.argv[1])
    (folder / "warm").mkdir()
    answers(folder / "warm", range(ROUNDS), lambda *_: None, [])  # imports and caches, once
    gc.freeze()  # so that forks share what they do not use
    gc.disable()
    for number, (name, *arguments) in enumerate(json.loads(sys.argv[2])):
        (folder / f"experiment {number}").mkdir()
        points = EXPERIMENTS[name](folder / f"experiment {number}", *arguments)
        print(json.dumps(points), flush=True)


if __name__ == "__main__":
    main()
