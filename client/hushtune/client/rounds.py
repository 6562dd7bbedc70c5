"""A site's part in a round: what it starts from, what it trains, what it keeps, what it sends."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from hushtune.client.charging import charged
from hushtune.client.memory import Purpose
from hushtune.client.site import Site
from hushtune.client.train import descent, sum_of_rates, train_locally
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import SecureSumError
from hushtune.common.lora_rules import RULES, kept_keys
from hushtune.common.messages import ClientUpdate, RoundOrder
from hushtune.common.privacy.ledger import Ledger, LedgerEntry
from hushtune.common.privacy.plan import Trust, Unit


def updated(order: RoundOrder, site: Site, *, asked: str) -> ClientUpdate:
    """The answer to an order, charged where the site has a ledger; raises what refuses it.

    ``asked``: the order's name.
    """
    site.policy.check(order)
    if site.ledger is None:
        found = trained(order, site, sequence=0)
        found.keep()
        return _update(order, site, found.sent)
    return _charged(order, site, site.ledger, asked=asked)


def _charged(order: RoundOrder, site: Site, ledger: Ledger, *, asked: str) -> ClientUpdate:
    if order.plan.trust is not Trust.SITE or order.plan.unit is Unit.CLIENT:
        # Its noise is a share of what protects a sum, or none: alone it protects nothing.
        raise SecureSumError(
            "an update that only a sum protects was asked for alone",
            given=f"trust {order.plan.trust}, unit {order.plan.unit}",
            expected="an order for a step of a secure sum",
        )
    num_charges = len(ledger.entries(site.dataset))
    computed: list[Trained] = []

    def compute() -> bytes:
        computed.append(trained(order, site, sequence=num_charges))
        return computed[-1].sent.to_bytes()

    def keep() -> None:
        computed[-1].keep()

    told, entry = charged(
        order.plan.event(order.local_steps),
        compute,
        run=order.charged_run,
        round=order.round,
        asked=asked,
        site=site,
        ledger=ledger,
        keep=keep,
    )
    return _update(order, site, AdapterState.from_bytes(told), charge=entry)


@dataclass(frozen=True)
class Trained:
    """What a round made: what is sent, and what keeps the rest at the site.

    ``keep`` is called along with the charge, so that of two processes of a site that train the same
    round both go on from what belongs to the reply that was paid for.
    """

    sent: AdapterState
    keep: Callable[[], None] = lambda: None


def trained(order: RoundOrder, site: Site, *, sequence: int) -> Trained:
    """Train as an order says; nothing is sent or kept yet, but for a control variate.

    ``sequence``: the number of charges before this one; see ``Site.batch_randomness``.
    """
    random = site.batch_randomness(order.charged_run, order.round, sequence)
    rule, task, units, noise = RULES[order.rule], site.task, site.units, site.noise
    if rule.gradient and not order.personal:
        return Trained(descent(order, task=task, units=units, noise=noise, random=random))
    start, control = _start(order, site), _correction(order, site)
    delta = train_locally(
        order,
        task=task,
        units=units,
        noise=noise,
        random=random,
        start=start,
        control=control,
    )
    if control is not None:
        _keep_control(order, site, delta)
    kept = kept_keys(rule, order.adapter.spec) & set(delta.keys)
    own = delta.keys if order.personal else tuple(sorted(kept))
    sent = delta.select(order.sent)
    if not own:
        return Trained(sent)
    purpose = Purpose.ADAPTER if order.personal else Purpose.FACTORS
    now = start.select(own) + delta.select(own)
    paid = _paid(site, order.charged_run)
    keep = partial(site.memory.keep, purpose, now, run=order.run, round=order.round, paid=paid)
    return Trained(sent, keep)


def own_model(adapter: AdapterState, site: Site, *, run: str) -> AdapterState:
    """The global adapter with what the site keeps for itself in place of its own factors.

    A personal adapter is not in it: figures are of the model that the federation trains.
    """
    kept = site.memory.newest(Purpose.FACTORS, run=run, paid=_paid(site, run))
    return adapter if kept is None else adapter.merge(kept)


def _start(order: RoundOrder, site: Site) -> AdapterState:
    """The order's adapter, with what is the site's own as it was when the round began."""
    purpose = Purpose.ADAPTER if order.personal else Purpose.FACTORS
    if not order.personal and not RULES[order.rule].kept:
        return order.adapter
    paid = _paid(site, order.charged_run)
    kept = site.memory.before(purpose, run=order.run, round=order.round, paid=paid)
    return order.adapter if kept is None else order.adapter.merge(kept)


def _paid(site: Site, charged_run: str) -> frozenset[int] | None:
    """The rounds that the site's ledger charges; None where it has no ledger."""
    if site.ledger is None:
        return None
    entries = site.ledger.entries(site.dataset)
    return frozenset(entry.round for entry in entries if entry.run == charged_run)


def _correction(order: RoundOrder, site: Site) -> AdapterState | None:
    """SCAFFOLD's ``c - c_k``; None where the order has no control variate."""
    if order.control is None:
        return None
    return order.control - _control_of(order, site)


def _control_of(order: RoundOrder, site: Site) -> AdapterState:
    """``c_k``, zero over what the site did not train before."""
    assert order.control is not None
    zero = 0.0 * order.control
    kept = _kept_control(order, site)
    if kept is None:
        return zero
    return zero.merge(kept.select(key for key in zero.keys if key in kept.tensors))


def _kept_control(order: RoundOrder, site: Site) -> AdapterState | None:
    return site.memory.before(Purpose.CONTROL, run=order.run, round=order.round)


def _keep_control(order: RoundOrder, site: Site, delta: AdapterState) -> None:
    """``c_k <- c_k - c + (x - y_k) / sum of the learning rates`` (option II of the paper)."""
    assert order.control is not None
    moved = (1.0 / sum_of_rates(order)) * delta
    now = _control_of(order, site) - order.control - moved
    before = _kept_control(order, site)  # of other turns too, whose tensors this one leaves alone
    whole = now if before is None else before.merge(now)
    site.memory.keep(Purpose.CONTROL, whole, run=order.run, round=order.round)


def _update(
    order: RoundOrder, site: Site, delta: AdapterState, charge: LedgerEntry | None = None
) -> ClientUpdate:
    return ClientUpdate(
        run=order.run,
        round=order.round,
        site=site.name,
        delta=delta,
        num_examples=site.public_size,
        charge=charge,
        noise=site.noise.description if site.ledger is not None else "none",
        encoding=order.encoding,
    )
