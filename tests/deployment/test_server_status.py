"""What is told of a federation: from the files of a run, escaped, and for machines."""

from __future__ import annotations

import io
import json
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from hushtune.server.deployment.home import Home, init_home
from hushtune.server.deployment.live import RunView, show_status
from hushtune.server.deployment.metrics_text import metrics_text
from hushtune.server.deployment.page import StatusPage, render_page
from hushtune.server.deployment.run_process import identity, process_start
from hushtune.server.deployment.status import (
    federation_status,
    newest_run,
    run_status,
)
from hushtune.server.deployment.watch import Rejection, Watch

from .test_server_guard import Call

EVIL = "<script>alert(1)</script>"


def row(number: int, **changes: Any) -> dict[str, Any]:
    return {
        "round": number,
        "accepted": ["north", "south"],
        "rejected": {},
        "bytes_up": 1000,
        "bytes_down": 2000,
        "epsilon": {"north": 0.5 * number, "south": 0.25 * number},
        "released": {
            "noised": True,
            "loss": 1.0 / number,
            "sites": {"north": {"loss": 0.9, "accuracy": 0.5}},
        },
        "seconds": {"training": 1.5, "aggregation": 0.5, "checkpoint": None},
        **changes,
    }


def write_run(home: Home, name: str, *rows: dict[str, Any], **state: Any) -> Path:
    folder = home.runs / name
    folder.mkdir(parents=True)
    told = {
        "status": "running",
        "phase": "rounds",
        "pid": os.getpid(),
        "round": len(rows),
        "rounds": 5,
        "sites": ["north", "south"],
        "connected": ["north"],
        "began": 1.0,
        "updated": 2.0,
        "error": None,
        **state,
    }
    (folder / "state.json").write_text(json.dumps(told))
    text = "".join(json.dumps(each) + "\n" for each in rows)
    (folder / "metrics.jsonl").write_text(text + '{"round": 9, "acc')  # being written
    return folder


@pytest.fixture
def home(tmp_path: Path) -> Home:
    return init_home(tmp_path / "c", name=EVIL, address="localhost:9092", now=datetime.now(UTC))


def watched() -> Watch:
    watch = Watch(started=1.0, tell=lambda event, **fields: None)
    watch.saw("north", now=100.0, bytes_in=5)
    watch.refused(Rejection("clock", site=EVIL, seconds=400.0), peer="192.0.2.1", now=99.0)
    return watch


def test_a_run_is_told_as_its_folder_has_it(home: Home) -> None:
    bad = row(2, accepted=["south"], rejected={"north": "norm"})
    folder = write_run(home, "first", row(1), bad)
    told = run_status(folder)
    assert (told["status"], told["round"], told["rounds"]) == ("running", 2, 5)
    assert told["losses"] == [[1, 1.0], [2, 0.5]]
    assert told["epsilon"] == {"north": 1.0, "south": 0.5}
    assert told["refusals"] == {"north": [{"round": 2, "reason": "norm"}]}
    assert (told["bytes_up"], told["bytes_down"], told["seconds_per_round"]) == (2000, 4000, 2.0)


def test_a_run_whose_process_is_gone_is_interrupted(home: Home) -> None:
    assert run_status(write_run(home, "gone", pid=2**22 + 1))["status"] == "interrupted"
    assert run_status(write_run(home, "over", status="finished", pid=1))["status"] == "finished"
    (home.runs / "begun").mkdir()
    assert run_status(home.runs / "begun")["status"] == "starting"


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc")
def test_a_process_that_got_the_number_of_a_runs_is_another_one(
    home: Home, monkeypatch: pytest.MonkeyPatch
) -> None:
    own = process_start(os.getpid())
    assert own is not None
    boot, ticks = own.split()
    assert run_status(write_run(home, "same", process=own))["status"] == "running"
    later = write_run(home, "later", process=f"{boot} {int(ticks) - 1}")
    assert run_status(later)["status"] == "interrupted"
    restarted = write_run(home, "restarted", process=f"{'0' * len(boot)} {ticks}")
    assert run_status(restarted)["status"] == "interrupted"
    assert run_status(write_run(home, "older", process=None))["status"] == "running"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as other:
        assert process_start(other.pid) not in (None, own)
        other.communicate(b"\n")
    assert process_start(2**22 + 1) is None
    # Where the system does not tell, the number alone counts.
    monkeypatch.setattr("hushtune.server.deployment.run_process.process_start", lambda _: None)
    assert run_status(later)["status"] == "running"


def test_a_run_that_is_gone_says_how_to_go_on(home: Home) -> None:
    told = run_status(write_run(home, "gone", row(1), pid=2**22 + 1))
    again = f"hushtune server run {home.folder} --resume --name gone"
    assert (told["error"]["code"], told["error"]["do"]) == ("HT604", again)
    page = render_page(federation_status(home, None))
    for text in (shown(home, None), page):
        assert again in text
        assert "interrupted" in text
        assert ", rounds" not in text


