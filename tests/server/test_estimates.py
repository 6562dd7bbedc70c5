"""The weighted mean: what it computes, in which order, and what it refuses."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import FederationError
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation.estimates import by_size, uniform, weighted_mean

from .fake_grid import state


def update(site: str, delta: AdapterState, num_examples: int = 1) -> ClientUpdate:
    return ClientUpdate(
        run="r",
        round=1,
        site=site,
        delta=delta,
        num_examples=num_examples,
        charge=None,
        noise="none",
    )


def test_it_is_the_weighted_mean_in_float64() -> None:
    updates = [update(site, state(place)) for place, site in enumerate("abc")]
    mean = weighted_mean(updates, {"a": 1.0, "b": 2.0, "c": 5.0})
    for key, tensor in mean.tensors.items():
        parts = [u.delta.tensors[key].double() for u in updates]
        expected = (parts[0] + 2 * parts[1] + 5 * parts[2]) / 8
        torch.testing.assert_close(tensor, expected.float(), rtol=1e-7, atol=0)


def test_each_client_counts_not_only_the_first() -> None:
    updates = [update("a", state(0)), update("b", state(1))]
    assert weighted_mean(updates, {"a": 0.0, "b": 3.0}).digest() == state(1).digest()


def test_one_update_is_its_own_mean_bit_for_bit() -> None:
    assert weighted_mean([update("a", state(4))], {"a": 0.1}).digest() == state(4).digest()


@settings(max_examples=20, deadline=None)
@given(st.lists(st.floats(1e-3, 1e3), min_size=4, max_size=4))
def test_the_order_of_arrival_changes_no_bit(weights: list[float]) -> None:
    updates = [
        update(site, 10.0 ** (2 * place) * state(place)) for place, site in enumerate("abcd")
    ]
    by_site = dict(zip("abcd", weights, strict=True))
    digests = {weighted_mean(order, by_site).digest() for order in itertools.permutations(updates)}
    assert len(digests) == 1


def test_sums_do_not_lose_what_float32_would() -> None:
    big, small = state(0).map(torch.ones_like), state(0).map(torch.ones_like)
    updates = [update("a", 1e8 * big), update("b", 1.0 * small), update("c", -1e8 * big)]
    mean = weighted_mean(updates, uniform(updates))
    assert mean.tensors["head.bias"].tolist() == pytest.approx([1 / 3] * 3, rel=1e-6)


def test_weightings() -> None:
    updates = [update("a", state(0), 30), update("b", state(1), 10)]
    assert by_size(updates) == {"a": 30.0, "b": 10.0}
    assert uniform(updates) == {"a": 1.0, "b": 1.0}


@pytest.mark.parametrize(
    ("sites", "weights", "words"),
    [
        ("", {}, "no updates"),
        ("aa", {"a": 1.0}, "twice"),
        ("ab", {"a": 1.0}, "weight of site b"),
        ("ab", {"a": 1.0, "b": -1.0}, "weight of site b"),
        ("ab", {"a": math.nan, "b": 1.0}, "weight of site a"),
        ("ab", {"a": math.inf, "b": 1.0}, "weight of site a"),
        ("ab", {"a": 0.0, "b": 0.0}, "add up to nothing"),
        ("ab", {"a": 1.5e308, "b": 1.5e308}, "add up|weight"),
    ],
)
def test_refusals(sites: str, weights: dict[str, float], words: str) -> None:
    with pytest.raises(FederationError, match=words):
        weighted_mean([update(site, state(0)) for site in sites], weights)


def test_updates_over_different_tensors_have_no_mean() -> None:
    updates = [update("a", state(0)), update("b", state(0, ["head.bias"]))]
    with pytest.raises(FederationError, match="different tensors"):
        weighted_mean(updates, uniform(updates))
    short = AdapterState(state(0).spec, {"head.bias": torch.zeros(1)})
    updates = [update("a", state(0, ["head.bias"])), update("b", short)]
    with pytest.raises(FederationError, match="different tensors"):
        weighted_mean(updates, uniform(updates))
