"""Log files that are bounded, and that their owner alone may read."""

from __future__ import annotations

import os
from io import TextIOWrapper
from logging.handlers import RotatingFileHandler
from pathlib import Path


class PrivateLog(RotatingFileHandler):
    """A file that is put aside as ``NAME.1`` and so on when it has grown, with mode 0600."""

    def _open(self) -> TextIOWrapper:
        Path(self.baseFilename).parent.mkdir(parents=True, exist_ok=True)
        Path(self.baseFilename).touch(mode=0o600)
        os.chmod(self.baseFilename, 0o600)  # of a file that was there
        return super()._open()


def put_aside(path: Path, *, most: int) -> bool:
    """Rename a file of more than ``most`` bytes to ``NAME.1``, in place of an older one.

    For what another process writes, which is told a file and not to turn pages.
    """
    try:
        if path.stat().st_size <= most:
            return False
        path.replace(path.with_name(f"{path.name}.1"))
    except OSError:
        return False
    return True
