"""``make federation``: a coordinator and three sites as real processes on this machine.

    python -m hushtune.simulations.federation_walk DIR

Every command that people would type is typed here, and shown. The sites hold real sentences from
three sources; one of them is killed in the middle of the run and started again.
"""

from __future__ import annotations

import csv
import os
import shlex
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

import tomli_w
from rich.console import Console

from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.deployment.status_file import State, read_status
from hushtune.common.errors import DeploymentError, HushtuneError, OutputExistsError
from hushtune.common.files import write_text
from hushtune.common.ports import free_port
from hushtune.server.deployment.status import read_rows
from hushtune.simulations.exits import USER_ERROR, show_error

MARK = ".federation-walk"
SITES, ROWS, ROUNDS = 3, 1000, 5
RECIPE: dict[str, Any] = {
    "privacy": {"trust": "site", "epsilon": 3.0, "delta": 1e-5},
    "train": {"rounds": ROUNDS, "warmup_rounds": 3, "local_steps": 10},
    "simulation": {"quorum": 2},
}
_LONG = 400.0


class Walk:
    """One walk in one folder; ``close`` ends every process that it has started."""

    def __init__(self, folder: Path, console: Console) -> None:
        self._folder, self._console = folder, console
        self._stack = ExitStack()
        self._started: dict[str, subprocess.Popen[bytes]] = {}

    def close(self) -> None:
        """As a service manager does, with SIGTERM."""
        self._stack.close()

    def step(self, words: str) -> None:
        """Say what comes next."""
        self._console.print(f"\n[bold]{words}[/]")

    def command(self, *arguments: object, quiet: bool = False) -> None:
        """Run a command to its end; DeploymentError if it fails."""
        line = self._shown(arguments)
        done = subprocess.run(
            _hushtune(arguments),
            check=False,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if quiet else None,
            stderr=subprocess.STDOUT if quiet else None,
            text=True,
        )
        if done.returncode:
            raise DeploymentError(
                "a command of the walk failed",
                given=f"{line}: status {done.returncode}\n{(done.stdout or '')[-2000:]}",
                expected="status 0",
                remedy="mend what it says, and begin the walk again",
            )

    def begin(self, name: str, *arguments: object) -> None:
        """Start a command that stays; its output goes to ``NAME.log``."""
        self._shown((*arguments, "&"))
        file: IO[bytes] = self._stack.enter_context((self._folder / f"{name}.log").open("ab"))
        process = subprocess.Popen(
            _hushtune(arguments),
            stdin=subprocess.DEVNULL,
            stdout=file,
            stderr=subprocess.STDOUT,
            env={"OMP_NUM_THREADS": str(_threads()), **os.environ},
        )
        self._started[name] = process
        self._stack.callback(_end, process)

    def kill(self, name: str) -> None:
        """``kill -9``."""
        process = self._started[name]
        self._console.print(f"[bold]$[/] kill -9 {process.pid}   [dim]# {name}[/]")
        process.send_signal(signal.SIGKILL)
        process.wait()

    def wait(self, there: Callable[[], object], *, what: str, watched: str) -> None:
        """DeploymentError where it does not happen, or the process it is of has ended."""
        deadline = time.monotonic() + _LONG
        while not there():
            ended = self._started[watched].poll()
            if ended is not None or time.monotonic() > deadline:
                said = (self._folder / f"{watched}.log").read_text(errors="replace")
                raise DeploymentError(
                    f"{what} did not happen",
                    given=f"{'ended' if ended is not None else 'no end'} of {watched}: "
                    f"{said[-2000:]}",
                    remedy=f"see {self._folder / watched}.log",
                )
            time.sleep(0.3)

    def ended(self, name: str) -> int:
        """Wait for a started command's exit status."""
        return self._started[name].wait(timeout=_LONG)

    def _shown(self, arguments: tuple[object, ...]) -> str:
        words = ["hushtune", *map(str, arguments)]
        line = " ".join(word if word == "&" else shlex.quote(word) for word in words)
        self._console.print(f"[bold]$[/] {line}", highlight=False, soft_wrap=True)
        return line


