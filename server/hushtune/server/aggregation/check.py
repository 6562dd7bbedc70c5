"""What must hold of an update before it may touch the global adapter; each refusal has a name."""

from __future__ import annotations

import math

from hushtune.common.errors import UpdateRejectedError
from hushtune.common.messages import ClientUpdate, RoundOrder
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.common.privacy.plan import DpSgdEvent

REASONS = (
    "run",
    "round",
    "site",
    "encoding",
    "keys",
    "shape",
    "dtype",
    "nonfinite",
    "norm",
    "num_examples",
    "charge",
)
"""The names of all reasons, in the order in which they are looked for."""


def check_update(update: ClientUpdate, *, order: RoundOrder, max_norm: float) -> None:
    """Raise UpdateRejectedError, with its ``reason`` one of ``REASONS``, or return.

    ``order`` is what this site was asked for; ``max_norm`` bounds the joint Euclidean norm of the
    change. A site that adds noise must show the charge of exactly the steps that it was asked for;
    with the noise at the server, or none, it has nothing to charge.
    """
    _identity(update, order)
    _tensors(update, order, max_norm)
    if update.num_examples != order.num_examples:
        _reject(order, "num_examples", given=update.num_examples, expected=order.num_examples)
    _charge(update, order)


def _identity(update: ClientUpdate, order: RoundOrder) -> None:
    if update.run != order.run:
        _reject(order, "run", given=update.run, expected=order.run)
    if update.round != order.round:
        _reject(order, "round", given=update.round, expected=order.round)
    if update.site != order.site:
        _reject(order, "site", given=update.site, expected=order.site)
    if update.encoding != order.encoding:
        _reject(order, "encoding", given=update.encoding, expected=order.encoding)


def _tensors(update: ClientUpdate, order: RoundOrder, max_norm: float) -> None:
    delta = update.delta
    if delta.spec != order.adapter.spec:
        _reject(order, "keys", given="another adapter's description", expected="the order's")
    if delta.keys != order.sent:
        odd = ", ".join(sorted(set(delta.keys) ^ set(order.sent)))
        _reject(order, "keys", given=f"missing or not asked for: {odd}", expected="what was asked")
    for key, tensor in delta.tensors.items():
        asked = order.adapter.tensors[key]
        if tensor.shape != asked.shape:
            given = f"{key} {tuple(tensor.shape)}"
            _reject(order, "shape", given=given, expected=tuple(asked.shape))
        if tensor.dtype != asked.dtype:
            _reject(order, "dtype", given=f"{key} {tensor.dtype}", expected=asked.dtype)
    if not delta.is_finite():
        _reject(order, "nonfinite", given="NaN or infinity", expected="finite numbers")
    norm = delta.norm()
    if not math.isfinite(norm) or norm > max_norm:
        _reject(order, "norm", given=f"{norm:g}", expected=f"at most {max_norm:g}")


def _charge(update: ClientUpdate, order: RoundOrder) -> None:
    charge = update.charge
    if not order.plan.trust.charges_sites:
        if charge is not None:
            _reject(order, "charge", given="a charge", expected="none: nothing is noised there")
        return
    check_charge(charge, order, order.plan.event(order.local_steps))


def check_charge(charge: LedgerEntry | None, order: RoundOrder, event: DpSgdEvent) -> None:
    """Raise UpdateRejectedError unless a charge is of exactly this event and order."""
    if charge is None:
        _reject(order, "charge", given="none", expected=event.to_dict())
    elif charge.event != event:
        _reject(order, "charge", given=charge.event.to_dict(), expected=event.to_dict())
    elif (charge.run, charge.round) != (order.charged_run, order.round):
        given = f"of run {charge.run}, round {charge.round}"
        expected = f"run {order.charged_run}, round {order.round}"
        _reject(order, "charge", given=given, expected=expected)


def _reject(order: RoundOrder, reason: str, *, given: object, expected: object) -> None:
    raise UpdateRejectedError(
        f"the update of site {order.site} in round {order.round} was rejected: {reason}",
        reason=reason,
        given=str(given)[:300],
        expected=str(expected),
    )
