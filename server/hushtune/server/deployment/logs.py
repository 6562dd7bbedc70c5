"""The server's log: a JSON object a line, with nothing in it but what was named to be told."""

from __future__ import annotations

import json
import logging
from datetime import UTC, datetime
from importlib import import_module
from logging.handlers import RotatingFileHandler
from pathlib import Path
from typing import TextIO

from hushtune.common.files import write_errors

NAME = "hushtune.server.link"
_BYTES, _FILES = 10 * 2**20, 5
_OTHERS = ("flwr", "uvicorn", "uvicorn.error", "asyncio", "hushtune.server.deployment")


class JsonLines(logging.Formatter):
    """``{"time", "level", "event" or "message", ...}``; an error's trace is in ``trace``."""

    def format(self, record: logging.LogRecord) -> str:
        """See the class."""
        row: dict[str, object] = {
            "time": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname,
        }
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
        path.parent.mkdir(parents=True, exist_ok=True)
        handlers: list[logging.Handler] = [
            RotatingFileHandler(path, maxBytes=_BYTES, backupCount=_FILES, encoding="utf-8")
        ]
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
