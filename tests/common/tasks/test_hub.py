"""A name of the hub: found, not there, or no hub to ask; said at once and with what to do."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError, RepositoryNotFoundError

from hushtune.common.errors import AssetError
from hushtune.common.tasks.assets import resolve_model
from hushtune.common.tasks.hub import find_on_hub
from hushtune.common.tasks.readers import read_dataset
from hushtune.common.tasks.rows import Columns

NAME = "someone/something"


def asked(monkeypatch: pytest.MonkeyPatch, answer: Any) -> None:
    def repo_info(self: Any, name: str, *, repo_type: str, timeout: float) -> Any:
        assert (name, timeout) == (NAME, 5.0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    monkeypatch.setattr(huggingface_hub.HfApi, "repo_info", repo_info)


def test_a_name_that_the_hub_has_is_left_to_the_loader(monkeypatch: pytest.MonkeyPatch) -> None:
    asked(monkeypatch, object())
    assert find_on_hub(NAME, "model") is None
    assert resolve_model(NAME) == NAME


def test_a_name_that_nobody_has(monkeypatch: pytest.MonkeyPatch) -> None:
    class Absent(RepositoryNotFoundError):
        def __init__(self) -> None:
            Exception.__init__(self, "404")  # without a response of some HTTP library

    asked(monkeypatch, Absent())
    with pytest.raises(AssetError, match=rf"(?s)no such model.*{NAME}.*'demo'"):
        find_on_hub(NAME, "model")


def test_without_a_network_what_was_fetched_before_is_used(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    asked(monkeypatch, OSError("no route"))
    kept = LocalEntryNotFoundError("some files are missing")
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *_, **__: str(tmp_path))
    assert find_on_hub(NAME, "model") == tmp_path

    def incomplete(*_: Any, **__: Any) -> str:
        kept.snapshot_path = str(tmp_path)  # pyright: ignore[reportAttributeAccessIssue]
        raise kept

    monkeypatch.setattr(huggingface_hub, "snapshot_download", incomplete)
    assert find_on_hub(NAME, "dataset") == tmp_path


def test_an_unreachable_hub_is_said_within_seconds_with_what_to_use_instead(
    settings: Any, hushtune: Any, tmp_path: Path
) -> None:
    """Tests are not to reach the hub (HF_HUB_OFFLINE), which is as good as no network."""
    began = time.perf_counter()
    for changes in ({"model__name": NAME}, {"data__file": None, "data__dataset": NAME}):
        toml = settings.file(tmp_path, **changes)
        answer = hushtune("simulate", "--config", toml, "--out", tmp_path / "out")
        assert answer.status == 2
        assert answer.err.lstrip().startswith("HT700 "), answer.err
        assert f"{NAME} is not here, and the hub cannot be reached" in answer.err
        assert "folder" in answer.err
    assert time.perf_counter() - began < 10
    with pytest.raises(AssetError, match=r"(?s)dataset.*data.dataset to the folder"):
        next(read_dataset(NAME, Columns("text", "label")))
    with pytest.raises(AssetError, match=r"(?s)model.name to a folder.*'demo'"):
        resolve_model(NAME)
