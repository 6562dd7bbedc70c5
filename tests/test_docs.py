"""What the pages name is there."""

from __future__ import annotations

import re
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = ("guarantees.md", "faults.md", "sites.md")


@cache
def names_by_file() -> dict[str, set[str]]:
    """The names of all tests, by the name of their file."""
    found: dict[str, set[str]] = {}
    for path in (ROOT / "tests").rglob("test_*.py"):
        names = re.findall(r"^def (test_\w+)\(", path.read_text(encoding="utf-8"), re.MULTILINE)
        found.setdefault(path.name, set()).update(names)
    return found


@pytest.mark.parametrize("page", PAGES)
def test_every_test_that_a_page_names_is_there(page: str) -> None:
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    named = re.findall(r"(test_\w+\.py)::(test_\w+)", text)
    assert len(named) > 5
    missing = sorted({f"{f}::{t}" for f, t in named if t not in names_by_file().get(f, set())})
    assert not missing
