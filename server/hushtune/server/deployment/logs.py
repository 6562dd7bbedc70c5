"""The server's log and its runs': a JSON object a line, with what was named to be told alone."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from importlib import import_module
from pathlib import Path
from typing import TextIO

from hushtune.common.files import write_errors
from hushtune.common.private_log import PrivateLog

NAME = "hushtune.server.link"
_OURS = "hushtune"
_BYTES, _FILES = 10 * 2**20, 5
_OTHERS = ("flwr", "uvicorn", "uvicorn.error", "asyncio", "hushtune.server.deployment")
_OF_RUN = ("run", "round", "site")


class JsonLines(logging.Formatter):
    """``{"time", "level", "event" or "message", ...}``; an error's trace is in ``trace``.

    Of a run each line has ``run``, ``round`` and ``site`` besides, null where it is of none.
    """

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        row: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
        }
        row |= {name: getattr(record, name) for name in _OF_RUN if hasattr(record, name)}
        fields: object = getattr(record, "fields", None)
        if isinstance(fields, dict):
            row |= {"event": record.getMessage(), **fields}
        else:
            row |= {"message": record.getMessage(), "logger": record.name}
        if record.exc_info:
            row["trace"] = self.formatException(record.exc_info)
        return json.dumps(row, ensure_ascii=False, default=str)


def open_log(path: Path, *, stream: TextIO | None) -> logging.Logger:
    """The log in a file that is rotated, and on a stream as well where one is given.

    Warnings of Flower, of the HTTP server and of what is around it go there too.
    """
    import_module("flwr.supercore.logger")  # which sets its own logger up, and would undo ours

    with write_errors(path):
        handlers: list[logging.Handler] = [_file(path)]
    if stream is not None:
        handlers.append(logging.StreamHandler(stream))
    for handler in handlers:
        handler.setFormatter(JsonLines())
    for name in (NAME, *_OTHERS):
        logger = logging.getLogger(name)
        logger.handlers = list(handlers)
        logger.propagate = False
        logger.setLevel(logging.INFO if name == NAME else logging.WARNING)
    return logging.getLogger(NAME)


class RunLog(logging.Filter):
    """Where hushtune's own lines go in a run's ServerApp, each with the run, the round, the site.

    ``round`` is what goes on now; a line says itself of which site it is, by ``extra``.
    """

    def __init__(self, run: str) -> None:
        super().__init__()
        self._run = run
        self.round: int | None = None
        self._handler: logging.Handler | None = None

    def open(self, path: Path) -> None:
        """Begin to write; RunError where the file cannot be written."""
        with write_errors(path):
            self._handler = _file(path)
        self._handler.setFormatter(JsonLines())
        self._handler.addFilter(self)
        ours = logging.getLogger(_OURS)
        ours.addHandler(self._handler)
        ours.setLevel(logging.INFO)

    def close(self) -> None:
        """Write no more."""
        handler, self._handler = self._handler, None
        if handler is not None:
            logging.getLogger(_OURS).removeHandler(handler)
            handler.close()

    def filter(self, record: logging.LogRecord) -> bool:
        """Add what belongs to each line; all are let through."""
        known = {"run": self._run, "round": self.round, "site": None}
        for name, value in known.items():
            if not hasattr(record, name):
                setattr(record, name, value)
        return True


def _file(path: Path) -> PrivateLog:
    return PrivateLog(path, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8")


def close_log(logger: logging.Logger) -> None:
    """Close what ``open_log`` has opened."""
    handlers = list(logger.handlers)
    for name in (NAME, *_OTHERS):
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    for handler in handlers:
        handler.close()


def tell(logger: logging.Logger, event: str, *, level: str = "INFO", **fields: object) -> None:
    """Write a line about an event."""
    logger.log(logging.getLevelNamesMapping()[level], event, extra={"fields": fields})
