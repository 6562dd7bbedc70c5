"""benchmarks/audit_power.py: faults are found in scores that are drawn as the mechanism does."""

from __future__ import annotations

from typing import Any

import pytest

from .programs import benchmark


@pytest.fixture(scope="module")
def power() -> Any:
    return benchmark("audit_power")


@pytest.mark.parametrize(
    ("title", "found"),
    [("sound", 0), ("`no-noise` (`no-clip` is as plain)", 3), ("`half-noise`", 3)],
)
def test_a_fault_is_found_and_a_sound_run_is_not_accused(
    power: Any, title: str, found: int
) -> None:
    (case,) = (case for case in power.CASES if case.title == title)
    plan, rounds = power.planned(case)
    assert rounds == 20
    assert sum(power.is_found(case, plan, rounds, 1500, seed) for seed in range(3)) == found


def test_an_accountant_that_forgets_claims_one_round(power: Any) -> None:
    """The same scores refute the claim of one round, and not that of all."""
    case = power.Case("forgetful", last_alone=True)
    plan, rounds = power.planned(case)
    assert power.is_found(case, plan, rounds, 1500, 0)
    assert not power.is_found(power.Case("sound"), plan, rounds, 1500, 0)
