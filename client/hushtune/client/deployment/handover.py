"""The end of a run at its site: the model is checked and kept, and a receipt is signed.

What is written is for the site alone; its receipt, which is all that leaves, holds figures that
follow from charges, and hashes.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Context, RecordDict

from hushtune.client.deployment.site_file import SiteFile
from hushtune.client.own_model import own_adapter
from hushtune.client.site import OwnRun, own_run, site_memory
from hushtune.client.terms import load_terms
from hushtune.common.adapter import AdapterState
from hushtune.common.adapter_folder import whole_folder, write_adapter_folder
from hushtune.common.config import RunConfig
from hushtune.common.config_io import CONFIG
from hushtune.common.deployment import SITE_KEY
from hushtune.common.errors import (
    HushtuneError,
    MessageError,
    OutputExistsError,
    SignatureError,
    SiteError,
)
from hushtune.common.files import write_bytes, write_text
from hushtune.common.handover_messages import (
    RECORD,
    Receipt,
    RunRecord,
    adapter_digest,
    decode_handover,
    encode_receipt,
)
from hushtune.common.planning import charged_unit, site_plans, site_rank
from hushtune.common.privacy.ledger import Ledger
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import Trust
from hushtune.common.privacy.report_files import STATEMENT, write_statement
from hushtune.common.privacy.report_site import (
    Books,
    SiteRun,
    lifetime_of,
    of_run,
    run_statement,
    site_statement,
)
from hushtune.common.run_context import TOML, read_run_config
from hushtune.common.signed_files import MANIFEST, Signed, sha256_of, write_manifest
from hushtune.common.signing import load_signing_key, public_text
from hushtune.common.tasks.workspace import Workspace, open_workspace
from hushtune.common.verification import check_folder

RECORD_FILE, RECEIPT_FILE, MODEL_FILE = "record.json", "receipt.json", "model.safetensors"
SIZE = "data.public_sizes of the run's settings, which the coordinator declared for this site"
log = logging.getLogger(__name__)


def answer(content: RecordDict, context: Context) -> RecordDict:
    """Keep what is handed over in ``runs/RUN`` and answer with a receipt; again, with the same one.

    Raises SiteError at a simulated site, SignatureError for what the coordinator has not signed,
    MessageError for what is of another run or site, and OutputExistsError where the run was handed
    over before with another model.
    """
    if SITE_KEY not in context.node_config:
        raise SiteError(
            "a simulated site keeps no results of its own",
            given="a node without site.toml",
            expected="a site that has joined with `hushtune site join`",
            remedy="hushtune simulate writes the results of simulated sites",
        )
    run = read_run_config(context.run_config)
    own = own_run(run, Path(str(context.node_config[SITE_KEY])))
    signed, adapter = decode_handover(content)
    toml = str(context.run_config.get(TOML, ""))
    record = _checked(signed, adapter, own.file, toml=toml)
    key = load_signing_key(own.file.sign_key)
    folder = own.file.runs / record.run
    receipt = _kept(folder, record, own.file, public_text(key))
    if receipt is None:
        workspace = open_workspace(own.rows)
        _check_shape(adapter, workspace, run.config, own.file.name)
        with whole_folder(folder, replace=True, private=True) as partial:
            receipt = _write(
                partial, signed, record, adapter, run.config, own, workspace, key, toml=toml
            )
        log.info("run %s was handed over: %s", record.run, folder)
    return encode_receipt(receipt)


def own_statement(
    config: RunConfig, adapter: AdapterState, record: RunRecord, books: Books
) -> dict[str, Any]:
    """The statement of a run for one site, by its own books; of a server's noise, the server's."""
    if config.privacy.trust == Trust.SERVER:
        told = record.statement
        if told is None or record.site not in told.get("sites", {}):
            raise MessageError("a run's record lacks the statement of the server that adds noise")
        return dict(told)
    site = site_statement(
        config,
        site_plans(config)[record.site],
        adapter,
        SiteRun(run=record.run, site=record.site, rows=record.rows, refusals=record.refusals),
        books,
        size_source=SIZE,
    )
    lost, rows = record.lost_rounds, record.rows
    return run_statement(config, {record.site: site}, run=record.run, lost=lost, history=rows)


def receipt_of(
    record: RunRecord, told: Mapping[str, Any], books: Books, *, statement: str, time: str
) -> Receipt:
    """What a statement and a ledger come to; ``statement``: sha256 of the statement's file."""
    site = told["sites"][record.site]
    return Receipt(
        federation=record.federation,
        run=record.run,
        site=record.site,
        adapter=record.adapter,
        epsilon=site["epsilon"],
        delta=site["delta"],
        unit=told["unit"],
        guarantee=site["guarantee"],
        ledger_head=books.head,
        num_charges=len(books.entries),
        charges_of_run=len(of_run(books.entries, record.run)),
        statement=statement,
        time=time,
    )


