"""What one party of a federation of processes may try against the others."""

from __future__ import annotations

import hashlib
import json
import math
import re
import tomllib
import warnings
from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import httpx
import pytest
import tomli_w
from flwr.cli.build import build_fab_from_disk
from flwr.common.serde import fab_to_proto, user_config_to_proto
from flwr.proto.control_pb2 import StartRunRequest
from flwr.supercore.fab import Fab
from safetensors.numpy import load_file

from hushtune.common.config_io import dump_toml, load_config
from hushtune.common.deployment import signed_run
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.signing import make_signing_key, sign
from hushtune.server.deployment.control import control
from hushtune.server.deployment.home import open_home

from .hostile_site import FAULTS, REQUEST
from .processes import Federation, Institution, wait_until
from .test_site_processes import bundle

SIZES = {"north": 200, "south": 160, "west": 120}
MESSAGE = 16
"""MiB that an answer may have."""

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def federation(tmp_path_factory: pytest.TempPathFactory, tiny_bert: Path) -> Iterator[Federation]:
    """Three sites, of which west answers as it likes, and a server that takes little at once."""
    with Federation(tmp_path_factory.mktemp("hostile"), SIZES, model=tiny_bert) as made:
        settings = made.folder / "server.toml"
        bounds = f"max_request_mib = {REQUEST // 2**20}\nmax_message_mib = {MESSAGE}\n"
        settings.write_text(settings.read_text(encoding="utf-8") + bounds, encoding="utf-8")
        made.start()
        made.enrol()
        for name, site in made.sites.items():
            site.join(hostile=name == "west")
        for site in made.sites.values():
            site.wait_for("connected")
        yield made


def peak_mib(pid: int) -> float:
    """The most memory that a process has had."""
    status = Path(f"/proc/{pid}/status").read_text(encoding="ascii")
    found = re.search(r"VmHWM:\s+(\d+) kB", status)
    assert found is not None
    return int(found.group(1)) / 1024


def test_each_fault_of_a_hostile_site_is_named_and_the_others_finish(
    federation: Federation,
) -> None:
    assert federation.server is not None
    before = peak_mib(federation.server.process.pid)
    faults = list(FAULTS)
    run = federation.run("hostile", "--answer-seconds", 25, train__rounds=len(faults))
    assert run.ended(seconds=500) == 0, run.said
    rows = federation.rows("hostile")
    seen = {fault: row["rejected"].get("west") for fault, row in zip(faults, rows, strict=True)}
    print(json.dumps(seen, indent=1))
    good = {"honest", "twice", "honest again"}
    assert {fault for fault in faults if seen[fault] is None} == good
    expected = {
        "nan": "nonfinite",
        "shape": "shape",
        "norm": "norm",
        "missing": "keys",
        "run": "run",
        "replayed": "round",
        "site": "site",
        "charge": "charge",
        "junk": "message",
        "no message": "message",
        "infinite shape": "message",
        "damaged body": "message",
        "unknown class": "message",
        "wrong root": "message",
        "forged sender": "message",
        "too large": "no answer",
        "in pieces": "no answer",
    }
    for fault, word in expected.items():
        assert re.search(rf"\b{word}\b", str(seen[fault])), (fault, seen[fault])
    assert all({"north", "south"} <= set(row["accepted"]) for row in rows)
    assert all(math.isfinite(row["update_norm"]) and row["update_norm"] < 1e3 for row in rows)
    tensors = load_file(federation.out("hostile") / "adapter" / "adapter_model.safetensors")
    assert all(abs(tensor).max() < 1e3 for tensor in tensors.values())
    # The pieces would be 40 MiB, and what is refused is never held.
    grown = peak_mib(federation.server.process.pid) - before
    print("the server's memory grew by MiB:", grown)
    assert grown < 150
    log = (federation.folder / "flower" / "server.jsonl").read_text(encoding="utf-8")
    told = [json.loads(line) for line in log.splitlines()]
    refused = {(row.get("reason"), row.get("site")) for row in told if row["event"] == "rejected"}
    assert ("too large", "west") in refused


@pytest.fixture(scope="module")
def honest(federation: Federation) -> Federation:
    """The same with all sites as they should be, and charged before; to be asked for after the
    hostile one."""
    west = federation.sites["west"]
    assert west.joined is not None
    west.joined.stop()
    west.join()
    west.wait_for("connected")
    if not charged(federation)["west"]:  # the test of a hostile site was not selected
        run = federation.run("first")
        assert run.ended(seconds=180) == 0, run.said
    return federation


