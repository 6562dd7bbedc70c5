"""The federation of the tests: its commands see nothing that another test or a user has set."""

from __future__ import annotations

import os
import sys

import pytest

from hushtune.simulations import cli

from . import processes


@pytest.mark.parametrize("apart", [False, True])
def test_a_command_sees_no_setting_of_hushtune_or_flower(
    apart: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("HUSHTUNE_CACHE", "FLWR_HOME"):
        monkeypatch.setenv(name, "elsewhere")
    monkeypatch.setenv("ANOTHER", "kept")
    code = "import os; print(*os.environ)"
    monkeypatch.setattr(cli, "main", lambda: exec(code, {}))
    monkeypatch.setattr(processes, "COMMAND", (sys.executable, "-c", code))
    seen = set(processes.hushtune("any", apart=apart).split())
    assert {"ANOTHER", "PATH", "COLUMNS"} <= seen
    assert not {"HUSHTUNE_CACHE", "FLWR_HOME"} & seen
    assert os.environ["HUSHTUNE_CACHE"] == "elsewhere"
