"""Log lines as JSON, one a line, that tell nothing of a site's rows.

A line has ``time`` (UTC), ``level``, ``source`` and ``message`` or ``event``, and what belongs to
an event. Of an error that hushtune raises on purpose its code and message are told, never what was
given, which may be a cell; of any other only its kind and where it came from.
"""

from __future__ import annotations

import datetime
import logging
import os
import sys
import traceback
from collections.abc import Mapping
from logging.handlers import RotatingFileHandler
from pathlib import Path
from types import TracebackType
from typing import Any, TextIO

from hushtune.common.errors import DataError, HushtuneError
from hushtune.common.json_text import json_text

LOG_BYTES, LOG_FILES = 2_000_000, 3
"""How large a log may grow before it is put aside, and how many such are kept."""
_LONGEST = 2000


def utc_now() -> str:
    """The time as a log has it.

    >>> len(utc_now()), utc_now()[-1]
    (24, 'Z')
    """
    now = datetime.datetime.now(datetime.UTC)
    return now.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def told(error: BaseException) -> str:
    """An error for a log: what it says without what was given.

    >>> told(HushtuneError("the text is a number", given="a patient's name"))
    'HT000 the text is a number'
    >>> told(KeyError("a patient's name"))
    'KeyError'
    """
    if not isinstance(error, HushtuneError):
        return type(error).__name__
    place = ""
    if isinstance(error, DataError):
        where = {"row": error.row, "column": error.column}
        place = ", ".join(f"{name} {value}" for name, value in where.items() if value is not None)
    return f"{error.code} {error.message}" + (f" ({place})" if place else "")


def came_from(trace: TracebackType | None) -> list[str]:
    """Where an error came from, innermost last: modules, lines and functions, and no values."""
    frames = traceback.extract_tb(trace)
    return [f"{Path(one.filename).name}:{one.lineno} {one.name}" for one in frames][-8:]


class JsonLines(logging.Formatter):
    """Records as JSON lines; ``extra={"event": {...}}`` joins the line's own keys."""

    def __init__(self, source: str) -> None:
        super().__init__()
        self._source = source

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": utc_now(),
            "level": record.levelname.lower(),
            "source": self._source,
        }
        event = getattr(record, "event", None)
        if isinstance(event, Mapping):
            return json_text({**line, **event})
        line["message"] = _message(record)[:_LONGEST]
        if record.exc_info and record.exc_info[1] is not None:
            line["error"] = told(record.exc_info[1])
            line["from"] = came_from(record.exc_info[2])
        return json_text(line)


def _message(record: logging.LogRecord) -> str:
    args = record.args
    if isinstance(args, tuple):
        args = tuple(told(one) if isinstance(one, BaseException) else one for one in args)
    message = str(record.msg) if not isinstance(record.msg, BaseException) else told(record.msg)
    try:
        return message % args if args else message
    except (TypeError, ValueError):
        return message


def log_to(stream: TextIO, *, source: str, level: int = logging.INFO) -> None:
    """Send what this process logs, and how it ends if it fails, to a stream as JSON lines."""
    handler = logging.StreamHandler(stream)
    handler.setFormatter(JsonLines(source))
    root = logging.getLogger()
    root.handlers[:] = [handler]
    root.setLevel(logging.WARNING)
    logging.getLogger("hushtune").setLevel(level)
    sys.excepthook = _log_unforeseen


def _log_unforeseen(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    logging.getLogger("hushtune").critical("it ends", exc_info=(kind, error, trace))


def flower_logs_to_ours() -> None:
    """Flower's own handler colours its lines; it is there once Flower is imported."""
    flower = logging.getLogger("flwr")
    flower.handlers.clear()
    flower.propagate = True
    flower.setLevel(logging.INFO)


def log_event(logger: logging.Logger, event: str, **fields: Any) -> None:
    """One line with an event and what belongs to it."""
    logger.info(event, extra={"event": {"event": event, **fields}})


def open_log(path: Path) -> RotatingFileHandler:
    """A bounded log file that its owner alone may read; ``emit_line`` of it takes whole lines."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.touch(mode=0o600, exist_ok=True)
    handler = _PrivateFile(path, maxBytes=LOG_BYTES, backupCount=LOG_FILES, encoding="utf-8")
    handler.setFormatter(logging.Formatter("%(message)s"))
    return handler


class _PrivateFile(RotatingFileHandler):
    def _open(self) -> Any:
        # From the start: whatever the umask is, nobody else can open it before its mode is set.
        stream = open(  # noqa: SIM115 (the handler closes it)
            self.baseFilename, self.mode, encoding=self.encoding, opener=_private
        )
        os.fchmod(stream.fileno(), 0o600)
        return stream


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def write_line(log: logging.Handler, line: Mapping[str, Any]) -> None:
    """Add a line to a log file."""
    record = logging.LogRecord("hushtune", logging.INFO, "", 0, json_text(line), None, None)
    log.handle(record)
