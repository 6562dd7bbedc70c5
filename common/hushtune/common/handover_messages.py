"""The hand-over at the end of a run as Flower records: the model and its record, and a receipt.

The record is all that a site needs to write its own statement, signed by the coordinator; the
receipt says what the site has found in its own ledger, signed by the site. Neither holds anything
of rows.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, cast

from flwr.app import RecordDict

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import MessageError, SignatureError
from hushtune.common.messages import pack, unpack_adapter, unpack_body
from hushtune.common.signed_files import KIND, Signed
from hushtune.common.wire_values import is_number, read_count, read_text, read_truth

RECORD, RECEIPT = "run record", "receipt"
"""The kinds of the two documents."""
_ASK = "handover"
_DIGEST = re.compile(r"[0-9a-f]{64}")
_RUN = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}")


@dataclass(frozen=True, kw_only=True, slots=True)
class RunRecord:
    """What a coordinator says of a finished run to one site.

    ``config``: sha256 of the settings' text (TOML), as they were signed for the run. ``rounds``:
    how many were run. ``rows``: the history, of which ``report_site.rows_of_site`` leaves what is
    about this site; ``refusals``: the rounds that it refused. ``sites``: all that took part.
    ``adapter``: sha256 of the adapter that comes with it, at the site's own rank; ``model``: that
    of the global one. ``software``: versions at the server. ``statement``: of a server that adds
    the noise, else None.
    """

    federation: str
    run: str
    site: str
    config: str
    rounds: int
    rows: tuple[Mapping[str, Any], ...]
    refusals: tuple[Mapping[str, Any], ...]
    lost_rounds: tuple[int, ...]
    sites: tuple[str, ...]
    adapter: str
    model: str
    software: Mapping[str, Any]
    statement: Mapping[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """The document that is signed."""
        return {KIND: RECORD, **asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> RunRecord:
        """Inverse of ``to_dict``; MessageError for anything else."""
        try:
            statement = raw["statement"]
            return cls(
                federation=read_text(raw, "federation"),
                run=_run(raw),
                site=read_text(raw, "site"),
                config=_digest(raw, "config"),
                rounds=read_count(raw, "rounds"),
                rows=tuple(_row(row) for row in _list(raw, "rows")),
                refusals=tuple(_refusal(row) for row in _list(raw, "refusals")),
                lost_rounds=tuple(int(number) for number in _list(raw, "lost_rounds")),
                sites=tuple(map(str, _list(raw, "sites"))),
                adapter=_digest(raw, "adapter"),
                model=_digest(raw, "model"),
                software=_object(raw["software"]),
                statement=None if statement is None else _object(statement),
            )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise MessageError("a run's record is damaged", given=str(error)[:200]) from error


@dataclass(frozen=True, kw_only=True, slots=True)
class Receipt:
    """What a site says of a run that was handed over to it.

    ``epsilon``, ``delta``, ``unit`` and ``guarantee`` are of the site's own statement, whose
    sha256 is ``statement``; epsilon is None where nothing is promised. ``ledger_head`` is the hash
    of the last charge, "" without a ledger; ``num_charges`` how many there are up to it, in all
    runs, and ``charges_of_run`` how many of them are of this one. ``time``: when, in UTC.
    """

    federation: str
    run: str
    site: str
    adapter: str
    epsilon: float | None
    delta: float
    unit: str
    guarantee: bool
    ledger_head: str
    num_charges: int
    charges_of_run: int
    statement: str
    time: str

    def to_dict(self) -> dict[str, Any]:
        """The document that is signed."""
        return {KIND: RECEIPT, **asdict(self)}

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any]) -> Receipt:
        """Inverse of ``to_dict``; MessageError for anything else."""
        try:
            epsilon = raw["epsilon"]
            head = read_text(raw, "ledger_head")
            if head and not _DIGEST.fullmatch(head):
                raise MessageError("a receipt's ledger_head is no hash", given=ascii(head)[:100])
            return cls(
                federation=read_text(raw, "federation"),
                run=_run(raw),
                site=read_text(raw, "site"),
                adapter=_digest(raw, "adapter"),
                epsilon=None if epsilon is None else _positive(epsilon),
                delta=_positive(raw["delta"]),
                unit=read_text(raw, "unit"),
                guarantee=read_truth(raw, "guarantee"),
                ledger_head=head,
                num_charges=read_count(raw, "num_charges"),
                charges_of_run=read_count(raw, "charges_of_run"),
                statement=_digest(raw, "statement"),
                time=read_text(raw, "time")[:40],
            )
        except (KeyError, TypeError, ValueError) as error:
            raise MessageError("a receipt is damaged", given=str(error)[:200]) from error


def encode_handover(record: Signed, adapter: AdapterState) -> RecordDict:
    """Flower records for a signed ``RunRecord`` and the adapter that it speaks of."""
    return pack({"ask": _ASK, "record": record.to_dict()}, adapter)


def decode_handover(content: RecordDict) -> tuple[Signed, AdapterState]:
    """Inverse of ``encode_handover``; who signed it, and what, is for the receiver to check.

    Raises MessageError, and SignatureError for a record without a signature.
    """
    body = unpack_body(content)
    if body.get("ask") != _ASK:
        raise MessageError("a site was asked something that it does not answer")
    return Signed.from_dict(body.get("record"), what="a run's record"), unpack_adapter(content)


def encode_receipt(receipt: Signed) -> RecordDict:
    """Flower records for a site's signed ``Receipt``."""
    return pack({"receipt": receipt.to_dict()}, None)


