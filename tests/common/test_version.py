"""Which code a statement says it was made by."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from hushtune.common import version


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small checkout in which this module lies where it lies in the project."""
    place = tmp_path / "common" / "hushtune" / "common" / "version.py"
    place.parent.mkdir(parents=True)
    place.write_text("# a copy", encoding="utf-8")
    who = ["-c", "user.name=n", "-c", "user.email=e@example.org"]
    for arguments in (["init", "-q"], ["add", "."], [*who, "commit", "-qm", "first"]):
        subprocess.run(["git", *arguments], cwd=tmp_path, check=True)
    monkeypatch.setattr(version, "__file__", str(place))
    version.source_commit.cache_clear()
    return place


def test_a_checkout_tells_its_commit_and_whether_it_was_changed(checkout: Path) -> None:
    commit = version.source_commit()
    assert commit is not None
    assert len(bytes.fromhex(commit)) == 20
    checkout.write_text("# changed", encoding="utf-8")
    version.source_commit.cache_clear()
    assert version.source_commit() == f"{commit}, with local changes"


def test_an_install_from_a_repository_tells_its_commit_and_a_release_none(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(version, "__file__", str(tmp_path / "a/b/c/version.py"))
    told: dict[str, Any] = {"vcs_info": {"commit_id": "ab12"}}
    for text, expected in ((json.dumps(told), "ab12"), ("{}", None), (None, None)):
        found = SimpleNamespace(read_text=lambda _name, text=text: text)
        monkeypatch.setattr(version, "distribution", lambda _name, found=found: found)
        version.source_commit.cache_clear()
        assert version.source_commit() == expected
    version.source_commit.cache_clear()
