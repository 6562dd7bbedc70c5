"""Secure sums between processes that share nothing but a network: a SuperLink and SuperNodes."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from hushtune.client.site import ledger_path
from hushtune.common.ports import free_port
from hushtune.common.privacy.ledger import Ledger
from hushtune.server import checkpoint as storage
from hushtune.server.app import checkpoint_folder

from .flower_commands import (
    BIN,
    copied_checkout,
    end,
    flwr,
    started,
    superlink,
    wait_for_run,
    wait_until,
)

SITES = ("site-0", "site-1", "site-2", "site-3")
LOST, LAST = SITES[1], "adapter_model.safetensors"


@pytest.mark.slow
@pytest.mark.nightly
def test_secure_sums_between_processes_survive_a_site_that_is_ended(
    settings: Any, tmp_path: Path
) -> None:
    """Four SuperNodes, each begun in an empty folder. One is ended when it has handed out its
    shares: those that stay have to open what they masked with it."""
    toml = settings.file(
        tmp_path,
        data__site=None,
        data__partition="iid",
        data__sites=len(SITES),
        privacy__trust="distributed",
        privacy__min_survivors=3,
        privacy__colluding_sites=0,
        train__rounds=1,
        train__warmup_rounds=0,
        train__local_steps=1,
    )
    out, home = tmp_path / "out", tmp_path / "superlink"
    checkout = copied_checkout(tmp_path / "hushtune-app")

    def has_shared() -> bool:
        said = (tmp_path / f"home of {LOST}" / "output.txt").read_text(encoding="utf-8")
        _, sending, after = said.partition("Sending: train.shares")
        return bool(sending) and "Sent successfully" in after

    with ExitStack() as stack:
        port = stack.enter_context(superlink(home))
        nodes = {}
        for place, site in enumerate(SITES):
            own, empty = tmp_path / f"home of {site}", tmp_path / f"folder of {site}"
            own.mkdir()
            empty.mkdir()
            nodes[site] = stack.enter_context(
                started(
                    *(BIN / "flower-supernode", "--insecure"),
                    *("--superlink", f"127.0.0.1:{port}"),
                    *("--host", "127.0.0.1", "--port", str(free_port())),
                    *("--node-config", f"partition-id={place} num-partitions={len(SITES)}"),
                    home=own,
                    cwd=empty,
                )
            )
        run = flwr(checkout, home, "run", ".", "--run-config", f'config="{toml}" out="{out}"')
        wait_until(has_shared, seconds=400)
        end(nodes[LOST])
        wait_for_run(checkout, home, str(run["run-id"]), out / "adapter" / LAST)
    (row,) = storage.load(checkpoint_folder(out)).history
    stayed = [site for site in SITES if site != LOST]
    assert (row["accepted"], list(row["rejected"]), row["exchanges"]) == (stayed, [LOST], 6)
    assert row["update_norm"] > 0
    charged = {site: len(Ledger(ledger_path(out, site)).entries()) for site in SITES}
    assert charged == {site: int(site != LOST) for site in SITES}
