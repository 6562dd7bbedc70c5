"""The coordinator's logs: what each line says, whom it is for, and how large they grow."""

from __future__ import annotations

import json
import logging
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hushtune.common.private_log import PrivateLog, put_aside
from hushtune.server.deployment.logs import RunLog, close_log, open_log, tell


@pytest.fixture
def run_log(tmp_path: Path) -> Iterator[tuple[RunLog, Path]]:
    path, made = tmp_path / "flower" / "run.jsonl", RunLog("first")
    made.open(path)
    yield made, path
    made.close()


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def test_each_line_of_a_run_has_run_round_and_site(run_log: tuple[RunLog, Path]) -> None:
    made, path = run_log
    plain = logging.getLogger("hushtune.server.plain")
    tell(plain, "began", rounds=3)
    made.round = 2
    plain.warning("round %d goes on without %s", 2, "west", extra={"site": "west"})
    tell(plain, "round", accepted=["north"])
    made.close()
    plain.warning("of another run")
    found = lines(path)
    assert [(row["run"], row["round"], row["site"]) for row in found] == [
        ("first", None, None),
        ("first", 2, "west"),
        ("first", 2, None),
    ]
    assert found[0]["event"] == "began"
    assert found[1]["message"] == "round 2 goes on without west"
    assert found[1]["level"] == "WARNING"
    assert found[2]["accepted"] == ["north"]


def test_logs_are_their_owners_alone_even_where_they_were_not(
    run_log: tuple[RunLog, Path], tmp_path: Path
) -> None:
    assert run_log[1].stat().st_mode & 0o777 == 0o600
    server = tmp_path / "server.jsonl"
    server.touch(mode=0o644)
    log = open_log(server, stream=None)
    tell(log, "started")
    close_log(log)
    assert server.stat().st_mode & 0o777 == 0o600
    assert lines(server)[0]["event"] == "started"
    assert "run" not in lines(server)[0]


def test_a_log_is_rotated_and_what_others_write_is_put_aside(tmp_path: Path) -> None:
    path = tmp_path / "run.jsonl"
    handler = PrivateLog(path, maxBytes=100, backupCount=2, encoding="utf-8")
    for _ in range(20):
        handler.emit(logging.LogRecord("x", logging.INFO, "", 0, "y" * 40, None, None))
    handler.close()
    kept = sorted(tmp_path.iterdir())
    assert [each.name for each in kept] == ["run.jsonl", "run.jsonl.1", "run.jsonl.2"]
    assert all(each.stat().st_mode & 0o777 == 0o600 for each in kept)
    other = tmp_path / "processes.log"
    assert not put_aside(other, most=3)
    other.write_bytes(b"old")
    assert not put_aside(other, most=3)
    assert put_aside(other, most=2)
    assert not other.exists()
    assert (tmp_path / "processes.log.1").read_bytes() == b"old"
