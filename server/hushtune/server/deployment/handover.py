"""The end of a run at its coordinator: model and record go to the sites, receipts come back.

What is written, in the run's folder: ``receipts/NAME.json``, as the sites signed them, the
federation's statement (``statement.json``, signed, with two pages), the model as it was handed over
(``model.safetensors``), the settings, and a signed manifest of all of it.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG
from hushtune.common.deployment import SiteCard
from hushtune.common.errors import HushtuneError, MessageError
from hushtune.common.files import write_bytes, write_text
from hushtune.common.handover_messages import (
    RECEIPT,
    Receipt,
    RunRecord,
    adapter_digest,
    decode_receipt,
    encode_handover,
)
from hushtune.common.planning import site_plans, site_rank
from hushtune.common.privacy.figures import bounded
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
from hushtune.common.site_files import site_stem
from hushtune.common.verify_federation import (
    COVERED,
    MODEL_FILE,
    RECEIPTS,
    STATEMENT_FILE,
    receipt_problem,
)
from hushtune.common.version import source_commit
from hushtune.server.aggregation.lora_rules import SERVER_RULES
from hushtune.server.central import secret_draws
from hushtune.server.replies import short
from hushtune.server.server_report import server_privacy
from hushtune.server.spending import spent
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
) -> dict[str, Any]:
    """Send a finished run to its sites and write down what they sign; returns the statement.

    ``nodes``: by site, of which those are asked that are connected. ``toml``: the settings' text as
    it was signed for the run. ``cards``: of all sites of the run, by whose keys receipts are
    checked. May be called again, as when a run is resumed that had ended: receipts that are there
    are kept where they still fit, and the other sites are asked.
    """
    config, out = run.config, run.out
    statement = server_privacy(config, result) if config.privacy.trust == Trust.SERVER else None
    records = _records(config, result, federation=federation, toml=toml, statement=statement)
    write_bytes(out / MODEL_FILE, result.state.to_bytes())
    write_text(out / CONFIG, toml)
    if statement is not None:
        write_statement(out, statement)
    online = set(grid.get_node_ids())
    there = {site: nodes[site] for site in sorted(records) if nodes.get(site) in online}
    missing = _exchange(grid, there, records, config, result, key, cards, out, timeout=timeout)
    receipts = _receipts(out, records, config, result, cards, missing)
    for site, reason in missing.items():
        log.warning("site %s has signed no receipt: %s", site, reason)
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


def _exchange(
    grid: Grid,
    nodes: Mapping[str, int],
    records: Mapping[str, tuple[RunRecord, AdapterState]],
    config: RunConfig,
    result: FederationResult,
    key: Ed25519PrivateKey,
    cards: Mapping[str, SiteCard],
    out: Path,
    *,
    timeout: float,
) -> dict[str, str]:
    """Keep the receipts that come back and are good; why the others are not there, by site."""
    missing = {site: "no answer" if site in nodes else "not connected" for site in records}
    messages = [
        Message(
            encode_handover(Signed.by(key, records[site][0].to_dict()), records[site][1]),
            dst_node_id=node,
            message_type="query.handover",
            group_id="hand-over",
        )
        for site, node in nodes.items()
    ]
    sites = {node: site for site, node in nodes.items()}
    for message in grid.send_and_receive(messages, timeout=timeout) if messages else ():
        site = sites.pop(message.metadata.src_node_id, None)
        if site is None:
            continue
        try:
            if message.has_error():
                raise MessageError(f"failed: {message.error.reason or 'without a reason'}")
            signed = decode_receipt(message.content)
            _checked(signed, records[site][0], config, result, cards[site])
        except HushtuneError as error:
            missing[site] = short(error.message)
            continue
        signed.write(_receipt_file(out, site))
        del missing[site]
    return missing


def _receipts(
    out: Path,
    records: Mapping[str, tuple[RunRecord, AdapterState]],
    config: RunConfig,
    result: FederationResult,
    cards: Mapping[str, SiteCard],
    missing: dict[str, str],
) -> dict[str, Receipt]:
    """The good receipts in the run's folder, from whichever hand-over; others are removed."""
    found: dict[str, Receipt] = {}
    for site, (record, _) in records.items():
        path = _receipt_file(out, site)
        if not path.is_file():
            continue
        try:
            found[site] = _checked(Signed.read(path), record, config, result, cards[site])
            missing.pop(site, None)
        except HushtuneError as error:
            log.warning("a receipt of %s that does not fit is removed: %s", site, error.message)
            path.unlink()
    return found


def _checked(
    signed: Signed, record: RunRecord, config: RunConfig, result: FederationResult, card: SiteCard
) -> Receipt:
    """A site's receipt; SignatureError or MessageError unless it is of this run and holds."""
    receipt = Receipt.from_dict(signed.checked(card.sign_key, kind=RECEIPT))
    expected = {
        "federation": (receipt.federation, record.federation),
        "run": (receipt.run, record.run),
        "site": (receipt.site, record.site),
        "model": (receipt.adapter, record.adapter),
    }
    for what, (given, wanted) in expected.items():
        if given != wanted:
            raise MessageError(f"its receipt is of another {what}", given=given, expected=wanted)
    rows = result.charges.get(record.site, ())
    problem = receipt_problem(
        receipt.to_dict(),
        epsilon=_spent(config, result, record.site),
        delta=site_plans(config)[record.site].delta,
        num_charges=len(rows),
        last=(rows[-1]["sequence"], rows[-1]["hash"]) if rows else None,
    )
    if problem is not None:
        raise MessageError(f"its receipt cannot be right: {problem}")
    return receipt


def _spent(config: RunConfig, result: FederationResult, site: str) -> float | None:
    """What a site spent at least, by the charges that it has shown; None where nothing is known."""
    plan = site_plans(config)[site]
    if not plan.trust.charges_sites:
        return None
    found = spent({site: plan}, result.charges)[site]
    return None if found is None else bounded(found)


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
    shown = _spent(config, result, site) if statement is None else statement["server"]["epsilon"]
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


def _receipt_file(out: Path, site: str) -> Path:
    return out / RECEIPTS / f"{site_stem(site)}.json"
