"""Planted faults: each file here breaks a promise, and names the test that must notice.

A fault ``NAME.toml`` has the keys

- ``what``: the fault in a sentence;
- ``file``: the file of the product that it is planted in;
- ``before``, ``after``: the text that is replaced, which must occur exactly once, and its
  replacement;
- ``caught_by``: the pytest node id of the test that must fail, and for its own reason: an assertion
  or ``pytest.raises``, and not an import, a fixture or an error of the product.

Every fault is planted in a copy of the project; see ``zygote.py`` for how it runs.
"""

from __future__ import annotations

import compileall
import json
import os
import shutil
import signal
import subprocess
import sys
import time
import tomllib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from py_compile import PycInvalidationMode

import pytest

from .zygote import MOST_SECONDS, SOURCE_ROOTS

HERE = Path(__file__).resolve().parent
PROJECT = HERE.parents[1]
CONTROL = "control"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system"),
    pytest.mark.skipif(
        not all((PROJECT / name).is_dir() for name in SOURCE_ROOTS),
        reason="no source roots beside the tests",
    ),
]


@dataclass(frozen=True, kw_only=True)
class Fault:
    """One planted fault; its fields are the keys of its file."""

    what: str
    file: str
    before: str
    after: str
    caught_by: str

    def places(self) -> int:
        """How often ``before`` occurs; anything but once is a mistake in the fault."""
        return (PROJECT / self.file).read_text(encoding="utf-8").count(self.before)

    def plant(self, project: Path) -> None:
        """Patch a copy of the project, whose files are those of all other copies too."""
        path = project / self.file
        text = path.read_text(encoding="utf-8")
        path.unlink()
        path.write_text(text.replace(self.before, self.after), encoding="utf-8")


FAULTS = {
    path.stem: Fault(**tomllib.loads(path.read_text(encoding="utf-8")))
    for path in sorted(HERE.glob("*.toml"))
}


NAMED = sorted({fault.caught_by for fault in FAULTS.values()})


def copy_project(folder: Path) -> Path:
    """The sources and tests, compiled once. What was compiled is used for the very same source
    alone, and not for what its time and size say: that of the sound code never for a fault."""
    skipped = shutil.ignore_patterns("__pycache__")
    for name in (*SOURCE_ROOTS, "tests"):
        shutil.copytree(PROJECT / name, folder / name, ignore=skipped)
        compileall.compile_dir(
            folder / name, quiet=1, invalidation_mode=PycInvalidationMode.CHECKED_HASH
        )
    shutil.copy(PROJECT / "pyproject.toml", folder)
    return folder


@dataclass(frozen=True, kw_only=True)
class Result:
    """What came of one task; see ``zygote.py``."""

    output: str
    verdicts: Mapping[str, str] = field(default_factory=dict)
    foreign: Sequence[str] = ()
    died: int = 0


Results = Callable[[str], Result]


@pytest.fixture(scope="module")
def result_of(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Results]:
    """What came of a fault, or of ``CONTROL``; all that were selected run from the start."""
    folder = tmp_path_factory.mktemp("faults")
    selected = [
        item.callspec.params["name"]
        for item in request.session.items
        if isinstance(item, pytest.Function) and item.module is request.module
    ]
    log = folder / "zygote.log"
    with log.open("w", encoding="utf-8") as output:
        zygote = subprocess.Popen(
            [sys.executable, "-P", str(HERE / "zygote.py")],
            stdin=subprocess.PIPE,
            stdout=output,
            stderr=output,
            text=True,
            start_new_session=True,
        )
    assert zygote.stdin is not None
    sound = copy_project(folder / "sound")
    for name in sorted(selected, key=lambda name: name != CONTROL):  # the longest first
        root = shutil.copytree(sound, folder / name, copy_function=os.link)
        if name != CONTROL:
            FAULTS[name].plant(root)
        nodes = NAMED if name == CONTROL else [FAULTS[name].caught_by]
        zygote.stdin.write(json.dumps({"root": str(root), "nodes": nodes}) + "\n")
        zygote.stdin.flush()
    zygote.stdin.close()

    def wait_for(name: str) -> Result:
        result = folder / f"{name}.json"
        while not result.exists():
            assert zygote.poll() is None or result.exists(), log.read_text(encoding="utf-8")
            time.sleep(0.05)
        shutil.rmtree(folder / name)
        output = (folder / f"{name}.txt").read_text(encoding="utf-8", errors="replace")
        return Result(output=output, **json.loads(result.read_text(encoding="utf-8")))

    yield wait_for
    if zygote.poll() is None:
        os.killpg(zygote.pid, signal.SIGKILL)
    zygote.wait(MOST_SECONDS)


@pytest.mark.parametrize("name", FAULTS)
def test_the_named_test_catches_the_fault(result_of: Results, name: str) -> None:
    """... and fails for its own reason."""
    fault = FAULTS[name]
    assert fault.places() == 1, f"`before` occurs {fault.places()} times in {fault.file}"
    found = result_of(name)
    assert not found.died, found.output
    assert not found.foreign
    assert found.verdicts == {fault.caught_by: "caught"}, (
        f"{fault.what}\nThis was not noticed as it should be by {fault.caught_by}:\n{found.output}"
    )


@pytest.mark.parametrize("name", [CONTROL])
def test_without_a_fault_the_named_tests_pass(result_of: Results, name: str) -> None:
    """In the same machinery; else they would "catch" everything."""
    found = result_of(name)
    assert not found.died, found.output
    assert not found.foreign
    assert found.verdicts == dict.fromkeys(NAMED, "passed"), found.output