def _checked(signed: Signed, adapter: AdapterState, own: SiteFile, *, toml: str) -> RunRecord:
    """The record, if the coordinator has signed it for this model, run and site."""
    server = own.table.server
    record = RunRecord.from_dict(signed.checked(server.sign_key, kind=RECORD))
    found = adapter_digest(adapter)
    if found != record.adapter:
        raise SignatureError(
            "the model that was sent is not the one that the coordinator has signed",
            given=f"sha256 {found}",
            expected=record.adapter,
            remedy="ask the coordinator to hand the run over again, by hushtune server run DIR "
            "--resume --name RUN",
        )
    expected = {
        "federation": (record.federation, server.name),
        "site": (record.site, own.name),
        "settings": (record.config, hashlib.sha256(toml.encode("utf-8")).hexdigest()),
    }
    for what, (given, wanted) in expected.items():
        if given != wanted:
            raise MessageError(
                f"a run's record is of another {what}",
                given=given[:100],
                expected=wanted,
                remedy="ask the coordinator to hand over the run that this site took part in",
            )
    return record


def _check_shape(adapter: AdapterState, workspace: Workspace, config: RunConfig, site: str) -> None:
    spec = replace(workspace.initial_state.spec, rank=site_rank(config, site))
    if adapter.spec != spec or not adapter.is_whole() or not adapter.is_finite():
        raise MessageError(
            "the model that was sent is not one of this run",
            given="another adapter's description, a part of it, or values that are not finite",
            expected="a whole adapter of the site's rank",
        )


def _kept(folder: Path, record: RunRecord, own: SiteFile, public: str) -> Signed | None:
    """The receipt of an earlier hand-over of the same run; None where it has to be written (anew).

    A folder that is damaged is written anew; one that is not of a hand-over is left alone.
    """
    if not folder.exists() or not any(folder.iterdir()):
        return None
    if not (folder / MANIFEST).exists() and not (folder / RECORD_FILE).exists():
        raise OutputExistsError(
            "where a run's results belong there is something else",
            given=str(folder),
            expected="no such folder, or the results of that run",
            remedy="move it to another place",
        )
    try:
        signed = Signed.read(folder / RECORD_FILE)
        earlier = RunRecord.from_dict(signed.checked(own.table.server.sign_key, kind=RECORD))
    except HushtuneError as error:
        log.warning("the results in %s are damaged and written anew: %s", folder, error.message)
        return None
    if (earlier.run, earlier.adapter, earlier.config) != (
        record.run,
        record.adapter,
        record.config,
    ):
        raise OutputExistsError(
            "the run was handed over before, with another model or other settings",
            given=f"adapter {record.adapter}",
            expected=f"adapter {earlier.adapter}",
            remedy="ask the coordinator which one is right; to take the new one, move the old "
            "one's folder to another place",
        )
    bad = [check for check in check_folder(folder, public, None) if not check.ok]
    for check in bad:
        log.warning("the results in %s are written anew: %s", folder, check.told)
    return None if bad else Signed.read(folder / RECEIPT_FILE)


def _write(
    folder: Path,
    signed: Signed,
    record: RunRecord,
    adapter: AdapterState,
    config: RunConfig,
    own: OwnRun,
    workspace: Workspace,
    key: Ed25519PrivateKey,
    *,
    toml: str,
) -> Signed:
    """All files of ``runs/RUN``, the manifest last; returns the receipt."""
    books = _books(own.file, config, run=record.run)
    mine = own.run.config
    state = own_adapter(
        adapter, site_memory(own.run, record.site), mine, books.entries, run=record.run
    )
    told = own_statement(config, adapter, record, books)
    write_adapter_folder(
        workspace,
        state,
        folder / "adapter",
        card=_card(record, workspace.base_name, told),
        model=mine.model,
        adapter=mine.adapter,
        task=mine.task,
        data=mine.data,
    )
    write_bytes(folder / MODEL_FILE, adapter.to_bytes())
    write_text(folder / CONFIG, toml)
    signed.write(folder / RECORD_FILE)
    write_statement(folder, told)
    receipt = receipt_of(
        record,
        told,
        books,
        statement=sha256_of(folder / STATEMENT),
        time=datetime.now(UTC).isoformat(timespec="seconds"),
    )
    said = Signed.by(key, receipt.to_dict())
    said.write(folder / RECEIPT_FILE)
    write_manifest(folder, key, {"run": record.run, "site": record.site}, None)
    return said


def _books(own: SiteFile, config: RunConfig, *, run: str) -> Books:
    """The site's ledger as it is now, and the limits of its policy."""
    terms = load_terms(own.table.policy)
    books = Books(limit_epsilon=terms.max_epsilon, limit_delta=terms.max_delta)
    if not Trust(config.privacy.trust).charges_sites:
        return books
    ledger = Ledger(own.ledger)
    entries: list[LedgerEntry] = ledger.entries()
    named = None if terms.data_set is None else ledger.name_of(terms.data_set)
    return replace(
        books,
        entries=entries,
        head=ledger.head(),
        num_resent=ledger.num_resent(run=run),
        lifetime=lifetime_of(entries, unit=charged_unit(config), data_set=named),
    )


def _card(record: RunRecord, base: str, told: Mapping[str, Any]) -> str:
    """The page that lies beside the adapter."""
    site = told["sites"][record.site]
    said = site.get("sentence") or told.get("sentence", "")
    return (
        f"---\nbase_model: {base}\nlibrary_name: peft\n---\n\n"
        f"# Adapter of run {record.run}, federation {record.federation}\n\n"
        f"As it was handed over to site {record.site} after {record.rounds} rounds, with what the "
        "site keeps for itself, if the run had any of that.\n\n"
        f"{said}\n\n"
        "The whole statement is in `privacy.html`, one folder up. `hushtune predict` and `hushtune "
        "export` take that folder; `hushtune verify` checks it.\n"
    )
