"""What leaves a charged search: the run that was chosen, and a statement of the whole cost.

The statement that the run wrote for itself knows nothing of the others: it is left behind, and so
is what the adapter's card says of privacy. Neither the number of runs nor any other run is named.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG
from hushtune.common.files import read_text, write_errors, write_text
from hushtune.common.json_text import json_text
from hushtune.common.privacy.figures import at_most, upwards
from hushtune.common.privacy.selection import SELECTION_ACCOUNTANT
from hushtune.common.privacy.statement_markdown import plain
from hushtune.common.privacy.statement_sentence import unit_word
from hushtune.common.privacy.statement_software import libraries
from hushtune.common.privacy.statement_verify import commands
from hushtune.common.version import source_commit
from hushtune.simulations.searching.cost import Cost
from hushtune.simulations.searching.space import Parameter

_PRIVACY = re.compile(r"^## Privacy\n.*\Z", re.DOTALL | re.MULTILINE)

COVERED = (
    "the model that was chosen, its settings, and that it was chosen: towards whoever gets these "
    "and nothing else of the search",
)
NOT_COVERED = (
    "what the server and the other sites see of the search: they take part in every run, so "
    "towards them all runs add up, by the sites' ledgers",
    "how many runs there were, the other runs, and how long the search took: the figures here "
    "hold where nobody learns them",
    "the validation records by which runs were compared, of which nothing is promised, and the "
    "test records",
    "another search, or the same one begun again: the costs of both add up",
    "the range of settings, if it was written by looking at these records",
)


def selection_statement(
    config: RunConfig, cost: Cost, space: Sequence[Parameter], charges: Mapping[str, str]
) -> dict[str, Any]:
    """The statement as data; it says nothing that the number of runs could be read from.

    ``charges``: by site, the hash of the search's charge in the site's ledger.
    """
    unit = unit_word(config.privacy.unit)
    sites = {
        name: {
            "epsilon": site.epsilon,
            "delta": site.delta,
            "epsilon_of_one_run": site.epsilon_of_one,
            "ledger_head": charges[name],
            "sentence": (
                f"For neighbouring datasets that differ by adding or removing one training {unit} "
                f"at site {name}, the model that was chosen and its settings are "
                f"({upwards(site.epsilon)}, {at_most(site.delta)})-DP towards whoever gets these "
                "and nothing else of the search, the number of each site's records being public."
            ),
        }
        for name, site in cost.sites.items()
    }
    return {
        "what": "a private choice among runs",
        "unit": config.privacy.unit,
        "group": config.data.group,
        "relation": config.privacy.relation,
        "count": {"law": cost.count.law.value, "mean": cost.count.mean},
        "searched": [parameter.key for parameter in space],
        "accountant": SELECTION_ACCOUNTANT,
        "sites": sites,
        "covered": list(COVERED),
        "not_covered": list(NOT_COVERED),
        "source_commit": source_commit(),
        "libraries": libraries(),
    }


def as_markdown(told: Mapping[str, Any]) -> str:
    """The statement to read."""
    rows = "\n".join(
        f"| {plain(name)} | {upwards(site['epsilon'])} | {at_most(site['delta'])} | "
        f"{upwards(site['epsilon_of_one_run'])} |"
        for name, site in told["sites"].items()
    )
    said = "\n".join(f"> {plain(site['sentence'])}\n" for site in told["sites"].values())
    lists = {
        name: "\n".join(f"- {line}" for line in told[name]) for name in ("covered", "not_covered")
    }
    checks = "\n".join(f"- `{line}`" for line in commands(told))
    count = told["count"]
    return f"""# Privacy statement of a choice among runs

{said}
| site | epsilon of the choice | delta | epsilon of one run alone |
|---|---|---|---|
{rows}

The number of runs was drawn from a {count["law"]} law with mean {count["mean"]:g}, and each run's \
settings ({", ".join(f"`{key}`" for key in told["searched"])}) from fixed ranges, all of it at \
random and by no data. The best by validation rows was released, and no other.

## Covered

{lists["covered"]}

## Not covered

{lists["not_covered"]}

## In the ledgers

Each site's ledger was charged once for the whole search, before its first run. With DIR the \
folder that holds the ledgers, these tell whether the charge is there:

{checks}

## How it was worked out

{told["accountant"]}. Source commit: {told["source_commit"] or "a release"}.
"""


def release(
    config: RunConfig,
    run: Path,
    to: Path,
    cost: Cost,
    space: Sequence[Parameter],
    charges: Mapping[str, str],
) -> None:
    """Copy adapter and settings of the chosen run, with the statement of the whole cost."""
    told = selection_statement(config, cost, space, charges)
    with write_errors(to):
        shutil.rmtree(to, ignore_errors=True)
        shutil.copytree(run / "adapter", to / "adapter", copy_function=shutil.copyfile)
        shutil.copyfile(run / CONFIG, to / CONFIG)
    write_text(to / "privacy.json", json_text(told, indent=2) + "\n")
    write_text(to / "privacy.md", as_markdown(told))
    card = to / "adapter" / "README.md"
    text = read_text(card, remedy="begin the search anew")
    write_text(card, with_whole_cost(text, told))


def with_whole_cost(card: str, told: Mapping[str, Any]) -> str:
    """A model card whose section on privacy speaks of the choice, and not of one run."""
    rows = "\n".join(
        f"| {plain(name)} | {upwards(site['epsilon'], places=2)} | {at_most(site['delta'])} |"
        for name, site in told["sites"].items()
    )
    section = f"""## Privacy

This model is the best of a random number of private runs. The figures are those of the whole \
choice; they hold towards whoever gets this model and nothing else of the search. The statement is \
`privacy.md` in the folder above.

| site | epsilon | delta |
|---|---|---|
{rows}
"""
    changed, found = _PRIVACY.subn(lambda _: section, card, count=1)
    return changed if found else f"{card.rstrip()}\n\n{section}"
