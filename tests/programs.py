"""The programs in benchmarks/, loaded as they load each other: by name, from their own folder."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(__file__).resolve().parents[1] / "benchmarks"


def benchmark(name: str) -> Any:
    """The module ``benchmarks/NAME.py``, which is not run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        return importlib.import_module(name)
