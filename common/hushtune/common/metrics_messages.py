"""MetricsOrder and MetricsReport as Flower records: how a site tells how the global model does."""

from __future__ import annotations

import math
from dataclasses import dataclass

from flwr.app import RecordDict

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import HushtuneError, MessageError
from hushtune.common.messages import (
    Refusal,
    decode_refusal,
    pack,
    read_run,
    unpack_adapter,
    unpack_body,
)
from hushtune.common.privacy.ledger import LedgerEntry
from hushtune.common.privacy.plan import MOST_NOISE_MULTIPLIER, Relation, Unit
from hushtune.common.wire_values import read_count, read_text, refuse_unknown

_ORDER_KEYS = frozenset(["run", "round", "site", "noise_multiplier", "unit", "relation"])
MOST_TOLD_LOSS = 1e6
"""A report with a larger loss is damaged."""
SENSITIVITY = math.sqrt(2.0)
"""The most, in L2 norm, by which one unit moves the sum of such figures: see ``client.metrics``."""


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsOrder:
    """Asks a site for score and loss of ``adapter`` on its validation rows.

    ``noise_multiplier`` is in units of what one unit can change; None asks for the plain figures.
    """

    run: str
    round: int
    site: str
    adapter: AdapterState
    noise_multiplier: float | None
    unit: Unit
    relation: Relation


@dataclass(frozen=True, kw_only=True, slots=True)
class MetricsReport:
    """A site's answer; ``charge`` is what it cost, None for plain figures."""

    run: str
    round: int
    site: str
    score: float  # in [0, 1]; what it is follows from the kind of supervision
    loss: float
    charge: LedgerEntry | None


def encode_metrics_order(order: MetricsOrder) -> RecordDict:
    """Flower records for an order."""
    body = {
        "run": order.run,
        "round": order.round,
        "site": order.site,
        "noise_multiplier": order.noise_multiplier,
        "unit": str(order.unit),
        "relation": str(order.relation),
    }
    return pack(body, order.adapter)


def decode_metrics_order(content: RecordDict) -> MetricsOrder:
    """Inverse of ``encode_metrics_order``; raises MessageError for anything else."""
    body = unpack_body(content)
    refuse_unknown(body, _ORDER_KEYS)
    adapter = unpack_adapter(content)
    try:
        noise = body["noise_multiplier"]
        order = MetricsOrder(
            run=read_run(body),
            round=read_count(body, "round"),
            site=read_text(body, "site"),
            adapter=adapter,
            noise_multiplier=None
            if noise is None
            else _number(noise, least=0.0, most=MOST_NOISE_MULTIPLIER),
            unit=Unit(read_text(body, "unit")),
            relation=Relation(read_text(body, "relation")),
        )
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MessageError("an order for metrics is damaged", given=str(error)) from error
    if not adapter.is_whole():
        raise MessageError("an order for metrics does not carry the whole adapter")
    return order


def encode_report(report: MetricsReport) -> RecordDict:
    """Flower records for a report; equal reports give equal records."""
    charge = None if report.charge is None else report.charge.to_dict()
    body = {
        "run": report.run,
        "round": report.round,
        "site": report.site,
        "figures": {"score": report.score, "loss": report.loss},
        "charge": charge,
    }
    return pack(body, None)


def decode_report(content: RecordDict) -> MetricsReport | Refusal:
    """Inverse of ``encode_report`` and of a refusal's encoding; raises MessageError."""
    body = unpack_body(content)
    if body.get("refused"):
        return decode_refusal(content)
    try:
        charge = body["charge"]
        return MetricsReport(
            run=read_text(body, "run"),
            round=read_count(body, "round"),
            site=read_text(body, "site"),
            score=_number(body["figures"]["score"], least=0.0, most=1.0),
            loss=_number(body["figures"]["loss"], least=0.0, most=MOST_TOLD_LOSS),
            charge=None if charge is None else LedgerEntry.from_dict(charge),
        )
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise MessageError("a report of metrics is damaged", given=str(error)) from error


def _number(value: object, *, least: float, most: float) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not least <= value <= most:
        raise MessageError(
            "a figure of a message is out of range",
            given=repr(value)[:100],
            expected=f"{least:g} to {most:g}",
        )
    return float(value)
