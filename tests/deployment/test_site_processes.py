"""A SuperLink, a node and an executor as processes of their own on loopback."""

from __future__ import annotations

import json
import sys
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import tomli_w
from flwr.cli.build import build_fab_from_disk

from hushtune.client.deployment.history_file import read_history
from hushtune.common.config import RunConfig
from hushtune.common.config_io import dump_toml
from hushtune.common.deployment import signed_run
from hushtune.common.ports import free_port
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.signing import load_signing_key, sign

from ..conformance.flower_commands import (
    ROOT,
    flwr,
    started,
    superlink,
    wait_for_run,
)
from .institutions import LABELS, coordinator_key, site_folder

SIZES = {"north": 200, "south": 160}
EXCHANGES = 5

APP = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "tiny"
version = "1.0.0"
license = "Apache-2.0"
dependencies = []
[tool.flwr.app]
publisher = "test"
[tool.flwr.app.components]
serverapp = "tiny_server:app"
clientapp = "tiny_client:app"
[tool.flwr.app.config]
toml = ""
out = ""
signature = ""
"""

SERVER = """
import json, time, traceback
from pathlib import Path
from flwr.app import Message
from flwr.serverapp import ServerApp
from hushtune.common import lora
from hushtune.common.roll_call_messages import encode_hello
from hushtune.common.run_context import read_run_config
from hushtune.server.app import federate
from hushtune.server.deployment.federate import loaded_model
from hushtune.server.deployment.grid import PollingGrid

app = ServerApp()


@app.main()
def main(grid, context):
    try:
        federated(grid, context)
    except Exception:
        Path(context.run_config["out"] + ".failed").write_text(traceback.format_exc())
        raise


def federated(grid, context):
    run, grid = read_run_config(context.run_config), PollingGrid(grid)
    while len(list(grid.get_node_ids())) < 2:
        time.sleep(0.2)
    took, said = [], []
    for _ in range(EXCHANGES):
        began = time.monotonic()
        ask = [
            Message(content=encode_hello(), dst_node_id=node, message_type="query")
            for node in grid.get_node_ids()
        ]
        replies = list(grid.send_and_receive(ask, timeout=60))
        took.append(time.monotonic() - began)
        said = [one.error.reason if one.has_error() else "" for one in replies]
    rows = []
    if not any(said):
        config = run.config
        model = loaded_model(config)
        result = federate(
            run, grid, initial=lora.initial_state(model, seed=0), timeout=100.0
        )
        rows = [list(row["accepted"]) for row in result.history]
    run.out.mkdir(parents=True, exist_ok=True)
    (run.out / "told.json").write_text(json.dumps({"took": took, "said": said, "rows": rows}))