def walk(folder: Path, console: Console) -> None:
    """The whole of it; HushtuneErrors say which step failed."""
    rows = _prepared(folder)
    home, way = folder / "coordinator", Walk(folder, console)
    try:
        way.step("1. The coordinator makes its folder: keys, certificates, an invitation")
        port = free_port()
        way.command(
            *("server", "init", home, "--name", "three sites on one laptop"),
            *("--address", f"localhost:{port}"),
        )
        way.step("2. Each site makes its own: where its rows are, and what it agrees to")
        for site, file in rows.items():
            way.command(
                *("site", "init", folder / site, "--name", site, "--data", file),
                *("--server", home / "federation.toml", "--text", "sentence", "--label", "mood"),
                *("--max-epsilon", 5, "--max-delta", 1e-5, "--public-size", _trained(file)),
            )
        way.step("3. The server runs; the coordinator lets the three sites in")
        way.begin("coordinator", "server", "start", home)
        way.wait(lambda: _listens(port), what="the server's start", watched="coordinator")
        for site in rows:
            way.command("server", "enrol", home, folder / site / f"{site}.pub")
        config = folder / "run.toml"
        write_text(config, tomli_w.dumps(_configuration(rows)))
        first, *_, last = rows
        way.step("4. A site looks before it joins: is all in order, and what would leave?")
        way.command("site", "check", folder / first, "--config", config)
        way.step("5. The sites join")
        for site in rows:
            way.begin(site, "site", "join", folder / site)
        for site in rows:
            way.wait(
                lambda site=site: _is_connected(folder / site),
                what=f"that {site} connects",
                watched=site,
            )
        way.step(f"6. Five rounds; after the second, {last} is killed, and started again")
        way.begin("run", "server", "run", home, config, "--name", "walk", "--answer-seconds", 60)
        _follow(way, home / "runs" / "walk", console, until=2)
        way.kill(last)
        way.begin(last, "site", "join", folder / last)
        _follow(way, home / "runs" / "walk", console, until=ROUNDS, after=2)
        if way.ended("run"):
            raise DeploymentError("the run failed", given=(folder / "run.log").read_text()[-2000:])
        way.step("7. What is left: a model and a statement, here and at each site, verified")
        way.command("server", "status", home)
        way.command("verify", home / "runs" / "walk")
        for site in rows:
            way.command("verify", result_of(folder / site))
        way.step(f"8. What {last} was asked, and what that cost")
        way.command("site", "history", folder / last)
    finally:
        console.print("\n[dim]ending the server and the sites[/]")
        way.close()
    statement = home / "runs" / "walk" / "statement.html"
    console.print(f"\nThe federation's statement: [bold]{statement}[/]", soft_wrap=True)
    console.print(f"All of it is in {folder}; docs/sites.md explains each step.", soft_wrap=True)


def result_of(site: Path) -> Path:
    """A site's folder of the walk's one run; DeploymentError unless it has that and no other."""
    found = sorted(path.parent for path in (site / "runs").glob("*/manifest.json"))
    if len(found) != 1:
        raise DeploymentError(
            "a site was not handed the run that has ended",
            given=f"{site.name} has {', '.join(path.name for path in found) or 'no results'}",
            expected="one folder below runs/, with a manifest",
            remedy=f"see {site}.log and {site.parent / 'run.log'}",
        )
    return found[0]


def _follow(way: Walk, out: Path, console: Console, *, until: int, after: int = 0) -> None:
    """Show each round as it ends."""
    for number in range(after + 1, until + 1):
        way.wait(lambda n=number: len(read_rows(out)) >= n, what=f"round {number}", watched="run")
        row = read_rows(out)[number - 1]
        missing = f"; without {', '.join(row['rejected'])}" if row["rejected"] else ""
        console.print(
            f"  round {number} of {ROUNDS}: {', '.join(row['accepted'])}{missing}", highlight=False
        )


def _prepared(folder: Path) -> dict[str, Path]:
    """The walk's folder, made anew, with three sites' rows as CSV."""
    if folder.exists() and any(folder.iterdir()):
        if not (folder / MARK).is_file():
            raise OutputExistsError(
                "the folder holds something else",
                given=str(folder),
                expected="a new folder, or that of an earlier walk",
                remedy="name another one",
            )
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    write_text(folder / MARK, "made by python -m hushtune.simulations.federation_walk\n")
    from hushtune.common.tasks.sources import read_named

    tables: dict[str, list[tuple[str, str]]] = {}
    for row in read_named("demo"):
        tables.setdefault(str(row.site), []).append((str(row.text), str(row.label)))
    found: dict[str, Path] = {}
    for site, table in sorted(tables.items())[:SITES]:
        found[site] = folder / f"rows-of-{site}.csv"
        with found[site].open("w", encoding="utf-8", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(("sentence", "mood"))
            step = max(1, len(table) // ROWS)
            writer.writerows(table[::step][:ROWS])
    return found


def _configuration(rows: dict[str, Path]) -> dict[str, Any]:
    sizes = {site: _trained(file) for site, file in rows.items()}
    data = {"source": "sites", "labels": ["negative", "positive"], "public_sizes": sizes}
    return {"data": data, **RECIPE}


def _trained(file: Path) -> int:
    """A round number for what a site trains on, as it might publish it."""
    with file.open(encoding="utf-8", newline="") as lines:
        count = sum(1 for _ in csv.reader(lines)) - 1
    return max(10, int(0.7 * count) // 50 * 50)


def _hushtune(arguments: tuple[object, ...]) -> list[str]:
    return [sys.executable, "-m", "hushtune.simulations.cli", *map(str, arguments)]


def _threads() -> int:
    """Of each site: they share this machine, and threads that wait for each other take it up."""
    return max(1, (os.cpu_count() or 1) // SITES)


def _end(process: subprocess.Popen[bytes]) -> None:
    process.terminate()
    try:
        process.wait(timeout=30)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def _is_connected(folder: Path) -> bool:
    status = read_status(SiteFile.read(folder).status)
    return status is not None and status.state == State.CONNECTED


def _listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex(("127.0.0.1", port)) == 0


def main() -> None:
    """See the module."""
    if len(sys.argv) != 2:
        sys.exit("usage: python -m hushtune.simulations.federation_walk DIR")
    os.environ.setdefault("COLUMNS", str(shutil.get_terminal_size((110, 24)).columns))
    console = Console()
    try:
        walk(Path(sys.argv[1]).absolute(), console)
    except HushtuneError as error:
        show_error(error, Console(stderr=True))
        sys.exit(USER_ERROR)


if __name__ == "__main__":
    main()
