"""Lines, clocks, certificates, keys and disks that fail while a federation of processes works."""

from __future__ import annotations

import http.server
import os
import shutil
import subprocess
import threading
from collections import Counter
from collections.abc import Iterator
from contextlib import ExitStack, suppress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import cast

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    NoEncryption,
    PrivateFormat,
    load_pem_private_key,
)
from cryptography.x509.oid import NameOID

from hushtune.common.privacy.ledger import Ledger
from hushtune.server.deployment.home import Home, open_home

from .coordinator import Authority, Behaviour, serving
from .processes import Federation, Institution, hushtune, wait_until
from .proxy import BadLine

SIZES = {"north": 200, "south": 160, "west": 120}
FAKETIME = sorted(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"))

pytestmark = [pytest.mark.slow, pytest.mark.nightly]


@pytest.fixture(scope="module")
def line() -> Iterator[list[BadLine]]:
    made: list[BadLine] = []
    yield made
    for each in made:
        each.close()


@pytest.fixture(scope="module")
def federation(
    tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path, line: list[BadLine]
) -> Iterator[Federation]:
    """Three sites that have joined; north's line to the server is a bad one."""
    with Federation(tmp_path_factory.mktemp("lines"), SIZES, model=tiny_bert) as made:
        line.append(BadLine(made.port))
        made.reroute("north", line[0].port)
        made.begin()
        yield made


def charges(site: Institution, run: str) -> Counter[int]:
    """How often a site was charged for each round of a run."""
    entries = Ledger(site.folder / "policy.sqlite").entries()
    return Counter(entry.round for entry in entries if entry.run == run)


def took_part(federation: Federation, run: str, site: str) -> list[bool]:
    """Whether a site's update counted, round by round."""
    return [site in row["accepted"] for row in federation.rows(run)]


def test_a_site_that_is_cut_off_is_left_behind_and_taken_in_again(
    federation: Federation, line: list[BadLine]
) -> None:
    run = federation.run("cut", "--answer-seconds", 10, "--connect-seconds", 3, train__rounds=24)
    federation.wait_for_round("cut", 2)
    line[0].cut = True
    try:
        wait_until(lambda: took_part(federation, "cut", "north").count(False) >= 2, seconds=120)
    finally:
        line[0].heal()
    assert run.ended(seconds=400) == 0, run.said
    there = took_part(federation, "cut", "north")
    print("north took part:", there)
    first = there.index(False)
    assert any(there[first:]), "it was never taken in again"
    assert all({"south", "west"} <= set(row["accepted"]) for row in federation.rows("cut"))
    counted = charges(federation.sites["north"], str(federation.state("cut")["run"]))
    assert set(counted.values()) <= {1}


def test_a_slow_line_is_slow_and_nothing_else(federation: Federation, line: list[BadLine]) -> None:
    """Half a second in each direction, and 1 Mbit/s."""
    line[0].delay, line[0].rate = 0.5, 1e6 / 8
    try:
        run = federation.run("slow", "--answer-seconds", 120)
        assert run.ended(seconds=400) == 0, run.said
    finally:
        line[0].heal()
    assert took_part(federation, "slow", "north") == [True] * 3
    print("seconds:", [row["seconds"]["training"] for row in federation.rows("slow")])


def test_a_site_comes_late_leaves_and_comes_back_as_it_was(federation: Federation) -> None:
    west = federation.sites["west"]
    assert west.joined is not None
    west.joined.stop()
    before = len(Ledger(west.folder / "policy.sqlite").entries())
    run = federation.run("late", "--answer-seconds", 60, "--connect-seconds", 4, train__rounds=40)
    federation.wait_for_round("late", 1)
    assert took_part(federation, "late", "west")[0] is False
    west.join()
    wait_until(lambda: any(took_part(federation, "late", "west")), seconds=120)
    west.joined.stop()
    here = len(federation.rows("late"))
    wait_until(lambda: False in took_part(federation, "late", "west")[here:], seconds=120)
    west.join()
    gone = len(federation.rows("late"))
    wait_until(lambda: True in took_part(federation, "late", "west")[gone:], seconds=120)
    assert run.ended(seconds=400) == 0, run.said
    counted = charges(west, str(federation.state("late")["run"]))
    assert set(counted.values()) == {1}
    assert len(Ledger(west.folder / "policy.sqlite").entries()) == before + len(counted)
    hushtune("verify", federation.out("late"))


def test_keys_let_in_one_site_each_and_are_taken_back(federation: Federation) -> None:
    west = federation.sites["west"]
    stranger = Institution(federation.root / "stranger", federation.stack)
    hushtune(
        *("site", "init", stranger.folder, "--name", "stranger"),
        *("--server", federation.folder / "federation.toml"),
        *("--data", federation.root / "west.csv", "--text", "remark", "--label", "verdict"),
        *("--max-epsilon", 1, "--max-delta", 1e-3),
    )
    stranger.join()
    told = stranger.wait_for("not enrolled")
    assert told["last_error"]["code"] == "HT804"
    assert stranger.joined is not None
    stranger.joined.stop()
    assert "enrolled already, with these keys" in hushtune(
        "server", "enrol", federation.folder, west.card
    )
    stolen = federation.root / "stolen.pub"
    stolen.write_text(
        west.card.read_text(encoding="utf-8").replace("west", "other"), encoding="utf-8"
    )
    assert "HT804" in hushtune("server", "enrol", federation.folder, stolen, status=2)
    copy = Institution(federation.root / "copy", federation.stack)
    shutil.copytree(west.folder, copy.folder, ignore=shutil.ignore_patterns("join.lock", "flower"))
    copy.join()
    assert copy.wait_for("held", "not enrolled")["last_error"]["code"] == "HT804"
    run = federation.run("copied", "--answer-seconds", 60)
    assert run.ended(seconds=240) == 0, run.said
    assert took_part(federation, "copied", "west") == [True] * 3
    assert copy.joined is not None
    copy.joined.stop()
    hushtune("server", "revoke", federation.folder, "west", apart=True)
    west.wait_for("not enrolled", seconds=180)
    hushtune("server", "enrol", federation.folder, west.card)
    west.wait_for("connected", seconds=180)


TOLD = {
    "host": "mismatch",
    "expired": "expired",
    "authority": "unable to get local issuer",
    "plaintext": "TLS",
}


def presented(home: Home, fault: str, folder: Path) -> Path:
    """A certificate with a fault, and its key, in one file."""
    folder.mkdir()
    if fault == "authority":
        return Authority().server(folder)
    now = datetime.now(UTC) - timedelta(days=800 if fault == "expired" else 0)
    host = "elsewhere.org" if fault == "host" else "localhost"
    key = load_pem_private_key(home.authority_key.read_bytes(), None)
    signer = x509.load_pem_x509_certificate(home.certificates.authority.read_bytes())
    own = ec.generate_private_key(ec.SECP256R1())
    made = (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, host)]))
        .issuer_name(signer.subject)
        .public_key(own.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now)
        .not_valid_after(now + timedelta(days=365))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName(host)]), critical=False)
        .sign(cast(ec.EllipticCurvePrivateKey, key), hashes.SHA384())
    )
    path = folder / "both.pem"
    path.write_bytes(
        made.public_bytes(Encoding.PEM)
        + own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
    )
    return path


