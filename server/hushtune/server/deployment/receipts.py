"""The sites' receipts at the end of a run: asked for, waited for, checked and kept."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from flwr.app import Message
from flwr.common.constant import ErrorCode
from flwr.serverapp import Grid

from hushtune.common.adapter import AdapterState
from hushtune.common.config import RunConfig
from hushtune.common.deployment import SiteCard
from hushtune.common.errors import HushtuneError, MessageError
from hushtune.common.handover_messages import (
    RECEIPT,
    Receipt,
    RunRecord,
    decode_receipt,
    encode_handover,
)
from hushtune.common.planning import site_plan
from hushtune.common.privacy.figures import bounded
from hushtune.common.signed_files import Signed
from hushtune.common.site_files import receipt_file
from hushtune.common.verify_federation import receipt_problem
from hushtune.server.replies import short
from hushtune.server.spending import spent
from hushtune.server.strategy import FederationResult

AWAY, SILENT = "not connected", "no answer"
"""Why a site has signed nothing, where it may yet."""
ASK_SECONDS = 30.0
"""How long a site that came back has to answer until it is asked once more: what it was asked
before it was killed may be lost."""
_POLL_SECONDS = 0.5

Waiting = Callable[[Sequence[str]], None]
"""Told which sites are waited for, whenever that changes."""
log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Handed:
    """What is handed over, by whom and to whom; ``records`` by site, each with its adapter."""

    config: RunConfig
    result: FederationResult
    records: Mapping[str, tuple[RunRecord, AdapterState]]
    cards: Mapping[str, SiteCard]
    key: Ed25519PrivateKey
    out: Path


def ask_sites(
    grid: Grid,
    nodes: Mapping[str, int],
    handed: Handed,
    *,
    timeout: float,
    patience: float,
    waiting: Waiting = lambda _: None,
) -> dict[str, str]:
    """Hand over to all sites and keep the good receipts; why the others are not there, by site.

    Sites that are connected are asked at once, for ``timeout`` seconds. Where one has not answered
    or is not connected, and nothing of it is kept from before, it is waited for during ``patience``
    more and asked when it is there: Flower takes a node that was killed for connected, and lets it
    in no more, until its last sign of life is a minute or more old.
    """
    missing = dict.fromkeys(handed.records, AWAY)
    kept, told = set(kept_receipts(handed)), None
    seconds, deadline = timeout, None
    while True:
        online = set(grid.get_node_ids())
        there = [site for site in _left(missing) if nodes.get(site) in online]
        missing |= {site: AWAY for site in _left(missing) if site not in there}
        _exchange(grid, {site: nodes[site] for site in there}, handed, missing, timeout=seconds)
        left = [site for site in _left(missing) if site not in kept]
        deadline = time.monotonic() + patience if deadline is None else deadline
        if not left or time.monotonic() >= deadline:
            return missing
        if left != told:
            told = left
            waiting(left)
        seconds = min(timeout, ASK_SECONDS)
        time.sleep(min(_POLL_SECONDS, patience))


def kept_receipts(handed: Handed) -> dict[str, Receipt]:
    """The good receipts in the run's folder, from whichever hand-over; others are removed."""
    found: dict[str, Receipt] = {}
    for site in handed.records:
        path = receipt_file(handed.out, site)
        if not path.is_file():
            continue
        try:
            found[site] = _checked(Signed.read(path), site, handed)
        except HushtuneError as error:
            log.warning(
                "a receipt of %s that does not fit is removed: %s",
                site,
                error.message,
                extra={"site": site},
            )
            path.unlink()
    return found


def shown_epsilon(config: RunConfig, result: FederationResult, site: str) -> float | None:
    """What a site spent at least, by the charges that it has shown; None where nothing is known."""
    plan = site_plan(config, site)
    if not plan.trust.charges_sites:
        return None
    found = spent({site: plan}, result.charges)[site]
    return None if found is None else bounded(found)


def _left(missing: Mapping[str, str]) -> list[str]:
    """Those that may sign yet; who has refused is not asked again."""
    return [site for site, reason in missing.items() if reason in (AWAY, SILENT)]


def _exchange(
    grid: Grid,
    nodes: Mapping[str, int],
    handed: Handed,
    missing: dict[str, str],
    *,
    timeout: float,
) -> None:
    """Ask some sites; those that have signed well are taken out of ``missing``."""
    missing |= dict.fromkeys(nodes, SILENT)
    messages = [
        Message(
            encode_handover(
                Signed.by(handed.key, handed.records[site][0].to_dict()), handed.records[site][1]
            ),
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
                if message.error.code == ErrorCode.NODE_UNAVAILABLE:
                    missing[site] = AWAY
                    continue
                raise MessageError(f"failed: {message.error.reason or 'without a reason'}")
            signed = decode_receipt(message.content)
            _checked(signed, site, handed)
        except HushtuneError as error:
            missing[site] = short(error.message)
            continue
        signed.write(receipt_file(handed.out, site))
        log.info("%s has signed its receipt", site, extra={"site": site})
        del missing[site]


def _checked(signed: Signed, site: str, handed: Handed) -> Receipt:
    """A site's receipt; SignatureError or MessageError unless it is of this run and holds."""
    record, config, result = handed.records[site][0], handed.config, handed.result
    receipt = Receipt.from_dict(signed.checked(handed.cards[site].sign_key, kind=RECEIPT))
    expected = {
        "federation": (receipt.federation, record.federation),
        "run": (receipt.run, record.run),
        "site": (receipt.site, record.site),
        "model": (receipt.adapter, record.adapter),
    }
    for what, (given, wanted) in expected.items():
        if given != wanted:
            raise MessageError(f"its receipt is of another {what}", given=given, expected=wanted)
    rows = result.charges.get(site, ())
    problem = receipt_problem(
        receipt.to_dict(),
        epsilon=shown_epsilon(config, result, site),
        delta=site_plan(config, site).delta,
        num_charges=len(rows),
        last=(rows[-1]["sequence"], rows[-1]["hash"]) if rows else None,
    )
    if problem is not None:
        raise MessageError(f"its receipt cannot be right: {problem}")
    return receipt
