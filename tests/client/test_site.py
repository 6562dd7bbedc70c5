"""What a site draws its batches from, and where its ledger lies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from flwr.app import Context, RecordDict

from hushtune.client.site import Site, close_sites, open_site, simulated_ledger
from hushtune.common.errors import ConfigError
from hushtune.common.run_context import RunContext, run_config
from hushtune.common.tasks.workspace import resolve


def opened(settings: Any, out: Path, **changes: Any) -> Site:
    """The first site of a run in a folder, as its node opens it."""
    config = resolve(settings.config(**changes))
    context = Context(
        run_id=1,
        node_id=1,
        node_config={"partition-id": 0, "num-partitions": 3},
        state=RecordDict(),
        run_config=run_config(config, out),
    )
    try:
        return open_site(context)
    finally:
        close_sites()


def draws(site: Site) -> bytes:
    return np.concatenate([site.batch_randomness("run", r, r).random(4) for r in (0, 1)]).tobytes()


def test_batches_follow_from_the_site_s_secret_and_not_from_the_run(
    settings: Any, tmp_path: Path
) -> None:
    """Who knows the configuration, seed included, and the order cannot draw a private batch."""
    private = {"privacy__trust": "site", "seed": 0}
    here = draws(opened(settings, tmp_path / "here", **private))
    assert draws(opened(settings, tmp_path / "there", **private)) != here
    assert draws(opened(settings, tmp_path / "here", **private)) == here  # as a resumed run needs


@pytest.mark.parametrize(
    "open_draws", [{}, {"privacy__trust": "site", "privacy__insecure_seeded_noise": True}]
)
def test_batches_that_protect_nothing_follow_from_the_seed(
    settings: Any, tmp_path: Path, open_draws: dict[str, Any]
) -> None:
    here = draws(opened(settings, tmp_path / "here", **open_draws))
    assert draws(opened(settings, tmp_path / "there", **open_draws)) == here
    assert draws(opened(settings, tmp_path / "here", **open_draws, seed=8)) != here


def test_where_a_ledger_lies(settings: Any, tmp_path: Path) -> None:
    """In the run's folder, but beside a policy, whose budget outlasts the run."""

    def place(**simulation: str) -> Path:
        settings_of = {f"simulation__{key}": value for key, value in simulation.items()}
        return simulated_ledger(RunContext(settings.config(**settings_of), tmp_path), "north")

    assert place() == tmp_path / "ledger" / "north.sqlite"
    assert place(policies="/p") == Path("/p/north.sqlite")
    assert place(ledgers="/l") == Path("/l/north.sqlite")
    with pytest.raises(ConfigError, match="beside it, and nowhere else"):
        place(policies="/p", ledgers="/l")
