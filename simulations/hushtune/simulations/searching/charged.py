"""A whole search in its sites' ledgers: one charge each, before the first of its runs.

It is the choice that is charged (``selection.ChoiceEvent``), whatever the number of runs turns out
to be: nothing in a ledger tells of that. It counts towards whoever gets the run that is chosen and
nothing else. What every run released to its server is in the run's own ledgers, in its folder.
"""

from __future__ import annotations

from pathlib import Path

from hushtune.client.budget import policy_of
from hushtune.client.site import simulated_ledger
from hushtune.common.config import RunConfig
from hushtune.common.errors import ConfigError, LedgerError
from hushtune.common.planning import charged_unit
from hushtune.common.privacy.ledger import Ledger, Limit
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.privacy.plan import Relation
from hushtune.common.privacy.selection import ChoiceEvent
from hushtune.common.run_context import RunContext
from hushtune.common.tasks.workspace import dataset_ids
from hushtune.simulations.searching.cost import Cost

_ONCE = 1
"""The number of the only charge under a search's name."""


def ledgers_of(config: RunConfig, folder: Path) -> dict[str, Path]:
    """Where each site's ledger of a search, or of one of its runs, is: in its folder, or in
    ``simulation.ledgers``."""
    context = RunContext(config, folder)
    return {site: simulated_ledger(context, site) for site in sorted(config.data.public_sizes)}


def check_unspent(config: RunConfig, cost: Cost) -> None:
    """Refuse, charging nothing, a search that lasting ledgers have no room for.

    As a run's share of a budget is its own epsilon, a search's is its cost: where the same rows
    were charged before, BudgetExceededError. ConfigError for a ledger with a policy beside it.
    """
    if config.simulation.ledgers is None:
        return  # those of the search's own folder are new
    for site, path in ledgers_of(config, Path()).items():
        if policy_of(path) is not None:
            raise ConfigError(
                "a site with a policy of its own charges every run that it takes part in",
                given=f"a policy beside {path}",
                expected="ledgers without one",
                remedy="choose on public data (--choice public)",
            )
        if path.exists():
            ledger = Ledger(path)
            ledger.check(
                _event(cost, site),
                dataset=ledger.name_of(dataset_ids(config)[site]),
                run="",
                limit=_limit(cost, site),
                unit=charged_unit(config),
            )


def charge(config: RunConfig, folder: Path, cost: Cost, *, search: str) -> None:
    """Charge a search to every site; durable when this returns, and once however often it runs.

    ``search``: its name in the ledgers, which no other has.
    """
    for site, path in ledgers_of(config, folder).items():
        ledger = Ledger(path)
        ledger.charge(
            _event(cost, site),
            dataset=ledger.name_of(dataset_ids(config)[site]),
            run=search,
            round=_ONCE,
            limit=_limit(cost, site),
            unit=charged_unit(config),
        )


def charged(config: RunConfig, folder: Path, cost: Cost, *, search: str) -> dict[str, str]:
    """By site, the hash of the search's charge. LedgerError where one is missing: without it
    nothing of the search may be released."""
    found: dict[str, str] = {}
    for site, path in ledgers_of(config, folder).items():
        mine = [entry for entry in read_ledger(path).entries if entry.run == search]
        if [entry.event for entry in mine] != [_event(cost, site)]:
            raise LedgerError(
                f"the ledger of site {site} does not hold the charge of this search",
                given=str(path),
                expected=f"a charge under the name {search}",
                remedy="release nothing of this search",
            )
        found[site] = mine[0].hash
    return found


def _event(cost: Cost, site: str) -> ChoiceEvent:
    return ChoiceEvent(count=cost.count, kinds=cost.kinds[site])


def _limit(cost: Cost, site: str) -> Limit:
    told = cost.sites[site]
    return Limit(epsilon=told.epsilon, delta=told.delta, relation=Relation.ADD_OR_REMOVE_ONE)