@contextmanager
def policy(site: Institution, **terms: Any) -> Generator[None]:
    """A site's policy with other terms while the block runs."""
    path = site.folder / "policy.toml"
    before = path.read_text(encoding="utf-8")
    path.write_text(tomli_w.dumps({**tomllib.loads(before), **terms}), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(before, encoding="utf-8")


def charged(federation: Federation) -> dict[str, int]:
    """How many charges each site's ledger has."""
    return {
        name: len(Ledger(site.folder / "policy.sqlite").entries())
        for name, site in federation.sites.items()
    }


def newest(site: Institution, before: int) -> list[dict[str, Any]]:
    """Orders of training after the first ``before`` of the history."""
    return [order for order in site.orders()[before:] if order["kind"].startswith("train")]


# What the run asks for is the same; what each site grants of it is less, by one term.
DEMANDS: dict[str, dict[str, tuple[dict[str, Any], str, str]]] = {
    "spending": {
        "north": ({"max_epsilon": 0.01}, "HT401", "budget"),
        "south": ({"min_noise_multiplier": 50.0}, "HT404", "too little noise"),
        "west": ({"max_rounds": 1}, "HT401", "rounds"),
    },
    "model": {
        "north": ({"max_rank": 1}, "HT404", "rank"),
        "south": ({"base_models": ["0" * 64]}, "HT404", "base model"),
        "west": ({"rules": ["fedsa"]}, "HT404", "rule"),
    },
    "promise": {
        "north": ({"targets": ["nowhere"]}, "HT404", "modules"),
        "south": ({"max_delta": 1e-6}, "HT404", "delta"),
        "west": ({"trust": ["distributed"]}, "HT404", "trust"),
    },
}


@pytest.mark.parametrize("name", DEMANDS)
def test_a_server_that_asks_for_more_is_refused_and_nothing_is_charged(
    honest: Federation, name: str
) -> None:
    federation = honest
    before, orders = charged(federation), {k: len(s.orders()) for k, s in federation.sites.items()}
    with policies(federation, DEMANDS[name]):
        run = federation.run(f"more-{name}", "--answer-seconds", 30)
        assert run.ended(seconds=120) == 2, run.said
    assert "HT501" in run.said
    assert charged(federation) == before
    for key, (_, code, words) in DEMANDS[name].items():
        told = newest(federation.sites[key], orders[key])
        assert told, key
        for order in told:
            assert (order["decision"], order["code"]) == ("refused", code), (key, order)
            assert words in order["reason"], (key, order)
            assert order["spent"] is None


@contextmanager
def policies(
    federation: Federation, demands: dict[str, tuple[dict[str, Any], str, str]]
) -> Generator[None]:
    """Every site's policy with its one stricter term."""
    with ExitStack() as stack:
        for name, (terms, _, _) in demands.items():
            stack.enter_context(policy(federation.sites[name], **terms))
        yield


@pytest.mark.parametrize("signer", ["nobody", "somebody else"])
def test_a_run_that_the_coordinator_has_not_signed_is_refused_unread(
    honest: Federation, tmp_path: Path, signer: str
) -> None:
    """The coordinator's own user could start runs that are not the federation's."""
    federation = honest
    home = open_home(federation.folder)
    app, out = bundle(tmp_path / "app"), tmp_path / "out"
    toml = dump_toml(load_config(federation.config("unsigned")))
    values: dict[str, Any] = {"toml": toml, "out": str(out), "signature": ""}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        fab = build_fab_from_disk(app)
    if signer != "nobody":
        key = make_signing_key(tmp_path / "signing.key")
        values["signature"] = sign(key, signed_run(fab, toml))
    asked = StartRunRequest(
        fab=fab_to_proto(Fab(hashlib.sha256(fab).hexdigest(), fab, {})),
        override_config=user_config_to_proto(values),
    )
    before, orders = charged(federation), {k: len(s.orders()) for k, s in federation.sites.items()}
    bare = httpx.post(f"http://{home.local}/v1/control/start-run", content=b"", trust_env=False)
    assert bare.status_code == 401  # nobody else of this machine gets as far
    with control(home) as client:
        assert client.StartRun(asked).HasField("run_id")
    log = federation.folder / "flower" / "processes.log"
    wait_until(
        (out / "told.json").is_file,
        seconds=120,
        why=lambda: log.read_text(encoding="utf-8", errors="replace")[-3000:],
    )
    said = json.loads((out / "told.json").read_text(encoding="utf-8"))["said"]
    assert [reason.split()[0] for reason in said] == ["HT802"] * 3
    assert charged(federation) == before
    for key, site in federation.sites.items():
        told = site.orders()[orders[key] :]
        assert told
        assert {(o["decision"], o["code"], o["received"]) for o in told} == {
            ("refused", "HT802", 0)
        }