@pytest.mark.skipif(not Path("/proc/self/stat").is_file(), reason="no /proc")
def test_a_run_whose_server_is_gone_is_interrupted(home: Home) -> None:
    own = identity(os.getpid())
    assert run_status(write_run(home, "same", server=own))["status"] == "running"
    for name, server in (("killed", f"{2**22 + 1} x 1"), ("other", f"{os.getpid()} x 1")):
        assert run_status(write_run(home, name, server=server))["status"] == "interrupted"
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as ended:
        began = process_start(ended.pid)
        dead = write_run(home, "dead", pid=ended.pid, process=began)
        assert run_status(dead)["status"] == "running"
        assert ended.stdin is not None
        ended.stdin.close()
        os.waitid(os.P_PID, ended.pid, os.WEXITED | os.WNOWAIT)
        assert run_status(dead)["status"] == "interrupted"  # nobody has asked for its end yet


def test_the_newest_run_is_the_one_that_spoke_last(home: Home) -> None:
    assert newest_run(home) is None
    for place, name in enumerate(("b", "a")):
        os.utime(write_run(home, name) / "state.json", (place, place))
    found = newest_run(home)
    assert found is not None
    assert found["name"] == "a"


def test_the_page_escapes_what_others_have_written_and_fetches_nothing(home: Home) -> None:
    error = {"code": "HT501", "message": EVIL, "given": EVIL, "expected": None, "do": EVIL}
    rows = [row(1), row(2), row(3, rejected={"south": EVIL}, accepted=["north"])]
    write_run(home, "r", *rows, error=error, status="failed", connected=[EVIL], phase=EVIL)
    page = render_page(federation_status(home, watched().snapshot(now=100.0)))
    assert "<script" not in page
    assert page.count("&lt;script&gt;") >= 6
    assert not re.search(r"(?:src|href)=\"(?!/)", page)
    assert "polyline" in page

    opened: list[str] = []

    class Reader(HTMLParser):
        def handle_starttag(self, tag: str, attrs: Any) -> None:
            if tag != "meta":  # which is void
                opened.append(tag)

        def handle_endtag(self, tag: str) -> None:
            assert opened.pop() == tag

    Reader().feed(page)
    assert opened == []


def test_the_page_says_so_where_there_is_nothing_yet(home: Home) -> None:
    page = render_page(federation_status(home, None))
    assert "No run yet" in page
    assert "No site is enrolled" in page
    assert "not running" in page


def test_the_page_is_served_to_this_machine_read_only(home: Home) -> None:
    write_run(home, "r", row(1))
    page = StatusPage(home, watched(), port=9094)
    host = {"host": "127.0.0.1:9094"}
    served = Call(page, "/", "GET", headers=host)
    assert served.status == 200
    policy = dict(served.sent[0]["headers"])[b"content-security-policy"]
    assert b"default-src 'none'" in policy
    assert json.loads(Call(page, "/status.json", "GET", headers=host).body)["run"]["name"] == "r"
    assert b"hushtune_run_round" in Call(page, "/metrics", "GET", headers=host).body
    assert Call(page, "/x", "GET", headers=host).status == 404
    assert Call(page, "/", "POST", headers=host).status == 405
    assert Call(page, "/", "GET", headers={"host": "evil.example"}).status == 403


def test_metrics_are_prometheus_text(home: Home) -> None:
    write_run(home, 'q"\\', row(1))
    text = metrics_text(federation_status(home, watched().snapshot(now=100.0)))
    assert 'hushtune_run_epsilon{run="q\\"\\\\",site="north"} 0.5\n' in text
    assert 'hushtune_requests_rejected_total{reason="clock"} 1\n' in text
    line = re.compile(
        r'[a-z_]+(\{[a-z]+="(?:[^"\\\n]|\\.)*"(,[a-z]+="(?:[^"\\\n]|\\.)*")*\})? [0-9.e+-]+'
    )
    families: list[str] = []
    for each in text.splitlines():
        if each.startswith("# TYPE"):
            families.append(each.split()[2])
        elif not each.startswith("#"):
            assert line.fullmatch(each), each
            assert each.startswith(families[-1])
    assert len(set(families)) == len(families)


def shown(home: Home, link: Any) -> str:
    console = Console(file=io.StringIO(), width=200)
    console.print(show_status(federation_status(home, link)))
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_the_terminal_shows_the_same(home: Home) -> None:
    assert "not running" in shown(home, None)
    write_run(home, "r", row(1, rejected={"south": "[red]norm"}))
    text = shown(home, watched().snapshot(now=100.0))
    for told in ("round 1 of 5", "north", "connected", "[red]norm", "clock +400.0 s", "loss 1.000"):
        assert told in text, told


def test_a_followed_run_is_a_line_a_round_where_there_is_no_terminal(home: Home) -> None:
    console = Console(file=io.StringIO(), width=80)
    folder = write_run(home, "r", row(1))
    with RunView(console) as view:
        view.update(run_status(folder))
        view.update(run_status(folder))
    lines = console.file.getvalue().splitlines()  # type: ignore[attr-defined]
    assert lines[0] == "running; connected: north"
    assert lines[1].startswith("round   1 of 5  held-out loss 1.000 (noised), epsilon spent: north")
    assert len(lines) == 2
