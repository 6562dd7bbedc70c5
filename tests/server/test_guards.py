"""What an estimate says of itself where it guards against nobody."""

from __future__ import annotations

from typing import Any

import pytest

from hushtune.common.config import AggregationConfig
from hushtune.server.aggregation.guards import unguarded, withstood


def asked(estimate: str, **others: Any) -> AggregationConfig:
    return AggregationConfig.model_validate({"estimate": estimate, **others})


@pytest.mark.parametrize(
    ("estimate", "least"),
    [("krum", 5), ("multi_krum", 5), ("bulyan", 7), ("median", 3), ("geometric_median", 3)],
)
def test_it_warns_up_to_the_least_number_that_guards_and_no_further(
    estimate: str, least: int
) -> None:
    told = unguarded(asked(estimate), least - 1)
    assert told is not None
    assert f"'{estimate}'" in told.message
    assert f"of {least - 1} updates a round it withstands 0" in told.message
    assert f"{least} sites or more" in told.remedy
    assert unguarded(asked(estimate), least) is None
    assert withstood(asked(estimate), least) == 1


def test_it_names_estimates_that_do_guard_and_go_with_the_rule() -> None:
    told = unguarded(asked("krum"), 4)
    assert told is not None
    assert told.remedy.endswith("median or trimmed_mean or geometric_median")
    told = unguarded(asked("krum", rule="fedit"), 4)
    assert told is not None
    assert told.remedy.endswith("aggregation.estimate to geometric_median")


def test_none_is_warned_of_where_nothing_was_promised_or_a_bound_is_set() -> None:
    assert unguarded(asked("mean"), 2) is None
    assert unguarded(asked("norm_clipping", norm_bound=1.0), 2) is None
    assert unguarded(asked("norm_clipping"), 2) is not None


def test_an_explicit_zero_is_told_too() -> None:
    told = unguarded(asked("trimmed_mean", faulty_sites=0), 9)
    assert told is not None
    assert "faulty_sites" in told.remedy
