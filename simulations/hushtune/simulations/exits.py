"""How the command ends: exit statuses, errors in words, and nothing where nobody reads on."""

from __future__ import annotations

import errno
import os
import sys
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

from rich.console import Console

from hushtune.common.errors import (
    ConfigError,
    DiskFullError,
    EncodingError,
    HushtuneError,
    RunError,
)

USER_ERROR, BUG, INTERRUPTED = 2, 1, 130
CLOSED_PIPE = 141
"""What a shell reports of a program that SIGPIPE ended, as after ``hushtune … | head -1``."""

_PAGE = "docs/errors.md"


def check_arguments(arguments: Sequence[str]) -> None:
    """What is not UTF-8 can be neither shown, nor written to a file, nor tokenised."""
    for place, text in enumerate(arguments, start=1):
        try:
            text.encode()
        except UnicodeEncodeError:
            raise EncodingError(
                f"argument {place} is not UTF-8",
                given=repr(os.fsencode(text)),
                expected="text and paths in UTF-8",
            ) from None


def show_error(error: HushtuneError, errors: Console) -> None:
    """Code, what is wrong, what was given, what to do, and where more is said."""
    errors.print(f"[bold red]{error.code}[/] ", end="")
    errors.print(str(error), markup=False, highlight=False, soft_wrap=True)
    more = f"  more: {errors_page()}, {error.code}"
    errors.print(more, style="dim", markup=False, highlight=False, soft_wrap=True)


def errors_page() -> str:
    """Where the page about error codes lies: in the repository, or where the package put it."""
    repository = Path(__file__).resolve().parents[3]
    found = repository / _PAGE if (repository / "pyproject.toml").is_file() else _installed_page()
    if found is None or not found.is_file():
        return _PAGE
    here = Path.cwd()
    return str(found.relative_to(here) if found.is_relative_to(here) else found)


def _installed_page() -> Path | None:
    """A wheel brings the page along as ``share/doc/hushtune/errors.md`` of its environment."""
    try:
        files = metadata.files("hushtune") or ()
    except metadata.PackageNotFoundError:
        return None
    pages = (file for file in files if file.parts[-2:] == ("hushtune", "errors.md"))
    return next((Path(str(page.locate())).resolve() for page in pages), None)


def exit_with(error: Exception, errors: Console) -> None:
    """Usage errors with what helps; anything else is a fault of ours, and no stack trace."""
    usage = getattr(error, "format_message", None)
    if callable(usage):  # click's
        if not usage():  # nothing was asked, and the help is shown already
            sys.exit(USER_ERROR)
        context = getattr(error, "ctx", None)
        command = "hushtune" if context is None else context.command_path
        told = ConfigError(str(usage()), remedy=f"`{command} --help` shows what it takes")
        show_error(told, errors)
        sys.exit(USER_ERROR)
    if os.environ.get("HUSHTUNE_DEBUG"):
        raise error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        full = DiskFullError(
            "the disk is full",
            given=str(error.filename or "where the command prints to, or a file of the run"),
            remedy="free some space and try again; a run goes on with --resume",
        )
        show_error(full, errors)
        sys.exit(USER_ERROR)
    if isinstance(error, OSError) and error.filename is not None:
        unusable = RunError(
            "a file or folder cannot be used",
            given=f"{os.fsdecode(error.filename)}: {error.strerror}",
            remedy="check the path and who may read and write there",
        )
        show_error(unusable, errors)
        sys.exit(USER_ERROR)
    kind = type(error).__name__
    errors.print(f"[bold red]HT000[/] an unforeseen error: {kind}", highlight=False)
    errors.print(f"  given: {error}", markup=False, highlight=False)
    errors.print("  do: run again with HUSHTUNE_DEBUG=1 and report the stack trace")
    sys.exit(BUG)


def is_closed_pipe(error: BaseException) -> bool:
    """Whether it ended as nobody reads what is printed; rich and click say so by an exit status."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, BrokenPipeError)
    return isinstance(error, BrokenPipeError) and error.filename is None


def exit_quietly() -> None:
    """End without a word: what is still to be printed would only fail once more."""
    nowhere = os.open(os.devnull, os.O_WRONLY)
    os.dup2(nowhere, sys.stdout.fileno())
    sys.exit(CLOSED_PIPE)
