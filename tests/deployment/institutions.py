"""Folders of made-up sites for tests: each with rows, site.toml, policy and keys of its own."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import tomli_w
from flwr.app import Context, Message, RecordDict
from flwr.supercore.task_identity import TaskIdentity

from hushtune.client.app import app
from hushtune.common.signing import make_signing_key, public_text

from ..conftest import made_up_rows, write_csv

SIZES = {"north": 200, "south": 160, "west": 120}
LABELS = ["bad", "good"]


def policy(**changes: Any) -> str:
    """A site's policy as TOML."""
    terms = {"max_epsilon": 20.0, "max_delta": 1e-3, "min_noise_multiplier": 0.3, **changes}
    return tomli_w.dumps(terms)


def site_folder(
    folder: Path,
    name: str,
    *,
    rows: int,
    sign_key: str,
    certificate: str = "ca.pem",
    address: str = "localhost:9092",
    model: Path | None = None,
    terms: Mapping[str, Any] | None = None,
) -> Path:
    """The folder of one site, with a table whose columns are called as nobody else's."""
    folder.mkdir(parents=True)
    seed = sorted([*SIZES, name]).index(name)
    table = [(text, label) for _, text, label in made_up_rows({name: rows}, seed=seed)]
    write_csv(folder / "rows.csv", table, header=("remark", "verdict"))
    (folder / "policy.toml").write_text(policy(**(terms or {})), encoding="utf-8")
    settings = {
        "name": name,
        **({} if model is None else {"model": str(model)}),
        "server": {
            "name": "test federation",
            "address": address,
            "certificate": certificate,
            "sign_key": sign_key,
        },
        "data": {"file": "rows.csv", "text": "remark", "label": "verdict"},
    }
    (folder / "site.toml").write_text(tomli_w.dumps(settings), encoding="utf-8")
    make_signing_key(folder / "keys" / "site.key")
    return folder


def coordinator_key(folder: Path) -> str:
    """A signing key in a folder; the public one."""
    return public_text(make_signing_key(folder / "signing.key"))


class OwnSites:
    """A grid of sites with folders of their own, called one after the other in this process."""

    def __init__(self, folders: Mapping[str, Path], *, run_config: Mapping[str, str]) -> None:
        self.nodes = {name: number for number, name in enumerate(sorted(folders), start=101)}
        self.asked: list[Message] = []
        self.contexts = {
            self.nodes[name]: Context(
                run_id=7,
                node_id=self.nodes[name],
                node_config={"site": str(folder / "site.toml")},
                state=RecordDict(),
                run_config=dict(run_config),
            )
            for name, folder in folders.items()
        }
        TaskIdentity.run_id, TaskIdentity.node_id, TaskIdentity.task_id = 7, 1, 1

    def get_node_ids(self) -> Iterable[int]:
        return list(self.contexts)

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        del timeout
        sent = list(messages)
        self.asked += sent
        for place, message in enumerate(sent):
            message.metadata.__dict__["_message_id"] = f"{len(self.asked)}-{place}"
        return [app(m, self.contexts[m.metadata.dst_node_id]) for m in sent]
