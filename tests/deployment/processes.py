"""A federation of real processes: a coordinator and sites, by their own commands."""

from __future__ import annotations

import io
import json
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack, redirect_stderr, redirect_stdout, suppress
from pathlib import Path
from typing import Any, Self
from unittest import mock

import tomli_w

from hushtune.common.environment import QUIET
from hushtune.common.ports import free_port

from ..conftest import changed, made_up_rows, write_csv

LABELS = ["bad", "good"]
COMMAND = (sys.executable, "-m", "hushtune.simulations.cli")


def environment() -> dict[str, str]:
    """Quiet, one thread, and without what another test may have set."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("FLWR_", "HUSHTUNE_"))}
    return {**kept, **QUIET, "OMP_NUM_THREADS": "1", "COLUMNS": "200"}


def hushtune(*arguments: object, status: int | None = 0, apart: bool = False) -> str:
    """What a command says; AssertionError for another exit status.

    In this process, which has the libraries: only commands that end by themselves. ``apart``: in a
    process of its own, as whoever types it has it; ``test_federation.py`` begins by these.
    """
    ended, said = (_apart if apart else _here)(*map(str, arguments))
    assert status is None or ended == status, said
    return said


def _apart(*arguments: str) -> tuple[int, str]:
    done = subprocess.run(
        [*COMMAND, *arguments],
        env=environment(),
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        timeout=300,
        check=False,
    )
    return done.returncode, done.stdout + done.stderr


def _here(*arguments: str) -> tuple[int, str]:
    from hushtune.simulations import cli

    said, ended = io.StringIO(), 0
    with (
        mock.patch.dict(os.environ, environment(), clear=True),
        mock.patch.object(sys, "argv", ["hushtune", *arguments]),
        redirect_stdout(said),
        redirect_stderr(said),
    ):
        try:
            cli.main()
        except SystemExit as stop:
            ended = stop.code or 0
    return int(ended), said.getvalue()


def wait_until(
    there: Callable[[], object], *, seconds: float, why: Callable[[], str] = str, every: float = 0.2
) -> None:
    """AssertionError, with what ``why`` says, if it is not so in that time."""
    deadline = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < deadline, why()
        time.sleep(every)


class Started:
    """A process in a session of its own, its output in a file."""

    def __init__(
        self,
        output: Path,
        *arguments: object,
        command: Sequence[str] = COMMAND,
        also: Mapping[str, str] | None = None,
    ) -> None:
        self.output = output
        with output.open("ab") as file:
            self.process = subprocess.Popen(
                [*command, *map(str, arguments)],
                env=environment() | dict(also or {}),
                stdin=subprocess.DEVNULL,
                stdout=file,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    @property
    def said(self) -> str:
        return self.output.read_text(encoding="utf-8", errors="replace")

    def ended(self, *, seconds: float) -> int:
        """Its exit status; AssertionError if it goes on."""
        try:
            return self.process.wait(timeout=seconds)
        except subprocess.TimeoutExpired as late:
            raise AssertionError(f"still running:\n{self.said[-4000:]}") from late

    def kill(self) -> None:
        """SIGKILL to the one process; what it started has to notice by itself."""
        self.process.kill()
        self.process.wait()

    def stop(self) -> None:
        """As a service manager does: SIGTERM, and SIGKILL to all that is left after a while."""
        if self.process.poll() is None:
            self.process.terminate()
            with suppress(subprocess.TimeoutExpired):
                self.process.wait(timeout=30)
        for _ in range(2):
            try:
                os.killpg(self.process.pid, signal.SIGKILL)
            except ProcessLookupError:
                break
        self.process.wait()


class Institution:
    """A site's folder, made by `hushtune site init`, and its process."""

    def __init__(self, folder: Path, stack: ExitStack) -> None:
        self.folder, self.name, self._stack = folder, folder.name, stack
        self.joined: Started | None = None

    @property
    def card(self) -> Path:
        return self.folder / f"{self.name}.pub"

    def join(self, *, also: Mapping[str, str] | None = None, hostile: bool = False) -> None:
        """Start `hushtune site join`; ``also`` is added to its environment.

        ``hostile``: it answers orders by ``hostile_site.py``.
        """
        output = self.folder.parent / f"{self.name}.out"
        if hostile:
            command = (sys.executable, str(Path(__file__).with_name("hostile_site.py")))
            self.joined = Started(output, self.folder, command=command, also=also)
        else:
            self.joined = Started(output, "site", "join", self.folder, also=also)
        self._stack.callback(self.joined.stop)

    def wait_for(self, *states: str, seconds: float = 120) -> dict[str, Any]:
        """Until its status is one of these; the status then."""
        found: dict[str, Any] = {}

        def there() -> bool:
            found.update(self.status())
            return found.get("state") in states

        def why() -> str:
            said = "" if self.joined is None else self.joined.said[-3000:]
            return f"not {states} but {found}\n{said}"

        wait_until(there, seconds=seconds, why=why)
        return found

    def status(self) -> dict[str, Any]:
        """What the supervisor tells; {} before it has."""
        try:
            return json.loads((self.folder / "status.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def processes(self) -> dict[str, int]:
        """The supervisor's children by what they are, from the system's table of processes."""
        assert self.joined is not None
        found = {"join": self.joined.process.pid}
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit():
                continue
            try:
                line = (
                    (entry / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
                )
            except OSError:  # it has ended since
                continue
            if str(self.folder) in line and (kind := re.search(r"deployment\.(\w+)", line)):
                found[kind.group(1)] = int(entry.name)
        return found

    def orders(self) -> list[dict[str, Any]]:
        """The site's history."""
        try:
            text = (self.folder / "orders.jsonl").read_text(encoding="utf-8")
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines()]


class Federation:
    """A coordinator and its institutions below one folder; all is ended as it is left.

    ``apart``: it is set up by commands in processes of their own.
    """

    def __init__(
        self, root: Path, sizes: Mapping[str, int], *, model: Path, apart: bool = False
    ) -> None:
        self.root, self.sizes, self._model, self._apart = root, sizes, model, apart
        self.stack = ExitStack()
        self.folder = root / "coordinator"
        self.port = free_port()
        self.server: Started | None = None
        hushtune(
            *("server", "init", self.folder, "--name", "made up"),
            *("--address", f"localhost:{self.port}"),
            apart=apart,
        )
        self.sites: dict[str, Institution] = {}
        for seed, (name, size) in enumerate(sorted(sizes.items())):
            table = [(text, label) for _, text, label in made_up_rows({name: size}, seed=seed)]
            rows = write_csv(root / f"{name}.csv", table, header=("remark", "verdict"))
            hushtune(
                *("site", "init", root / name, "--name", name),
                *("--server", self.folder / "federation.toml", "--data", rows),
                *("--text", "remark", "--label", "verdict"),
                *("--max-epsilon", 1000, "--max-delta", 1e-3, "--model", model),
                apart=apart,
            )
            self.sites[name] = Institution(root / name, self.stack)

    def start(self) -> None:
        """Start the server and wait until sites can come."""
        self.server = Started(self.root / "server.out", "server", "start", self.folder)
        self.stack.callback(self.server.stop)

        def listens() -> bool:
            assert self.server is not None
            assert self.server.process.poll() is None, self.server.said
            with socket.socket() as probe:
                return probe.connect_ex(("127.0.0.1", self.port)) == 0

        wait_until(listens, seconds=90)

    def enrol(self) -> None:
        for site in self.sites.values():
            hushtune("server", "enrol", self.folder, site.card, apart=self._apart)

    def join(self) -> None:
        """All sites, and wait until each says that it is connected."""
        for site in self.sites.values():
            site.join()
        for site in self.sites.values():
            site.wait_for("connected")

    def config(self, name: str, **changes: Any) -> Path:
        """A configuration of a quick run; ``train__rounds=3`` changes ``train.rounds``."""
        tree: dict[str, Any] = {
            "seed": 7,
            "data": {"source": "sites", "labels": LABELS, "public_sizes": dict(self.sizes)},
            "model": {"name": str(self._model), "precision": "float32", "max_tokens": 32},
            "adapter": {"rank": 2, "layers": 1},
            "privacy": {"trust": "site", "epsilon": 8.0, "delta": 1e-3},
            "train": {
                "rounds": 3,
                "warmup_rounds": 1,
                "local_steps": 2,
                "sampling_probability": 0.3,
                "learning_rate": 0.01,
            },
            "simulation": {"quorum": 2},
        }
        path = self.root / f"{name}.toml"
        path.write_text(tomli_w.dumps(changed(tree, changes)), encoding="utf-8")
        return path

    def run(self, name: str, *arguments: object, **changes: Any) -> Started:
        """Start `hushtune server run`; its folder is ``out(name)``."""
        config = self.config(name, **changes)
        run = Started(
            self.root / f"{name}.out",
            *("server", "run", self.folder, config, "--name", name, *arguments),
        )
        self.stack.callback(run.stop)
        return run

    def out(self, name: str) -> Path:
        return self.folder / "runs" / name

    def state(self, name: str) -> dict[str, Any]:
        """The run's ``state.json``; {} before it is there."""
        try:
            return json.loads((self.out(name) / "state.json").read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return {}

    def rows(self, name: str) -> list[dict[str, Any]]:
        """A row for each round so far."""
        try:
            text = (self.out(name) / "metrics.jsonl").read_text(encoding="utf-8")
        except OSError:
            return []
        return [json.loads(line) for line in text.splitlines()]

    def wait_for_round(self, name: str, number: int, *, seconds: float = 120) -> None:
        """Until a run has that many rounds behind it."""

        def why() -> str:
            return f"{self.state(name)}\n{(self.root / f'{name}.out').read_text()[-3000:]}"

        wait_until(lambda: len(self.rows(name)) >= number, seconds=seconds, why=why)

    def reroute(self, name: str, port: int) -> None:
        """Have a site reach the server by another port of this machine."""
        file = self.sites[name].folder / "site.toml"
        settings, address = file.read_text(encoding="utf-8"), f"localhost:{self.port}"
        assert settings.count(address) == 1
        file.write_text(settings.replace(address, f"localhost:{port}"), encoding="utf-8")

    def begin(self) -> None:
        """The server, the cards and the sites, all of them connected."""
        self.start()
        self.enrol()
        self.join()

    def close(self) -> None:
        self.stack.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
