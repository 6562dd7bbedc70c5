"""The model that a site ends up with: the global one, with what the site keeps for itself."""

from __future__ import annotations

from collections.abc import Sequence

from hushtune.client.memory import Purpose, SiteMemory
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.lora_rules import RULES
from hushtune.common.messages import PERSONAL_RUN
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import Trust


def has_own_part(config: RunConfig) -> bool:
    """Whether sites keep a part of a run's model, or a whole one, for themselves."""
    return config.personal.method != "none" or bool(RULES[config.aggregation.rule].kept)


def of_sites(config: RunConfig) -> bool:
    """Whether what a site keeps is paid for, round by round."""
    return config.privacy.trust == Trust.SITE


def own_adapter(
    given: AdapterState,
    memory: SiteMemory,
    config: RunConfig,
    entries: Sequence[LedgerEntry],
    *,
    run: str,
) -> AdapterState:
    """The global adapter at the site's rank, ``given``, with what the site keeps in its place.

    ``entries``: of the site's ledger: of rounds that were not paid for nothing is taken. ``run``:
    the run's name in messages.
    """
    if not has_own_part(config):
        return given
    personal = config.personal.method != "none"
    name = f"{run}{PERSONAL_RUN}" if personal else run
    paid = frozenset(entry.round for entry in entries if entry.run == name)
    kept = memory.newest(
        Purpose.ADAPTER if personal else Purpose.FACTORS,
        run=run,
        paid=paid if of_sites(config) else None,
    )
    return given if kept is None else given.merge(kept)
