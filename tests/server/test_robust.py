"""Robust estimates against dense references that were written from the papers, in plain numpy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import FederationError
from hushtune.common.messages import ClientUpdate
from hushtune.server.aggregation import robust, selection
from hushtune.server.aggregation.estimates import (
    Estimate,
    by_size,
    euclidean_gram,
    mean,
    uniform,
)

from .fake_grid import SHAPES, SPEC
from .test_estimates import update

Matrix = NDArray[np.float64]
SIZE = sum(int(np.prod(shape)) for shape in SHAPES.values())


def adapter(values: Matrix) -> AdapterState:
    """A state of ``SIZE`` numbers."""
    ends = np.cumsum([np.prod(shape) for shape in SHAPES.values()])
    parts = np.split(values.astype(np.float32), ends[:-1])
    return AdapterState(
        SPEC,
        {
            key: torch.from_numpy(part.copy()).reshape(shape)
            for (key, shape), part in zip(SHAPES.items(), parts, strict=True)
        },
    )


def flat(state: AdapterState) -> Matrix:
    return np.concatenate([t.double().numpy().ravel() for t in state.tensors.values()])


def updates_of(rows: Matrix, sizes: Sequence[int] | None = None) -> list[ClientUpdate]:
    """Updates of sites a, b, ... in the order of the rows."""
    sizes = sizes or [1] * len(rows)
    names = [f"site {place:03}" for place in range(len(rows))]
    return [update(n, adapter(row), s) for n, row, s in zip(names, rows, sizes, strict=True)]


def ask(estimate: Estimate, updates: Sequence[ClientUpdate]) -> Matrix:
    ordered = sorted(updates, key=lambda u: u.site)
    gram = euclidean_gram(ordered) if estimate.uses_gram else np.zeros((0, 0))
    return flat(estimate.combine(ordered, by_size(ordered), gram))


# ----------------------------------------------------------------------------- references ----


def dense_trimmed(rows: Matrix, f: int) -> Matrix:
    found = []
    for column in rows.T:
        left = list(column)
        for _ in range(f):
            left.remove(max(left))
            left.remove(min(left))
        found.append(np.mean(left))
    return np.array(found)


def dense_scores(rows: Matrix, f: int) -> list[float]:
    scores = []
    for i, row in enumerate(rows):
        away = sorted(np.sum((row - other) ** 2) for j, other in enumerate(rows) if j != i)
        scores.append(float(np.sum(away[: max(1, len(rows) - f - 2)])))
    return scores


def dense_krum(rows: Matrix, f: int) -> Matrix:
    return rows[int(np.argmin(dense_scores(rows, f)))]


def dense_multi_krum(rows: Matrix, f: int) -> Matrix:
    scores = dense_scores(rows, f)
    best = sorted(range(len(rows)), key=lambda k: (scores[k], k))[: len(rows) - f - 2]
    return rows[best].mean(axis=0)


def dense_bulyan(rows: Matrix, f: int) -> Matrix:
    left, chosen = list(range(len(rows))), []
    for _ in range(len(rows) - 2 * f):
        best = left[int(np.argmin(dense_scores(rows[left], f)))]
        chosen.append(best)
        left.remove(best)
    found = []
    for column in rows[sorted(chosen)].T:
        center = np.median(column)
        nearest = sorted(column, key=lambda v: abs(v - center))[: len(chosen) - 2 * f]
        found.append(np.mean(nearest))
    return np.array(found)


def dense_clipped(rows: Matrix, weights: Matrix, bound: float) -> Matrix:
    norms = np.linalg.norm(rows, axis=1)
    scaled = [row * min(1.0, bound / n if n else 1.0) for row, n in zip(rows, norms, strict=True)]
    return weights @ np.array(scaled) / weights.sum()


def dense_geometric_median(rows: Matrix, weights: Matrix) -> Matrix:
    at = weights @ rows / weights.sum()
    for _ in range(20_000):
        pull = weights / np.maximum(np.linalg.norm(rows - at, axis=1), 1e-6)
        before, at = at, pull @ rows / pull.sum()
        if np.linalg.norm(at - before) < 1e-13:
            break
    return at


def cost(rows: Matrix, weights: Matrix, at: Matrix) -> float:
    return float(weights @ np.linalg.norm(rows - at, axis=1))


# -------------------------------------------------------------------------------- against ----


@st.composite
def made(draw: st.DrawFn, least: Callable[[int], int]) -> tuple[Matrix, int]:
    """Rows and f: spread over magnitudes, or small whole numbers, which are full of ties."""
    f = draw(st.integers(0, 2))
    count = draw(st.integers(least(f), least(f) + 4))
    random = np.random.default_rng(draw(st.integers(0, 2**32)))
    if draw(st.booleans()):
        return random.integers(-2, 3, size=(count, SIZE)).astype(float), f
    rows = random.normal(size=(count, SIZE)) * 10.0 ** random.integers(-2, 3, size=(count, 1))
    return rows.astype(np.float32).astype(float), f


def close(got: Matrix, expected: Matrix) -> None:
    np.testing.assert_allclose(got, expected, rtol=2e-6, atol=1e-6 * np.abs(expected).max())


@settings(max_examples=40, deadline=None)
@given(made(robust.majority))
def test_the_median(case: tuple[Matrix, int]) -> None:
    rows, f = case
    close(ask(robust.coordinate_median(faulty=f), updates_of(rows)), np.median(rows, axis=0))


@settings(max_examples=40, deadline=None)
@given(made(robust.majority))
def test_the_trimmed_mean(case: tuple[Matrix, int]) -> None:
    rows, f = case
    close(ask(robust.trimmed_mean(faulty=f), updates_of(rows)), dense_trimmed(rows, f))
    most = ask(robust.trimmed_mean(), updates_of(rows))
    close(most, np.median(rows, axis=0))


@settings(max_examples=40, deadline=None)
@given(made(selection.least_of_krum))
def test_krum_and_multi_krum(case: tuple[Matrix, int]) -> None:
    rows, f = case
    close(ask(selection.krum(faulty=f), updates_of(rows)), dense_krum(rows, f))
    close(ask(selection.multi_krum(faulty=f), updates_of(rows)), dense_multi_krum(rows, f))


@settings(max_examples=40, deadline=None)
@given(made(selection.least_of_bulyan))
def test_bulyan(case: tuple[Matrix, int]) -> None:
    rows, f = case
    close(ask(selection.bulyan(faulty=f), updates_of(rows)), dense_bulyan(rows, f))


@settings(max_examples=40, deadline=None)
@given(made(robust.majority), st.floats(0.1, 100), st.integers(0, 2**32))
def test_norm_clipping(case: tuple[Matrix, int], bound: float, seed: int) -> None:
    rows, f = case
    sizes = np.random.default_rng(seed).integers(1, 50, size=len(rows))
    updates = updates_of(rows, sizes.tolist())
    expected = dense_clipped(rows, sizes.astype(float), bound)
    close(ask(robust.norm_clipping(bound=bound), updates), expected)
    middle = np.sort(np.linalg.norm(rows, axis=1))[(len(rows) - 1) // 2]
    expected = dense_clipped(rows, sizes.astype(float), middle)
    close(ask(robust.norm_clipping(faulty=f), updates), expected)


@settings(max_examples=40, deadline=None)
@given(made(robust.majority), st.integers(0, 2**32))
def test_the_geometric_median(case: tuple[Matrix, int], seed: int) -> None:
    rows, _ = case
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 50, size=len(rows))
    weights = sizes / sizes.sum()
    got = ask(selection.geometric_median(), updates_of(rows, sizes.tolist()))
    scale = np.linalg.norm(rows, axis=1).max() + 1e-12
    reached, best = (
        cost(rows, weights, got),
        cost(rows, weights, dense_geometric_median(rows, weights)),
    )
    assert reached <= best + 1e-5 * scale
    for _ in range(5):
        step = random.normal(size=SIZE)
        away = got + 0.05 * scale * step / np.linalg.norm(step)
        assert cost(rows, weights, away) >= reached - 1e-5 * scale


def test_the_geometric_median_in_closed_form() -> None:
    # Of the corners of a square the center, whatever a fifth one does that lies on it.
    rows = np.zeros((4, SIZE))
    rows[:, :2] = [[0, 0], [0, 2], [2, 0], [2, 2]]
    close(ask(selection.geometric_median(), updates_of(rows))[:2], np.array([1.0, 1.0]))
    # One with more than half of the weight is the median by itself.
    got = ask(selection.geometric_median(), updates_of(rows, [7, 2, 2, 2]))
    assert np.abs(got).max() < 1e-4


# ---------------------------------------------------------------------------- by hand ----


def test_of_equals_the_first_by_name_is_chosen() -> None:
    rows = np.zeros((5, SIZE))
    rows[1, 0] = rows[3, 0] = 1.0
    rows[2, 0] = 5.0
    # The two closest others are at 0 and 1 of all but the third: four scores are equal.
    updates = updates_of(rows)
    estimate = selection.krum(faulty=1)
    assert estimate.shares is not None
    shares = estimate.shares(updates, uniform(updates), euclidean_gram(updates))
    assert shares == {"site 000": 1.0, **{f"site 00{k}": 0.0 for k in range(1, 5)}}


def test_as_many_faulty_sites_as_can_be_are_assumed() -> None:
    for least, updates, most in (
        (robust.majority, 1, 0),
        (robust.majority, 6, 2),
        (robust.majority, 7, 3),
        (selection.least_of_krum, 3, 0),
        (selection.least_of_krum, 6, 1),
        (selection.least_of_bulyan, 10, 1),
        (selection.least_of_bulyan, 11, 2),
    ):
        assert robust.assumed("x", least, faulty=None, updates=updates) == most
        assert least(most) <= updates < least(most + 1)
    assert robust.assumed("x", robust.majority, faulty=1, updates=7) == 1


MADE = (
    robust.coordinate_median,
    robust.trimmed_mean,
    robust.norm_clipping,
    selection.krum,
    selection.multi_krum,
    selection.bulyan,
    selection.geometric_median,
)


@pytest.mark.parametrize("make", MADE)
@pytest.mark.parametrize("faulty", [None, 0, 1, 2])
def test_too_few_updates_are_named_with_how_many_it_takes(
    make: Callable[..., Estimate], faulty: int | None
) -> None:
    estimate = make(faulty=faulty)
    least = estimate.least(faulty or 0)
    random = np.random.default_rng(5)
    assert np.isfinite(ask(estimate, updates_of(random.normal(size=(least, SIZE))))).all()
    if least == 1:
        return
    with pytest.raises(FederationError, match=f"{estimate.name} needs more updates") as caught:
        ask(estimate, updates_of(random.normal(size=(least - 1, SIZE))))
    assert f"{least - 1} updates" in str(caught.value.given)
    assert caught.value.expected == f"at least {least}"


def test_shares_are_there_where_whole_updates_are_weighed() -> None:
    random = np.random.default_rng(6)
    updates = updates_of(random.normal(size=(9, SIZE)), list(range(1, 10)))
    gram = euclidean_gram(updates)
    for estimate in (mean(), *(make() for make in MADE)):
        weighed = estimate.name in ("mean", "krum", "multi_krum", "geometric_median")
        assert (estimate.shares is not None) is weighed
        if estimate.shares is None:
            continue
        shares = estimate.shares(updates, by_size(updates), gram)
        assert list(shares) == [u.site for u in updates]
        assert min(shares.values()) >= 0
        assert sum(shares.values()) == pytest.approx(1.0, abs=1e-12)
        rows = np.array([flat(u.delta) for u in updates])
        close(ask(estimate, updates), np.array(list(shares.values())) @ rows)


def test_distances_are_those_of_the_gram_matrix_that_is_given() -> None:
    # Updates that are all alike; in the given geometry the last two are the closest.
    updates = updates_of(np.ones((5, SIZE)))
    places = np.array([0.0, 10.0, 20.0, 31.0, 31.5])
    estimate = selection.krum(faulty=0)
    assert estimate.shares is not None
    shares = estimate.shares(updates, uniform(updates), np.outer(places, places))
    scores = [sum(sorted((p - q) ** 2 for q in places)[1:4]) for p in places]
    assert max(shares, key=lambda site: shares[site]) == updates[int(np.argmin(scores))].site


def test_the_gram_matrix_is_that_of_the_flat_updates_by_name() -> None:
    rows = np.random.default_rng(7).normal(size=(6, SIZE)).astype(np.float32).astype(float)
    updates = updates_of(rows)
    gram = euclidean_gram(updates[::-1])
    np.testing.assert_allclose(gram, rows @ rows.T, rtol=1e-12, atol=1e-12)
    assert (gram == euclidean_gram(updates)).all()
    assert (gram == gram.T).all()
