"""A process that has loaded libraries, and a fork of it for each program: what would be loaded anew
each time is most of what a short program does. It never imports hushtune by itself."""

from __future__ import annotations

import importlib
import json
import os
import select
import signal
import subprocess
import sys
import traceback
from collections.abc import Mapping, Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import TracebackType
from typing import Any, NoReturn, Self

MOST_SECONDS = 300  # for one program, and for loading the libraries before the first


class Warm:
    """Starts the process; ``lines_of`` runs a program in a fork of it.

    What is in ``without`` is, for it and its forks, not installed.
    """

    def __init__(
        self, *libraries: str, without: Sequence[str] = (), env: Mapping[str, str] | None = None
    ) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-P", __file__, *libraries, *(f"-{name}" for name in without)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
            env={**os.environ, "HF_HUB_OFFLINE": "1"} if env is None else env,
            start_new_session=True,
        )

    def lines_of(
        self, code: str, *arguments: str, at: Path, seconds: float = MOST_SECONDS
    ) -> list[str]:
        """What a program prints, which must end well, and in that time."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        task = {"code": code, "arguments": arguments, "at": str(at)}
        self._process.stdin.write(json.dumps(task) + "\n")
        self._process.stdin.flush()
        if not select.select([self._process.stdout], [], [], seconds)[0]:
            os.killpg(self._process.pid, signal.SIGKILL)  # and the fork
            raise AssertionError(f"after {seconds:g} s this had not ended:\n{code}")
        line = self._process.stdout.readline()
        assert line, f"the process of libraries ended with status {self._process.wait()}"
        done = json.loads(line)
        said = Path(done["said"]).read_text(encoding="utf-8")
        assert done["status"] == 0, said + Path(done["error"]).read_text(encoding="utf-8")
        return said.splitlines()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, _: type[BaseException] | None, __: BaseException | None, ___: TracebackType | None
    ) -> None:
        self._process.communicate()


def run(code: str, arguments: Sequence[str], at: str, said: str, error: str) -> NoReturn:
    """What a fork does: it is the program, as ``python -c`` would run it."""
    status = 1
    try:
        for path, standard in ((said, 1), (error, 2)):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), standard)
        os.chdir(at)
        sys.path.insert(0, "")
        sys.argv = ["-c", *arguments]
        exec(compile(code, "<string>", "exec"), {"__name__": "__main__"})
        status = 0
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


def hide(names: Sequence[str]) -> None:
    """Nothing finds them, as where they are not installed."""

    class Others(PathFinder):
        @classmethod
        def find_spec(cls, fullname: str, *where: Any) -> ModuleSpec | None:
            hidden = fullname.partition(".")[0] in names
            return None if hidden else PathFinder.find_spec(fullname, *where)

    sys.meta_path[:] = [Others if finder is PathFinder else finder for finder in sys.meta_path]


def main() -> None:
    """Fork for each task on the standard input, a line of JSON each, and tell how it ended."""
    hide([name[1:] for name in sys.argv[1:] if name.startswith("-")])
    for library in sys.argv[1:]:
        if not library.startswith("-"):
            importlib.import_module(library)
    import torch

    torch.set_num_threads(1)  # threads do not survive a fork
    answers = os.fdopen(os.dup(1), "w", encoding="utf-8")
    for number, line in enumerate(sys.stdin):
        task: dict[str, Any] = json.loads(line)
        paths = {name: f"{task['at']}/{number}.{name}" for name in ("said", "error")}
        child = os.fork()
        if child == 0:
            run(**task, **paths)
        _, status = os.waitpid(child, 0)
        told = {"status": os.waitstatus_to_exitcode(status), **paths}
        answers.write(json.dumps(told) + "\n")
        answers.flush()
    os._exit(0)  # to take libraries down takes seconds


if __name__ == "__main__":
    main()
