"""What keeps a site joined, and what it tells of itself."""

from __future__ import annotations

import configparser
import json
import os
import shutil
import subprocess
import time
from pathlib import Path
from typing import Any

import pytest

from hushtune.client.deployment import service
from hushtune.client.deployment.history import site_history
from hushtune.client.deployment.history_file import append_order
from hushtune.client.deployment.service import write_service
from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.deployment.status import site_status
from hushtune.client.deployment.status_file import State, Status, write_status
from hushtune.common.errors import ConfigError, DeploymentError
from hushtune.common.privacy.ledger import Ledger, Limit
from hushtune.common.privacy.plan import DpSgdEvent, Relation

from .coordinator import Authority, made_site


@pytest.fixture(scope="module")
def authority() -> Authority:
    return Authority()


@pytest.fixture
def site(tmp_path: Path, authority: Authority) -> Path:
    return made_site(tmp_path, authority=authority)


def unit_of(folder: Path) -> tuple[Path, dict[str, str]]:
    """The unit that is written for a site, and its section [Service]."""
    (path,) = write_service(folder, "systemd").files
    parser = configparser.ConfigParser(interpolation=None, strict=False)
    parser.optionxform = str  # pyright: ignore[reportAttributeAccessIssue] (keys keep their case)
    parser.read(path, encoding="utf-8")
    return path, dict(parser["Service"])


