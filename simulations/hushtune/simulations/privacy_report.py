"""From a run, finished or not, to its privacy statement."""

from __future__ import annotations

import json
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from hushtune.client.site import ledger_path, simulated_ledger, simulated_terms
from hushtune.common.errors import HushtuneError
from hushtune.common.planning import charged_unit, site_plans
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.plan import PrivacyPlan, Trust
from hushtune.common.privacy.report_files import write_statement
from hushtune.common.privacy.report_site import (
    Books,
    SiteRun,
    lifetime_of,
    lost_rounds,
    run_statement,
    site_statement,
)
from hushtune.common.privacy.statement import ended_early
from hushtune.common.run_context import RunContext
from hushtune.server.app import checkpoint_folder
from hushtune.server.checkpoint import exists, load
from hushtune.server.server_report import server_privacy
from hushtune.server.spending import appended
from hushtune.server.strategy import FederationResult

SIMULATED_SIZE = (
    "data.public_sizes of the run's configuration; where it was not declared there, taken from the "
    "data when the run was configured, and treated as public from then on"
)


def privacy_of(context: RunContext, result: FederationResult) -> dict[str, Any]:
    """The statement of every site, read from the site's own ledger; or of a trusted server."""
    config = context.config
    if config.privacy.trust == Trust.SERVER:
        return server_privacy(config, result)
    sites = {
        site: site_statement(
            config,
            plan,
            result.state,
            SiteRun(
                run=result.run,
                site=site,
                rows=result.history,
                refusals=result.refusals.get(site, ()),
            ),
            _books(context, site, plan, run=result.run),
            size_source=SIMULATED_SIZE,
        )
        for site, plan in site_plans(config).items()
    }
    history = result.history
    lost = lost_rounds(config, history)
    return run_statement(config, sites, run=result.run, lost=lost, history=history)


def _books(context: RunContext, site: str, plan: PrivacyPlan, *, run: str) -> Books:
    """What a simulated site's ledger holds; nothing where sites are not charged."""
    config = context.config
    own, path = simulated_terms(config, site), simulated_ledger(context, site)
    books = Books(
        own_ledger=path == ledger_path(context.out, site),
        limit_epsilon=None if own is None else own.terms.max_epsilon,
        limit_delta=None if own is None else own.terms.max_delta,
    )
    if not plan.trust.charges_sites:
        return books
    ledger = Ledger(path)
    entries = ledger.entries()
    data_set = None if own is None else own.terms.data_set
    return replace(
        books,
        entries=entries,
        head=ledger.head(),
        num_resent=ledger.num_resent(run=run),
        lifetime=lifetime_of(
            entries,
            unit=charged_unit(config),
            data_set=None if data_set is None else ledger.name_of(data_set),
        ),
    )


def tell_so_far(context: RunContext, ended_by: HushtuneError) -> None:
    """Write the statement of a run that ended early, of all that its sites released until then.

    By their ledgers, so what was charged in the round that failed counts. Nothing is written where
    no site released anything, or where the statement cannot be made: the run's own error is what
    has to be heard.
    """
    folder = checkpoint_folder(context.out)
    with suppress(HushtuneError, OSError):
        if not exists(folder):
            return
        last = load(folder)
        told = privacy_of(
            context,
            FederationResult(
                run=last.run,
                state=last.shown,
                history=last.history,
                charges=last.charges,
                refusals=appended(last.refusals, getattr(ended_by, "refusals", {})),
                seconds={},
                ledger=last.ledger,
            ),
        )
        reason = " ".join(ended_by.message.splitlines()[:1])
        told = ended_early(
            told,
            done=last.round,
            planned=context.config.train.rounds,
            why=f"{ended_by.code} {reason}",
        )
        if context.config.privacy.trust == Trust.SERVER:
            released = bool(last.ledger)
        else:
            sites = told["sites"].values()
            released = any(site["events"] or site["released"]["updates"] for site in sites)
        if released:
            write_statement(context.out, told)


def how_to_go_on(folder: Path) -> str:
    """What to know before a run that an error ended is resumed; "" of any other."""
    try:
        told = json.loads((folder / "privacy.json").read_text(encoding="utf-8"))["ended_early"]
    except (OSError, ValueError, KeyError, TypeError):
        return ""
    if not told:
        return ""
    return (
        ", once what ended it is mended (as where a site's policy allows more); else begin a run "
        f"of fewer rounds in another folder. {str(told).split('. ')[0]}"
    )