def decode_receipt(content: RecordDict) -> Signed:
    """Inverse of ``encode_receipt``; raises MessageError."""
    try:
        return Signed.from_dict(unpack_body(content).get("receipt"), what="a receipt")
    except SignatureError as error:
        raise MessageError("a site answers with no receipt", given=error.given) from error


def adapter_digest(adapter: AdapterState) -> str:
    """sha256 of an adapter's bytes, as they are sent and kept."""
    return hashlib.sha256(adapter.to_bytes()).hexdigest()


def _run(raw: Mapping[str, Any]) -> str:
    """A run's name that is the name of a folder too."""
    run = read_text(raw, "run")
    if not _RUN.fullmatch(run):
        raise MessageError(
            "a run's name cannot be that of a folder",
            given=ascii(run)[:100],
            expected="letters, digits, dots, dashes and underscores",
        )
    return run


def _digest(raw: Mapping[str, Any], key: str) -> str:
    value = read_text(raw, key)
    if not _DIGEST.fullmatch(value):
        raise MessageError(f"{key} of a document is no sha256", given=ascii(value)[:100])
    return value


def _list(raw: Mapping[str, Any], key: str) -> list[Any]:
    value = raw[key]
    if not isinstance(value, list | tuple):
        raise TypeError(f"{key} is no list")
    return list(cast("list[Any]", value))


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError("no object where there must be one")
    return cast("dict[str, Any]", value)


def _row(value: object) -> dict[str, Any]:
    """A row of the history as far as a statement reads it."""
    row = _object(value)
    read_count(row, "round")
    for texts in (_object(row["rejected"]), _object(row["noise"])):
        if not all(isinstance(text, str) for text in texts.values()):
            raise TypeError("a reason in a row of the history is no text")
    released = row.get("released")
    if released is not None:
        noise = _object(released)["noise_multiplier"]
        if noise is not None:
            _positive(noise)
        _list(released, "sites")
        _list(released, "missing")
    _list(row, "accepted")
    return row


def _refusal(value: object) -> dict[str, Any]:
    row = _object(value)
    read_count(row, "round")
    read_text(row, "code")
    read_text(row, "reason")
    return row


def _positive(value: object) -> float:
    if not is_number(value) or cast(float, value) < 0:
        raise ValueError("a number that must be finite and not negative")
    return float(cast(float, value))
