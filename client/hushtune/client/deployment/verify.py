"""A site's folder of a finished run, checked against the keys and the site's own ledger."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hushtune.client.deployment.handover import (
    MODEL_FILE,
    RECEIPT_FILE,
    RECORD_FILE,
    own_statement,
    receipt_of,
)
from hushtune.common.adapter import AdapterState
from hushtune.common.config_io import CONFIG, loads_config
from hushtune.common.errors import HushtuneError, LedgerError, MessageError
from hushtune.common.files import read_json, read_text
from hushtune.common.handover_messages import RECEIPT, RECORD, Receipt, RunRecord
from hushtune.common.privacy.ledger_record import LedgerRecord, read_ledger
from hushtune.common.privacy.plan import Trust
from hushtune.common.privacy.report_files import STATEMENT
from hushtune.common.privacy.report_site import Books, of_run
from hushtune.common.signed_files import Signed, sha256_of
from hushtune.common.verification import Check, check_folder, checked, equal

_MEND = "ask for the run to be handed over again"
_RECOMPUTED = ("epsilon", "delta", "guarantee", "events", "ledger_head", "rounds", "steps")
"""Of a site's section of its statement: all that follows from its ledger and the record."""


def verify_site(
    folder: Path, *, sign_key: str | None, site_key: str | None, ledger: Path | None
) -> list[Check]:
    """Everything that can be checked of a site's ``runs/RUN``.

    ``sign_key``: the coordinator's; ``site_key``: the site's own. Where one is not known, what it
    has signed fails, since nothing vouches for it. ``ledger``: the site's, if it is at hand.
    """
    if sign_key is None or site_key is None:
        whose = (
            ("the coordinator's", "federation.toml")
            if sign_key is None
            else ("the site's", "NAME.pub")
        )
        return [Check("keys", False, f"{whose[0]} key is not known: give --key {whose[1]}")]
    checks = check_folder(folder, site_key, None)

    def signed_by(what: str, name: str, key: str, kind: str) -> Check:
        def look() -> str:
            Signed.read(folder / name).checked(key, kind=kind)
            return f"signed by {key}"

        return checked(what, look)

    signatures = [
        signed_by("record", RECORD_FILE, sign_key, RECORD),
        signed_by("receipt", RECEIPT_FILE, site_key, RECEIPT),
    ]
    checks += signatures
    if not all(check.ok for check in signatures):
        return checks
    try:
        record = RunRecord.from_dict(Signed.read(folder / RECORD_FILE).document)
        receipt = Receipt.from_dict(Signed.read(folder / RECEIPT_FILE).document)
        told = read_json(folder / STATEMENT, remedy=_MEND)
        return [
            *checks,
            *_consistent(folder, record, receipt, told),
            *_books(folder, record, receipt, told, ledger),
        ]
    except (HushtuneError, OSError, KeyError, TypeError, AttributeError) as error:
        said = (
            error.message if isinstance(error, HushtuneError) else f"{type(error).__name__} {error}"
        )
        return [*checks, Check("content", False, said)]


def _consistent(
    folder: Path, record: RunRecord, receipt: Receipt, told: Mapping[str, Any]
) -> list[Check]:
    """Record, receipt, statement, settings and model are of one run."""
    site = told["sites"][record.site]
    named = (receipt.federation, receipt.run, receipt.site, receipt.adapter)
    figures = (receipt.epsilon, receipt.delta, receipt.guarantee, receipt.unit, told["run"])
    return [
        equal(
            "one run",
            named,
            (record.federation, record.run, record.site, record.adapter),
            told=f"{record.run} of {record.federation}, at {record.site}",
        ),
        equal(
            "settings", sha256_of(folder / CONFIG), record.config, told=f"sha256 {record.config}"
        ),
        equal(
            "model", sha256_of(folder / MODEL_FILE), record.adapter, told=f"sha256 {record.adapter}"
        ),
        equal(
            "statement",
            sha256_of(folder / STATEMENT),
            receipt.statement,
            told=f"sha256 {receipt.statement}",
        ),
        equal(
            "figures",
            figures,
            (site["epsilon"], site["delta"], site["guarantee"], told["unit"], record.run),
            told=f"epsilon {receipt.epsilon} at delta {receipt.delta:g}, as in the receipt",
        ),
    ]


def _books(
    folder: Path,
    record: RunRecord,
    receipt: Receipt,
    told: Mapping[str, Any],
    ledger: Path | None,
) -> list[Check]:
    """The ledger still holds what the receipt speaks of, and the statement follows from it."""
    config = loads_config(read_text(folder / CONFIG, remedy=_MEND))
    if not Trust(config.privacy.trust).charges_sites:
        recomputed = own_statement(config, _model(folder), record, Books())
        return [_recomputed(record, told, recomputed, by="the record")]
    if ledger is None or not ledger.exists():
        where = "not at hand" if ledger is None else f"not at {ledger}"
        return [Check("ledger", None, f"{where}: what it holds was not looked at")]
    try:
        found = read_ledger(ledger)
        later = found.num_charges_since(receipt.ledger_head)
    except LedgerError as error:
        return [Check("ledger", False, f"{error.code} {error.message}")]
    books = _as_it_was(found, later, record.run)
    counted = receipt_of(record, told, books, statement=receipt.statement, time=receipt.time)
    return [
        equal(
            "ledger",
            (counted.num_charges, counted.charges_of_run),
            (receipt.num_charges, receipt.charges_of_run),
            told=f"holds the receipt's last charge; {later} came later",
        ),
        _recomputed(
            record, told, own_statement(config, _model(folder), record, books), by="the ledger"
        ),
    ]


def _as_it_was(ledger: LedgerRecord, later: int, run: str) -> Books:
    """The ledger without the charges that came later."""
    entries = ledger.entries[: len(ledger.entries) - later]
    head = ledger.entries[len(entries) - 1].hash if entries else ledger.head if not later else ""
    own = [entry.sequence for entry in of_run(entries, run)]
    resent = sum(ledger.resent.get(sequence, 0) for sequence in own)
    return replace(Books(entries=entries, num_resent=resent), head=head)


def _model(folder: Path) -> AdapterState:
    try:
        return AdapterState.from_bytes((folder / MODEL_FILE).read_bytes())
    except OSError as error:
        raise MessageError("the model cannot be read", given=error.strerror) from error


def _recomputed(
    record: RunRecord, told: Mapping[str, Any], again: Mapping[str, Any], *, by: str
) -> Check:
    """What the statement says follows from what is known."""
    given, expected = told["sites"][record.site], again["sites"][record.site]
    wrong = [key for key in _RECOMPUTED if given.get(key) != expected.get(key)]
    if wrong:
        key = wrong[0]
        return Check(
            "recomputed", False, f"{key} is {given.get(key)} there, and {expected.get(key)} by {by}"
        )
    return Check("recomputed", True, f"epsilon {given['epsilon']} follows from {by}")
