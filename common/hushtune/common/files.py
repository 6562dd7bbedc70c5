"""Files that are there whole or not at all, and places that can be written or are refused."""

from __future__ import annotations

import errno
import json
import os
import tempfile
from collections.abc import Generator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

from hushtune.common.errors import CheckpointError, DiskFullError, RunError


def write_text(path: Path, text: str) -> None:
    """Replace a text file atomically; see ``write_bytes``."""
    write_bytes(path, text.encode("utf-8"))


def write_bytes(path: Path, data: bytes, *, private: bool = False) -> None:
    """Replace a file atomically: readers, and a crash, see the old content or the new.

    ``private``: that its owner alone may read.
    Raises DiskFullError where the disk has no room and RunError where the place cannot be written;
    both leave the old content.
    """
    with write_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        try:
            with os.fdopen(handle, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.chmod(name, 0o600 if private else 0o644)
            os.replace(name, path)
            folder = os.open(path.parent, os.O_RDONLY)
            try:
                os.fsync(folder)
            finally:
                os.close(folder)
        except OSError:
            Path(name).unlink(missing_ok=True)
            raise


def read_text(path: Path, *, remedy: str) -> str:
    """A text file of a run; CheckpointError, with that remedy, if it is not there or not text."""
    try:
        return path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise _damaged(path, error, remedy) from error


def read_json(path: Path, *, remedy: str) -> dict[str, Any]:
    """The JSON object in a file of a run; CheckpointError, with that remedy, for anything else."""
    try:
        value: object = json.loads(read_text(path, remedy=remedy))
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error, remedy) from error
    if not isinstance(value, dict):
        raise CheckpointError(
            f"the file {path} is damaged",
            given=json.dumps(value)[:80],
            expected="a JSON object",
            remedy=remedy,
        )
    return cast("dict[str, Any]", value)


def read_json_lines(path: Path, *, remedy: str, growing: bool = False) -> list[dict[str, Any]]:
    """The JSON on each line of a file of a run; CheckpointError, with that remedy, if it is none.

    ``growing``: the file may be being written, so that a last line without an end is left out.
    """
    lines = read_text(path, remedy=remedy).splitlines(keepends=True)
    try:
        return [json.loads(line) for line in lines if not growing or line.endswith("\n")]
    except (ValueError, RecursionError) as error:
        raise _damaged(path, error, remedy) from error


def _damaged(path: Path, error: Exception, remedy: str) -> CheckpointError:
    if isinstance(error, OSError):
        return CheckpointError(
            f"the file {path} cannot be read", given=error.strerror or str(error), remedy=remedy
        )
    return CheckpointError(f"the file {path} is damaged", given=str(error)[:200], remedy=remedy)


@contextmanager
def write_errors(path: Path) -> Generator[None]:
    """Turn what the system says about writing ``path`` into DiskFullError or RunError."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFullError(
                "the disk is full",
                given=str(path),
                remedy="free some space and run again with --resume",
            ) from error
        raise RunError(
            "this place cannot be written",
            given=f"{path}: {error.strerror or error}",
            expected="a place below a folder that you may write to",
            remedy="name another one",
        ) from error


def check_writable(folder: Path) -> None:
    """Raise what ``write_errors`` does unless files can be written into a folder.

    It need not be there: it is made as far as it is missing, and what was made is removed. Tried,
    because permissions alone do not tell (a superuser may write everywhere but in ``/proc``).
    """
    made: list[Path] = []
    with write_errors(folder):
        try:
            for path in (*reversed(folder.parents), folder):
                if not path.exists():
                    path.mkdir()
                    made.append(path)
            tempfile.TemporaryFile(dir=folder).close()
        finally:
            for path in reversed(made):
                path.rmdir()
