"""From a run under trust = server, finished or not, to its privacy statement."""

from __future__ import annotations

from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.planning import site_plans
from hushtune.common.privacy.noise import INSECURE, NoiseSource
from hushtune.common.privacy.statement_server import ServerStatement, server_statement
from hushtune.server.central import SERVER
from hushtune.server.strategy import FederationResult


def server_privacy(config: RunConfig, result: FederationResult) -> dict[str, Any]:
    """The statement of what the server released, by its own ledger and the rounds' history."""
    privacy = config.privacy
    words = sorted({row["noise"][SERVER] for row in result.history})
    if privacy.insecure_seeded_noise:
        words.insert(0, f"{INSECURE}: reproducible from the run's seed; gives no privacy")
    insecure = [told for told in words if told.startswith(INSECURE)]
    return server_statement(
        result.run,
        ServerStatement(
            plan=next(iter(site_plans(config).values())),
            ledger=result.ledger,
            sites=config.data.public_sizes,
            rounds_planned=config.train.rounds,
            clip_norms=[row["clip_norm"] for row in result.history],
            quantile=privacy.clipping_quantile if privacy.adaptive_clipping else None,
            turns=privacy.client_turns,
            noise_secure=not insecure,
            noise_source=next(iter([*insecure, *words, NoiseSource().description])),
        ),
    )