class _Plain(http.server.BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    do_POST = do_GET

    def log_message(self, format: str, *args: object) -> None:
        pass


@pytest.mark.parametrize("fault", list(TOLD))
def test_what_is_wrong_with_the_server_s_end_is_told_until_it_is_mended(
    federation: Federation, line: list[BadLine], fault: str
) -> None:
    north, home = federation.sites["north"], open_home(federation.folder)
    assert north.joined is not None
    north.joined.stop()
    with ExitStack() as stack:
        if fault == "plaintext":
            plain = http.server.ThreadingHTTPServer(("127.0.0.1", 0), _Plain)
            stack.callback(plain.server_close)
            threading.Thread(target=plain.serve_forever, daemon=True).start()
            stack.callback(plain.shutdown)
            line[0].to = plain.server_address[1]
        else:
            shown = presented(home, fault, federation.root / fault)
            line[0].to = stack.enter_context(serving(shown, Behaviour()))
        line[0].reset()
        try:
            north.join()
            told = north.wait_for("certificate", seconds=120)
            print(fault, told["last_error"])
            assert told["last_error"]["code"] == "HT803"
            assert TOLD[fault] in str(told["last_error"])
        finally:
            line[0].to = federation.port
            line[0].reset()
    north.wait_for("connected", seconds=180)


@pytest.mark.skipif(not FAKETIME, reason="libfaketime is not installed")
@pytest.mark.parametrize("minutes", [-10, 10])
def test_a_wrong_clock_is_told_with_its_difference(federation: Federation, minutes: int) -> None:
    south = federation.sites["south"]
    assert south.joined is not None
    south.joined.stop()
    also = {"LD_PRELOAD": str(FAKETIME[0]), "FAKETIME": f"{minutes:+d}m"}
    south.join(also={**also, "FAKETIME_DONT_FAKE_MONOTONIC": "1"})
    try:
        told = south.wait_for("clock", seconds=120)
        print(told["last_error"])
        given = str(told["last_error"]["given"])
        assert abs(float(given.split(maxsplit=1)[0]) - abs(minutes) * 60) < 10
        assert ("behind" if minutes < 0 else "ahead") in given
    finally:
        south.joined.stop()
    south.join()
    south.wait_for("connected", seconds=180)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of two megabytes."""
    place = tmp_path / "small"
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=2m", "tmpfs", str(place)]
    if os.geteuid() or subprocess.run(mount, check=False, capture_output=True).returncode:
        pytest.skip("a file system cannot be mounted here")
    yield place
    subprocess.run(["umount", "-l", str(place)], check=True)


def test_a_site_whose_disk_is_full_releases_nothing_and_loses_no_charge(
    federation: Federation, small_disk: Path
) -> None:
    west = federation.sites["west"]
    for path in west.folder.glob("policy.*"):
        shutil.copy(path, small_disk)
    settings = (west.folder / "site.toml").read_text(encoding="utf-8")
    moved = settings.replace('policy = "policy.toml"', f'policy = "{small_disk}/policy.toml"')
    assert moved != settings
    (west.folder / "site.toml").write_text(moved, encoding="utf-8")
    ledger, full = small_disk / "policy.sqlite", small_disk / "filler"
    before = len(Ledger(ledger).entries())
    try:
        run = federation.run("full", "--answer-seconds", 60, train__rounds=20)
        federation.wait_for_round("full", 2)
        with suppress(OSError), full.open("wb", buffering=0) as file:
            while True:
                file.write(b"x" * 4096)
        wait_until(lambda: False in took_part(federation, "full", "west"), seconds=120)
        full.unlink()
        mended = len(federation.rows("full"))
        assert run.ended(seconds=400) == 0, run.said
        there = took_part(federation, "full", "west")
        print("west took part:", there, [row["rejected"] for row in federation.rows("full")])
        assert True in there[mended:]
        assert all({"north", "south"} <= set(r["accepted"]) for r in federation.rows("full"))
        entries = Ledger(ledger).entries()[before:]
        counted = Counter(entry.round for entry in entries)
        assert set(counted.values()) == {1}
        assert {number for number, here in enumerate(there, start=1) if here} <= set(counted)
    finally:
        for path in small_disk.glob("policy.*"):
            shutil.copy(path, west.folder)
        (west.folder / "site.toml").write_text(settings, encoding="utf-8")
