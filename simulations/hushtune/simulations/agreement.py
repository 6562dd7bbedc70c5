"""What the sites' own policies and ledgers would say to a run, asked without changing anything."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.console import Console

from hushtune.client import metrics
from hushtune.client.policy import SitePolicy
from hushtune.client.site import agreed_terms, simulated_ledger, simulated_terms
from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError, LedgerError, QuorumError, SiteError
from hushtune.common.metrics_messages import MetricsOrder
from hushtune.common.planning import (
    charged_unit,
    cohort_of,
    metrics_rounds,
    personal_charges,
    site_rank,
)
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.ledger_files import head_path
from hushtune.common.privacy.ledger_limit import Limit
from hushtune.common.privacy.ledger_record import read_ledger
from hushtune.common.privacy.plan import PrivacyPlan, Relation, Trust, Unit
from hushtune.common.run_context import RunContext
from hushtune.common.secagg.wire import KeysOrder
from hushtune.server.aggregation.lora_rules import SERVER_RULES
from hushtune.server.orders import chosen_sites, make_orders, step_of_round
from hushtune.server.steps import numbers_of_round
from hushtune.simulations.foreseen_charges import (
    CHARGED_AS,
    DRY_RUN,
    FIGURES,
    PERSONAL,
    TRAINING,
    Charge,
    first_unpaid,
    training_charges,
)

_MOST_TOLD = 6


class OpenedSite(NamedTuple):
    """What a site agrees to, its limit, and what its ledger says that it has spent."""

    policy: SitePolicy
    limit: Limit
    spent: tuple[LedgerEntry, ...]


def refusals(
    config: RunConfig, plans: Mapping[str, PrivacyPlan], state: AdapterState
) -> list[dict[str, Any]]:
    """What sites would refuse: ``site``, ``what`` (training, personal training or figures), the
    ``round`` from which on, ``code``, ``reason`` and ``remedy``.

    Raises what ``check_sites_open`` does. Only a site with a policy, or with a ledger that runs
    share, can refuse what the run asks.
    """
    simulation = config.simulation
    if simulation.policies is None and (
        simulation.ledgers is None or config.privacy.trust == "off"
    ):
        return []
    # The folder is not looked at: with neither policies nor shared ledgers nobody is asked.
    run = RunContext(config, Path())
    opened = check_sites_open(run, state, {})
    asked = {site: rounds_of(config, plans, site) for site in sorted(plans)}
    return [
        row
        for site, rounds in asked.items()
        if rounds
        for row in site_refusals(config, plans, state, opened[site], site=site, rounds=rounds)
    ]


def rounds_of(config: RunConfig, plans: Mapping[str, PrivacyPlan], site: str) -> list[int]:
    """The rounds in which a site is asked."""
    return [
        number
        for number in range(1, config.train.rounds + 1)
        if site in chosen_sites(config, plans, round=number)
    ]


def check_sites_open(
    run: RunContext, state: AdapterState, shown: Mapping[str, Sequence[Mapping[str, Any]]]
) -> dict[str, OpenedSite]:
    """Each site's policy, limit and charges; SiteError names all of which they cannot be used.

    ``shown``: the charges that each site has shown to the run so far, which its ledger must have.
    Writes nothing.
    """
    names = sorted(run.config.data.public_sizes)
    opened: dict[str, OpenedSite] = {}
    failures: dict[str, HushtuneError] = {}
    for site in names:
        try:
            opened[site] = _opened(run, state, site)
            _check_shown(opened[site].spent, shown.get(site, ()), simulated_ledger(run, site))
        except HushtuneError as error:
            failures[site] = error
    if not failures:
        return opened
    told = [
        f"\n  {site}: " + f"{error.code} {error}".replace("\n", "\n  ")
        for site, error in list(failures.items())[:_MOST_TOLD]
    ]
    more = f"\n  and {len(failures) - len(told)} more" if len(failures) > len(told) else ""
    raise SiteError(
        f"{len(failures)} of {len(names)} sites cannot take part" + "".join(told) + more,
        remedy="mend what the sites say, and run again",
    )


def _check_shown(
    spent: Sequence[LedgerEntry], shown: Sequence[Mapping[str, Any]], ledger: Path
) -> None:
    """A ledger that was put back, or begun anew, lacks what the run has seen of it."""
    there = {entry.hash for entry in spent}
    lost = [charge for charge in shown if charge["hash"] not in there]
    if lost:
        raise LedgerError(
            "the ledger lacks charges that the site has shown to the run",
            given=f"{ledger}, without {len(lost)} of {len(shown)} charges",
            expected=f"a charge with hash {lost[0]['hash']}",
            remedy="put the newest copy of the ledger back, or begin a new run in another folder",
        )


def show_refusals(console: Console, figures: Mapping[str, Any]) -> None:
    """A warning for each thing that a site would refuse, and for a run that ends early by it."""
    for row in figures["refusals"]:
        since = "" if row["round"] == 1 else f" from round {row['round']} on"
        console.print("[bold yellow]warning[/] ", end="")
        console.print(
            f"{row['site']} would refuse its {row['what']}{since}: {row['code']} {row['reason']}",
            markup=False,
            highlight=False,
        )
        if row["remedy"]:
            console.print(f"  do: {row['remedy']}", markup=False, highlight=False)
    number = ends_in(figures)
    if number is not None and number > 1:
        console.print("[bold yellow]warning[/] ", end="")
        console.print(
            f"the run would end in round {number}, for want of sites, without a result: what its "
            f"sites spend until then is spent. With train.rounds = {number - 1} it would have "
            "a result",
            highlight=False,
        )


def check_quorum(figures: Mapping[str, Any], *, until: int | None = None) -> None:
    """QuorumError, as the run itself would raise it, where too few sites would train.

    ``until``: the last round that is looked at; all, if left out.
    """
    names = list(figures["sites"])
    number = ends_in(figures)
    if number is None or (until is not None and number > until):
        return
    rows = [row for row in figures["refusals"] if row["what"] == TRAINING]
    lost = [row for row in rows if row["round"] <= number]
    told = "".join(f"\n  {row['site']}: {row['code']} {row['reason']}" for row in lost[:_MOST_TOLD])
    raise QuorumError(
        f"too few sites would take part in round {number}" + told,
        given=f"{len(names) - len(lost)} of {len(names)}; not "
        + ", ".join(row["site"] for row in lost),
        expected=f"at least {figures['quorum']} ({figures['quorum_setting']})",
        remedy="see what each site says above; change the run's settings, or have the "
        "sites see to their policies and ledgers",
    )


def ends_in(figures: Mapping[str, Any]) -> int | None:
    """The first round in which refusals leave fewer sites than the quorum; None if there is none.

    ``figures``: ``sites``, ``refusals`` (as ``refusals`` returns them) and ``quorum``.
    """
    first = [row["round"] for row in figures["refusals"] if row["what"] == TRAINING]
    return next(
        (
            number
            for number in sorted(set(first))
            if len(figures["sites"]) - sum(lost <= number for lost in first) < figures["quorum"]
        ),
        None,
    )


def site_refusals(
    config: RunConfig,
    plans: Mapping[str, PrivacyPlan],
    state: AdapterState,
    opened: OpenedSite,
    *,
    site: str,
    rounds: Sequence[int],
) -> list[dict[str, Any]]:
    """What one site would refuse in the rounds that it is asked in; rows as of ``refusals``."""
    try:  # of a later round a policy would say the same
        _check_orders(config, plans, state, opened.policy, site=site, round=rounds[0])
    except HushtuneError as error:
        return [_row(site, TRAINING, rounds[0], error)]
    found: list[dict[str, Any]] = []
    if not plans[site].trust.charges_sites:
        return []
    charges = [
        charge
        for number in rounds
        for charge in training_charges(config, plans[site], round=number)
    ]
    charges += [
        Charge(number, PERSONAL, number, plans[site].event(steps))
        for number, steps in personal_charges(config)
    ]
    told, give = metrics_rounds(config), SERVER_RULES[config.aggregation.rule].give
    if told:
        noised = config.metrics.release == "noised"
        try:
            opened.policy.check_metrics(
                MetricsOrder(
                    run=DRY_RUN,
                    round=told[0],
                    site=site,
                    adapter=give(state, site_rank(config, site)),
                    noise_multiplier=config.metrics.noise_multiplier if noised else None,
                    unit=Unit(config.privacy.unit),
                    relation=Relation(config.privacy.relation),
                )
            )
        except HushtuneError as error:
            found.append(_row(site, FIGURES, told[0], error))
        else:
            event = metrics.event(config.metrics.noise_multiplier)
            charges += [Charge(number, FIGURES, number, event) for number in told if noised]
    places = list(CHARGED_AS)
    charges.sort(key=lambda charge: (charge.round, places.index(charge.what), charge.number))
    unit = charged_unit(config)
    # What is refused is not charged, so that the rest may go on.
    while unpaid := first_unpaid(opened.limit, opened.spent, charges, unit=unit):
        charge, error = unpaid
        found.append(_row(site, charge.what, charge.round, error))
        charges = [c for c in charges if c.what != charge.what or c.round < charge.round]
    return found


def _check_orders(
    config: RunConfig,
    plans: Mapping[str, PrivacyPlan],
    state: AdapterState,
    policy: SitePolicy,
    *,
    site: str,
    round: int,
) -> None:
    """Raises what a site's policy says to what it is asked in a round, in the order of asking."""
    sizes = config.data.public_sizes
    order = make_orders(state, run=DRY_RUN, round=round, config=config, plans=plans, sizes=sizes)[
        site
    ]
    if config.privacy.trust == Trust.DISTRIBUTED:
        numbers = numbers_of_round(config, round)
        policy.check_session(
            KeysOrder(
                run=DRY_RUN,
                session=DRY_RUN,
                site=site,
                cohort=cohort_of(config),
                plan=plans[site],
                steps=numbers,
            )
        )
        if plans[site].unit is not Unit.CLIENT:
            order = step_of_round(order, config, 0)
    policy.check(order)


def _opened(run: RunContext, state: AdapterState, site: str) -> OpenedSite:
    """Raises what opening the site would."""
    spec = replace(state.spec, rank=site_rank(run.config, site))
    policy, limit = agreed_terms(run.config, site, simulated_terms(run.config, site), spec)
    ledger = simulated_ledger(run, site)
    begun = policy.trust.charges_sites and (ledger.exists() or head_path(ledger).exists())
    return OpenedSite(policy, limit, read_ledger(ledger).entries if begun else ())


def _row(site: str, what: str, number: int, error: HushtuneError) -> dict[str, Any]:
    given = f" (given: {error.given})" if error.given else ""
    expected = f"; expected: {error.expected}" if error.expected else ""
    return {
        "site": site,
        "what": what,
        "round": number,
        "code": error.code,
        "reason": f"{error.message}{given}{expected}",
        "remedy": error.remedy,
    }