""".replace("EXCHANGES", str(EXCHANGES))

CLIENT = "from hushtune.client.app import app as _app\n\napp = _app\n"


def bundle(folder: Path, *, client: str = CLIENT) -> Path:
    """A Flower app of that client module and the server above."""
    folder.mkdir()
    for name, text in (("pyproject.toml", APP), ("tiny_server.py", SERVER)):
        (folder / name).write_text(text, encoding="utf-8")
    (folder / "tiny_client.py").write_text(client, encoding="utf-8")
    return folder


@dataclass(frozen=True)
class Running:
    """Processes that run, and what a run of theirs needs."""

    home: Path
    key: Path
    sites: dict[str, Path]

    def run(self, app: Path, config: RunConfig, out: Path, *, signed: Path) -> dict[str, Any]:
        """Run ``app`` with a signature over ``signed``; what its server told."""
        toml = dump_toml(config)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", DeprecationWarning)  # what Flower asks of pathspec
            document = signed_run(build_fab_from_disk(signed), toml)
        settings = out.with_suffix(".toml")
        values = {"toml": toml, "out": str(out)}
        values["signature"] = sign(load_signing_key(self.key), document)
        settings.write_text(tomli_w.dumps(values), encoding="utf-8")
        begun = flwr(app, self.home, "run", ".", "--run-config", str(settings))
        assert "run-id" in begun, begun
        wait_for_run(app, self.home, str(begun["run-id"]), out / "told.json")
        return json.loads((out / "told.json").read_text(encoding="utf-8"))


@contextmanager
def running(folder: Path) -> Iterator[Running]:
    """A SuperLink and two sites, each with a node and an executor."""
    public = coordinator_key(folder / "coordinator")
    sites: dict[str, Path] = {}
    with ExitStack() as stack:
        port = stack.enter_context(superlink(folder / "superlink"))
        for name, rows in SIZES.items():
            site = sites[name] = site_folder(folder / name, name, rows=rows, sign_key=public)
            runtime, secret = free_port(), site / "secret"
            secret.write_bytes(b"a secret")
            secret.chmod(0o600)
            modules = {
                "node": (
                    *("--insecure", "--superlink", f"127.0.0.1:{port}"),
                    *("--host", "127.0.0.1", "--port", str(runtime), "--isolation", "process"),
                    *("--superexec-auth-secret-file", str(secret)),
                ),
                "executor": (
                    *(str(site), "--runtime", f"127.0.0.1:{runtime}", "--secret", str(secret)),
                    *("--patience", "60"),
                ),
            }
            for module, arguments in modules.items():
                home = site / module
                home.mkdir()
                command = (sys.executable, "-m", f"hushtune.client.deployment.{module}")
                stack.enter_context(started(*command, *arguments, home=home, cwd=ROOT))
        yield Running(folder / "superlink", folder / "coordinator" / "signing.key", sites)


def events(site: Path, module: str) -> list[dict[str, Any]]:
    """What a process has told, line by line."""
    lines = (site / module / "output.txt").read_text(encoding="utf-8").splitlines()
    return [json.loads(line) for line in lines if line.startswith("{")]


@pytest.mark.slow
def test_one_executor_answers_a_run_and_never_runs_a_bundle(settings: Any, tmp_path: Path) -> None:
    """Flower starts a process for each message, which imports what came with the run."""
    config = settings.config(
        data={"source": "sites", "labels": LABELS, "public_sizes": SIZES},
        privacy={"trust": "site", "epsilon": 8.0, "delta": 1e-3},
        train__rounds=2,
        train__warmup_rounds=0,
    )
    canary = tmp_path / "canary"
    honest = bundle(tmp_path / "honest")
    altered = bundle(
        tmp_path / "altered", client=f"open({str(canary)!r}, 'w').write('ran')\n{CLIENT}"
    )
    with running(tmp_path) as processes:
        told = processes.run(honest, config, tmp_path / "one", signed=honest)
        assert told["rows"] == [sorted(SIZES)] * 2
        print("an exchange took", told["took"])
        assert min(told["took"]) < 2.0
        refused = processes.run(altered, config, tmp_path / "two", signed=honest)
        assert not canary.exists()
        assert [reason.split()[0] for reason in refused["said"]] == ["HT802", "HT802"]
        # With a signature as it must be it names an entry point, and still none of it runs.
        told = processes.run(altered, config, tmp_path / "three", signed=altered)
        assert told["rows"] == [sorted(SIZES)] * 2
        assert not canary.exists()
        for site in processes.sites.values():
            orders = read_history(site / "orders.jsonl").orders
            kinds = [(one.kind, one.decision, one.code) for one in orders]
            assert kinds.count(("train", "answered", "")) == 4
            assert kinds.count(("query", "refused", "HT802")) == EXCHANGES
            spent = [one.spent for one in orders if one.kind == "train"]
            assert [one.charge for one in spent if one is not None] == [1, 2, 3, 4]
            assert len(Ledger(site / "policy.sqlite").entries()) == 4
            told_events = [one.get("event") for one in events(site, "executor")]
            assert told_events.count("ready") == 1
            assert told_events.count("decided") == len(orders)
