"""Updates that must not touch the global adapter, each with the name of its reason."""

from __future__ import annotations

import pickle
from dataclasses import replace

import pytest
import torch

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import UpdateRejectedError
from hushtune.common.messages import ClientUpdate, RoundOrder
from hushtune.common.privacy.ledger_entry import LedgerEntry
from hushtune.server.aggregation.check import REASONS, check_update
from hushtune.server.orders import make_orders

from .fake_grid import SPEC, charge, config, plan, state, trained


def order(*, private: bool = True) -> RoundOrder:
    orders = make_orders(
        state(0),
        run="run",
        round=3,
        config=config(),
        plans={"north": plan(private=private)},
        sizes={"north": 100},
    )
    return orders["north"]


def with_tensor(update: ClientUpdate, key: str, tensor: torch.Tensor) -> ClientUpdate:
    """The update with one tensor replaced behind the back of AdapterState's own checks."""
    delta = AdapterState(update.delta.spec, dict(update.delta.tensors))
    object.__setattr__(delta, "tensors", {**delta.tensors, key: tensor})
    return replace(update, delta=delta)


def other_charge(asked: RoundOrder, **changes: object) -> LedgerEntry:
    entry = charge(asked)
    assert entry is not None
    return replace(entry, **changes)  # type: ignore[arg-type]


@pytest.mark.parametrize("private", [True, False])
def test_an_honest_update_passes(private: bool) -> None:
    asked = order(private=private)
    check_update(trained(asked), order=asked, max_norm=1e3)


B = "layer.q.lora_B"
FAULTS = {
    "run": [lambda u, o: replace(u, run="another")],
    "round": [lambda u, o: replace(u, round=2)],
    "site": [lambda u, o: replace(u, site="south")],
    "encoding": [lambda u, o: replace(u, encoding="int8")],
    "keys": [
        lambda u, o: replace(u, delta=u.delta.select(["head.bias"])),
        lambda u, o: replace(u, delta=state(1)),
        lambda u, o: replace(
            u, delta=AdapterState(replace(SPEC, base="0" * 64), dict(u.delta.tensors))
        ),
    ],
    "shape": [
        lambda u, o: with_tensor(u, B, torch.zeros(2, 7)),
        lambda u, o: with_tensor(u, B, torch.zeros(())),
    ],
    "dtype": [lambda u, o: with_tensor(u, B, torch.zeros(7, 2, dtype=torch.float64))],
    "nonfinite": [
        lambda u, o: with_tensor(u, B, torch.full((7, 2), torch.nan)),
        lambda u, o: with_tensor(u, B, torch.full((7, 2), -torch.inf)),
    ],
    "norm": [lambda u, o: replace(u, delta=1e5 * u.delta)],
    "num_examples": [lambda u, o: replace(u, num_examples=101)],
    "charge": [
        lambda u, o: replace(u, charge=None),
        lambda u, o: replace(u, charge=other_charge(o, event=o.plan.event(1))),
        lambda u, o: replace(u, charge=other_charge(o, round=2)),
        lambda u, o: replace(u, charge=other_charge(o, run="another")),
    ],
}


def test_every_reason_has_a_fault() -> None:
    assert tuple(FAULTS) == REASONS


@pytest.mark.parametrize(
    ("reason", "fault"), [(name, fault) for name, faults in FAULTS.items() for fault in faults]
)
def test_each_fault_is_named(reason: str, fault: object) -> None:
    asked = order()
    bad = fault(trained(asked), asked)  # type: ignore[operator]
    with pytest.raises(UpdateRejectedError, match=f"north.*: {reason}") as caught:
        check_update(bad, order=asked, max_norm=1e3)
    assert caught.value.reason == reason
    assert pickle.loads(pickle.dumps(caught.value)).reason == reason


def test_without_privacy_a_charge_is_not_believed() -> None:
    asked = order(private=False)
    update = replace(trained(asked), charge=charge(order()))
    with pytest.raises(UpdateRejectedError) as caught:
        check_update(update, order=asked, max_norm=1e3)
    assert caught.value.reason == "charge"


def test_the_norm_is_joint_over_all_tensors() -> None:
    asked = order()
    update = trained(asked)
    check_update(update, order=asked, max_norm=update.delta.norm() * 1.001)
    with pytest.raises(UpdateRejectedError):
        check_update(update, order=asked, max_norm=update.delta.norm() * 0.999)