def test_a_unit_may_write_in_the_site_s_folder_alone(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HUSHTUNE_CACHE", "/var/cache/hushtune")
    _, unit = unit_of(site)
    assert unit["ProtectSystem"] == "strict"
    assert unit["ReadWritePaths"] == f"{site} -/var/cache/hushtune"
    assert unit["Environment"] == "HUSHTUNE_CACHE=/var/cache/hushtune"
    assert (unit["NoNewPrivileges"], unit["CapabilityBoundingSet"]) == ("yes", "")
    assert (unit["Restart"], unit["RestartSec"]) == ("always", "10")
    assert unit["ExecStart"].endswith(f"site join {site}")
    assert Path(unit["ExecStart"].split()[0]).is_absolute()


def moved_policy(site: Path) -> Path:
    """The policy in a folder of its own, as a site's file names it."""
    beside = site.parent / "policies"
    beside.mkdir()
    (site / "policy.toml").rename(beside / "north.toml")
    text = (site / "site.toml").read_text()
    assert 'policy = "policy.toml"' in text
    text = text.replace(
        'policy = "policy.toml"', f"policy = {json.dumps(str(beside / 'north.toml'))}"
    )
    (site / "site.toml").write_text(text)
    return beside


def test_a_unit_may_write_where_the_ledger_is(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Beside the policy, wherever that is: a read-only ledger refuses every order."""
    monkeypatch.setenv("HUSHTUNE_CACHE", "/var/cache/hushtune")
    beside = moved_policy(site)
    assert SiteFile.read(site).ledger.parent == beside
    _, unit = unit_of(site)
    assert unit["ReadWritePaths"] == f"{site} {beside} -/var/cache/hushtune"


@pytest.mark.skipif(shutil.which("systemd-analyze") is None, reason="no systemd here")
@pytest.mark.parametrize("name", ["plain", "with a space", 'quote" and $HOME and 100%'])
def test_systemd_takes_the_unit(tmp_path: Path, authority: Authority, name: str) -> None:
    path, _ = unit_of(made_site(tmp_path / name, authority=authority))
    copied = tmp_path / path.name
    shutil.copy(path, copied)
    done = subprocess.run(
        ["systemd-analyze", "verify", "--man=no", str(copied)],
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    told = [line for line in done.stderr.splitlines() if path.name in line]
    assert (done.returncode, told) == (0, []), done.stderr


def test_a_container_has_what_it_needs_and_no_more(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    yaml = pytest.importorskip("yaml")
    monkeypatch.setattr(os, "getuid", lambda: 1234)
    monkeypatch.setattr(os, "getgid", lambda: 99)
    made = write_service(site, "container")
    recipe, compose = (path.read_text(encoding="utf-8") for path in made.files)
    assert "\nUSER 1234\n" in recipe
    assert 'CMD ["site", "join", "/site"]' in recipe
    told = yaml.safe_load(compose)["services"]["site"]
    assert told["user"] == "1234:99"
    assert told["read_only"] is True
    assert told["cap_drop"] == ["ALL"]
    assert told["restart"] == "always"
    rows = site.parent / "notes.csv"
    assert told["volumes"] == [f"{site}:/site", f"{rows}:{rows}:ro"]
    assert not any("chown" in command for command in made.commands)


@pytest.mark.parametrize(
    ("wheels", "source", "installed"),
    [
        (["hushtune-1.0-py3-none-any.whl"], "", "hushtune-1.0-py3-none-any.whl"),
        ([], "https://example.org/hushtune.whl", "https://example.org/hushtune.whl"),
        ([], "", ""),
        (["hushtune-1.0-py3-none-any.whl", "hushtune-1.1-py3-none-any.whl"], "", ""),
    ],
    ids=["a wheel", "a source", "neither", "two wheels"],
)
def test_a_container_installs_what_it_is_given_and_nothing_by_name(
    site: Path, tmp_path: Path, wheels: list[str], source: str, installed: str
) -> None:
    """An index that anybody may write to could have anything under our name."""
    made = write_service(site, "container")
    recipe = made.files[0].read_text()
    assert "\nARG HUSHTUNE=\n" in recipe
    assert "COPY Containerfile hushtune-*.whl /tmp/hushtune/\n" in recipe
    assert made.commands[0].startswith(f"pip wheel --no-deps --wheel-dir {site / 'service'} .")
    (tmp_path / "hushtune").mkdir()
    for wheel in wheels:
        (tmp_path / "hushtune" / wheel).touch()
    commands = tmp_path / "bin"
    commands.mkdir()
    (commands / "pip").write_text('#!/bin/sh\nfor last in "$@"; do :; done; basename "$last"\n')
    (commands / "pip").chmod(0o755)
    script = (
        recipe.split("\nRUN ")[1].split("\n\n")[0].replace("/tmp/hushtune", f"{tmp_path}/hushtune")
    )
    done = subprocess.run(
        ["/bin/sh", "-c", script],
        env={"PATH": f"{commands}:{os.environ['PATH']}", "HUSHTUNE": source, "TORCH_INDEX": ""},
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.stdout.strip() == installed.rsplit("/", 1)[-1]
    if not installed:
        assert done.returncode == 1
        assert "pip wheel --no-deps ." in done.stderr


def test_rows_in_the_site_s_folder_are_mounted_with_it(site: Path) -> None:
    (site.parent / "notes.csv").rename(site / "notes.csv")
    text = (site / "site.toml").read_text().replace(str(site.parent / "notes.csv"), "notes.csv")
    (site / "site.toml").write_text(text)
    compose = write_service(site, "container").files[1].read_text()
    assert compose.count("      - ") == 1


def test_nobody_s_container_is_root(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "getuid", lambda: 0)
    made = write_service(site, "container")
    assert "USER 10001" in made.files[0].read_text()
    assert "chown" in made.commands[1]


def test_services_that_cannot_be(site: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="no such service"):
        write_service(site, "cron")
    broken = site.parent / "a\nb"
    site.rename(broken)
    with pytest.raises(DeploymentError, match="a path has a letter"):
        write_service(broken, "systemd")


def test_join_writes_the_service_and_says_how_to_enable_it(hushtune: Any, site: Path) -> None:
    answer = hushtune("site", "join", site, "--service", "systemd")
    assert answer.status == 0
    assert "sudo systemctl enable --now hushtune-site-north.service" in answer.out


def test_our_own_command_needs_no_path(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(service.sys, "executable", str(tmp_path / "python"))
    monkeypatch.setattr(service.shutil, "which", lambda _: None)
    assert list(service.own_command()) == [
        str(tmp_path / "python"),
        "-m",
        "hushtune.simulations.cli",
    ]


# -------------------------------------------------------------------------- status and history ----


def charge(folder: Path) -> None:
    limit = Limit(epsilon=1e6, delta=1e-3, relation=Relation.ADD_OR_REMOVE_ONE)
    event = DpSgdEvent(sampling_probability=0.1, noise_multiplier=2.0, steps=2)
    Ledger(folder / "policy.sqlite").charge(
        event, round=1, dataset="rows", run="a", unit="example", limit=limit
    )


def test_a_site_that_never_joined(hushtune: Any, site: Path) -> None:
    answer = hushtune("site", "status", site, "--json")
    assert answer.status == 0
    told = json.loads(answer.out.splitlines()[-1])
    assert (told["state"], told["epsilon"], told["limit"]) == ("not joined", 0.0, 3.0)
    assert "not joined" in answer.err


def test_what_is_spent_is_the_ledger_s_and_not_the_process_s(hushtune: Any, site: Path) -> None:
    """The file of a process that has hung, or was put back, must not tell of less."""
    charge(site)
    file = SiteFile.read(site)
    write_status(file.status, Status(site="north", server="s", epsilon=0.0, limit=9.0))
    answer = hushtune("site", "status", site, "--json")
    told = json.loads(answer.out.splitlines()[-1])
    assert 0 < told["epsilon"] < 3
    assert (told["limit"], told["charges"], told["problem"]) == (3.0, 1, None)
    assert "of 3 spent at delta 0.001, 1 charges" in answer.err


def test_a_ledger_that_cannot_be_trusted_is_told(site: Path) -> None:
    charge(site)
    (site / "policy.sqlite").unlink()
    told = site_status(site)
    assert told["epsilon"] is None
    assert str(told["problem"]).startswith("HT402")


@pytest.mark.parametrize(
    ("state", "pid", "expected"),
    [
        (State.CONNECTED, os.getpid(), "connected"),
        (State.CONNECTED, 2**22 + 1, "gone"),  # beyond what Linux gives out
        (State.STOPPED, 2**22 + 1, "stopped"),
    ],
    ids=["here", "gone", "stopped"],
)
def test_a_process_that_is_no_more_is_not_connected(
    site: Path, state: State, pid: int, expected: str
) -> None:
    write_status(site / "status.json", Status(site="north", server="s", pid=pid, state=state))
    assert site_status(site)["state"] == expected


def test_a_process_that_writes_nothing_is_silent(
    site: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_status(site / "status.json", Status(site="north", server="s", state=State.CONNECTED))
    later = time.time() + 3600
    monkeypatch.setattr(time, "time", lambda: later)
    assert site_status(site)["state"] == "silent"


def orders(folder: Path) -> None:
    for number in (1, 2, 3):
        append_order(
            folder / "orders.jsonl",
            run="blue" if number < 3 else "green",
            round=number,
            kind="train",
            decision="refused" if number == 2 else "answered",
            code="HT404" if number == 2 else "",
            reason="too little noise" if number == 2 else "",
        )


def test_history_tells_every_order(hushtune: Any, site: Path) -> None:
    orders(site)
    answer = hushtune("site", "history", site, "--json")
    told = json.loads(answer.out.splitlines()[-1])
    assert [order["round"] for order in told["orders"]] == [1, 2, 3]
    assert (told["total"], told["refused"], told["damaged"]) == (3, 1, 0)
    assert "HT404 too little noise" in answer.err


def test_history_of_a_run_and_of_the_last(site: Path) -> None:
    orders(site)
    assert [o["round"] for o in site_history(site, run="bl")["orders"]] == [1, 2]
    assert [o["round"] for o in site_history(site, last=1)["orders"]] == [3]
    assert [o["round"] for o in site_history(site, run="blue", last=1)["orders"]] == [2]
    with pytest.raises(ConfigError) as raised:
        site_history(site, run="greem")
    assert raised.value.remedy == "--run green"


def test_a_line_that_a_crash_cut_short_is_counted(hushtune: Any, site: Path) -> None:
    orders(site)
    with (site / "orders.jsonl").open("a") as file:
        file.write('{"sequence": 4, "ru')
    answer = hushtune("site", "history", site)
    assert answer.status == 0
    assert "1 lines of orders.jsonl cannot be read" in answer.out
