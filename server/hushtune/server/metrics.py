"""The sites' own figures on the global model: asked for, checked, and joined by public weights."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass

from flwr.app import Message
from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.errors import HushtuneError
from hushtune.common.messages import METRICS_RUN, Refusal
from hushtune.common.metrics_messages import (
    MetricsOrder,
    MetricsReport,
    decode_report,
    encode_metrics_order,
)
from hushtune.common.planning import public_held_out, site_rank
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import Relation, Unit
from hushtune.server.aggregation.lora_rules import SERVER_RULES
from hushtune.server.chains import NOTHING_SHOWN, Shown
from hushtune.server.checkpoint import Row
from hushtune.server.replies import refusal_row, refusal_words, short

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Released:
    """What the sites told in a round, as a row for the history, what it cost each, and who refused.

    ``refusals`` are rows with round, code and reason.
    """

    row: Row
    charges: Mapping[str, LedgerEntry]
    refusals: Mapping[str, Row]


def ask_for_metrics(
    grid: Grid,
    state: AdapterState,
    *,
    run: str,
    round: int,
    config: RunConfig,
    nodes: Mapping[str, int],
    timeout: float,
    shown: Shown = NOTHING_SHOWN,
) -> Released:
    """Ask every site how ``state`` does on its held-out rows; those that do not say are named.

    ``shown``: the sites' charges so far; a new one counts, whatever comes of the figures.
    """
    noised = config.metrics.release == "noised"
    give = SERVER_RULES[config.aggregation.rule].give
    orders = {
        site: MetricsOrder(
            run=run,
            round=round,
            site=site,
            adapter=give(state, site_rank(config, site)),
            noise_multiplier=config.metrics.noise_multiplier if noised else None,
            unit=Unit(config.privacy.unit),
            relation=Relation(config.privacy.relation),
        )
        for site in sorted(nodes)
    }
    messages = [
        Message(
            encode_metrics_order(order),
            dst_node_id=nodes[site],
            message_type="evaluate",
            group_id=str(round),
        )
        for site, order in orders.items()
    ]
    sites = {node: site for site, node in nodes.items()}
    reports: dict[str, MetricsReport] = {}
    missing = dict.fromkeys(orders, "no answer")
    refusals: dict[str, Row] = {}
    charges: dict[str, LedgerEntry] = {}
    for message in grid.send_and_receive(messages, timeout=timeout) if messages else ():
        site = sites.get(message.metadata.src_node_id)
        if site is None or site in reports:
            continue
        found = _read(message, orders[site])
        if isinstance(found, MetricsReport) and found.charge is not None:
            charges[site] = found.charge
            broken = shown.objection(site, found.charge)
            found = found if broken is None else short(f"rejected, ledger: {broken}")
        if isinstance(found, MetricsReport):
            reports[site] = found
            missing.pop(site)
        elif isinstance(found, Refusal):
            missing[site] = refusal_words(found)
            refusals[site] = refusal_row(found, round, of="figures of the round: ")
        else:
            missing[site] = found
    for site, reason in missing.items():
        of = {"site": site}
        log.warning("site %s tells no figures in round %d: %s", site, round, reason, extra=of)
    score = config.task.of.score
    sizes = {site: public_held_out(config, site) for site in reports}
    row: Row = {
        "noised": noised,
        "noise_multiplier": config.metrics.noise_multiplier if noised else None,
        "sites": {s: {score: r.score, "loss": r.loss} for s, r in sorted(reports.items())},
        "missing": missing,
    }
    for name, key in ((score, "score"), ("loss", "loss")):
        total = sum(sizes[site] * getattr(report, key) for site, report in sorted(reports.items()))
        row[name] = total / sum(sizes.values()) if reports else None
    return Released(row, dict(sorted(charges.items())), refusals)


def _read(message: Message, order: MetricsOrder) -> MetricsReport | Refusal | str:
    """The report or refusal that answers an order, or why there is neither."""
    if message.has_error():
        return short(f"failed: {message.error.reason or 'without a reason'}")
    try:
        reply = decode_report(message.content)
    except HushtuneError as error:
        return short(f"rejected: {error.message}")
    if isinstance(reply, Refusal):
        return reply
    if (reply.run, reply.round, reply.site) != (order.run, order.round, order.site):
        return "rejected: it answers another order"
    if reply.charge is not None and (
        reply.charge.run != order.run + METRICS_RUN
        or reply.charge.release.noise_multiplier != order.noise_multiplier
    ):
        return "rejected: its charge is for something else"
    return reply
