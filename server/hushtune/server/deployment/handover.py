"""The end of a run at its coordinator: model and record go to the sites, receipts come back.

What is written, in the run's folder: ``receipts/NAME.json``, as the sites signed them, the
federation's statement (``statement.json``, signed, with two pages), the model as it was handed over
(``model.safetensors``), the settings, and a signed manifest of all of it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG
from hushtune.common.deployment import SiteCard
from hushtune.common.files import write_bytes, write_text
from hushtune.common.handover_messages import (
    Receipt,
    RunRecord,
    adapter_digest,
)
from hushtune.common.planning import site_plans, site_rank
from hushtune.common.privacy.plan import Trust
from hushtune.common.privacy.report_files import write_statement
from hushtune.common.privacy.report_site import lost_rounds, rows_of_site
from hushtune.common.privacy.statement_federation import (
    RunTold,
    SiteEntry,
    federation_html,
    federation_markdown,
    federation_statement,
)
from hushtune.common.privacy.statement_software import libraries
from hushtune.common.run_context import RunContext
from hushtune.common.signed_files import Signed, write_manifest
from hushtune.common.signing import public_text
from hushtune.common.site_files import STATEMENT_FILE
from hushtune.common.verify_federation import COVERED, MODEL_FILE
from hushtune.common.version import source_commit
from hushtune.server.aggregation.lora_rules import SERVER_RULES
from hushtune.server.central import secret_draws
from hushtune.server.deployment.receipts import (
    Handed,
    Waiting,
    ask_sites,
    kept_receipts,
    shown_epsilon,
)
from hushtune.server.server_report import server_privacy
from hushtune.server.strategy import FederationResult

log = logging.getLogger(__name__)


def hand_over(
    grid: Grid,
    nodes: Mapping[str, int],
    *,
    run: RunContext,
    toml: str,
    result: FederationResult,
    key: Ed25519PrivateKey,
    federation: str,
    cards: Mapping[str, SiteCard],
    timeout: float,
    patience: float,
    waiting: Waiting = lambda _: None,
) -> dict[str, Any]:
    """Send a finished run to its sites and write down what they sign; returns the statement.

    ``nodes``: by site. ``toml``: the settings' text as it was signed for the run. ``cards``: of all
    sites of the run, by whose keys receipts are checked. ``timeout``, ``patience``: seconds to
    answer, and that sites which are away are waited for; see ``ask_sites``. May be called again, as
    when a run is resumed that had ended: receipts that are there are kept where they still fit, and
    sites are asked that are connected or have none.
    """
    config, out = run.config, run.out
    statement = server_privacy(config, result) if config.privacy.trust == Trust.SERVER else None
    records = _records(config, result, federation=federation, toml=toml, statement=statement)
    write_bytes(out / MODEL_FILE, result.state.to_bytes())
    write_text(out / CONFIG, toml)
    if statement is not None:
        write_statement(out, statement)
    handed = Handed(config=config, result=result, records=records, cards=cards, key=key, out=out)
    missing = ask_sites(grid, nodes, handed, timeout=timeout, patience=patience, waiting=waiting)
    receipts = kept_receipts(handed)
    missing = {site: reason for site, reason in missing.items() if site not in receipts}
    for site, reason in missing.items():
        log.warning("site %s has signed no receipt: %s", site, reason, extra={"site": site})
    document = federation_statement(
        _told(config, result, federation=federation, toml=toml, statement=statement),
        {
            site: _entry(
                site,
                config,
                result,
                cards[site],
                receipts.get(site),
                missing.get(site, ""),
                statement=statement,
            )
            for site in records
        },
    )
    signed = Signed.by(key, document)
    signed.write(out / STATEMENT_FILE)
    pages = {"signature": signed.signature, "sign_key": public_text(key)}
    write_text(out / "statement.md", federation_markdown(signed.document, **pages))
    write_text(out / "statement.html", federation_html(signed.document, **pages))
    write_manifest(out, key, {"run": result.run, "federation": federation}, COVERED)
    return dict(signed.document)


def _records(
    config: RunConfig,
    result: FederationResult,
    *,
    federation: str,
    toml: str,
    statement: Mapping[str, Any] | None,
) -> dict[str, tuple[RunRecord, AdapterState]]:
    """What each site of the run is told, and its adapter: the global one at the site's rank."""
    give = SERVER_RULES[config.aggregation.rule].give
    names, lost = sorted(config.data.public_sizes), lost_rounds(config, result.history)
    joined = {site for row in result.history for site in row["accepted"]}
    found: dict[str, tuple[RunRecord, AdapterState]] = {}
    for site in names:
        adapter = give(result.state, site_rank(config, site))
        found[site] = (
            RunRecord(
                federation=federation,
                run=result.run,
                site=site,
                config=hashlib.sha256(toml.encode("utf-8")).hexdigest(),
                rounds=len(result.history),
                rows=tuple(rows_of_site(result.history, site)),
                refusals=tuple(dict(row) for row in result.refusals.get(site, ())),
                lost_rounds=tuple(lost),
                # Where who was drawn is a secret, the public list stands for those who were.
                sites=tuple(names if secret_draws(config) else sorted(joined)),
                adapter=adapter_digest(adapter),
                model=adapter_digest(result.state),
                software={"source_commit": source_commit(), **libraries()},
                statement=statement,
            ),
            adapter,
        )
    return found


def _told(
    config: RunConfig,
    result: FederationResult,
    *,
    federation: str,
    toml: str,
    statement: Mapping[str, Any] | None,
) -> RunTold:
    server = None if statement is None else statement["server"]
    return RunTold(
        federation=federation,
        run=result.run,
        config=hashlib.sha256(toml.encode("utf-8")).hexdigest(),
        model=adapter_digest(result.state),
        rounds=len(result.history),
        plan=next(iter(site_plans(config).values())),
        group=config.data.group,
        server=None
        if server is None
        else {
            **{key: server[key] for key in ("epsilon", "delta", "ledger_head")},
            "num_charges": len(server["ledger"]),
        },
    )


def _entry(
    site: str,
    config: RunConfig,
    result: FederationResult,
    card: SiteCard,
    receipt: Receipt | None,
    missing: str,
    *,
    statement: Mapping[str, Any] | None,
) -> SiteEntry:
    rows = result.charges.get(site, ())
    shown = (
        shown_epsilon(config, result, site) if statement is None else statement["server"]["epsilon"]
    )
    accepted = [row["round"] for row in result.history if site in row["accepted"]]
    return SiteEntry(
        sign_key=card.sign_key,
        rounds=None if secret_draws(config) else accepted,
        num_refusals=len(result.refusals.get(site, ())),
        receipt=receipt,
        missing=missing,
        epsilon_shown=shown,
        charges_shown=len(rows),
        last_shown=rows[-1]["hash"] if rows else "",
    )
