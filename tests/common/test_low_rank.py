"""Matrices kept as products, against the same matrices multiplied out."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hushtune.common.low_rank import (
    PROBES,
    Product,
    compressed,
    gathered,
    inner,
    inners,
    leading,
    norm,
    probed,
    product,
    rounded,
    svd,
    total,
)

CLOSE = {"rtol": 1e-9, "atol": 1e-9}


def dense(matrix: Product) -> Tensor:
    return matrix.left @ matrix.right


def drawn(d_out: int, d_in: int, n: int, seed: int, *, rank: int | None = None) -> Product:
    """``rank`` below n: columns and rows that depend on one another; 0: all zero."""
    random = torch.Generator().manual_seed(seed)
    left = torch.randn(d_out, n, generator=random, dtype=torch.float64)
    right = torch.randn(n, d_in, generator=random, dtype=torch.float64)
    if rank is not None:
        mix = torch.randn(n, rank, generator=random, dtype=torch.float64)
        left = left @ mix @ mix.T
    return Product(left, right)


shapes = st.tuples(st.integers(1, 9), st.integers(1, 9), st.integers(1, 12))
seeds = st.integers(0, 10**6)


@given(shapes, st.lists(st.integers(0, 5), min_size=1, max_size=4), seeds)
def test_a_sum_is_the_sum(shape: tuple[int, int, int], widths: list[int], seed: int) -> None:
    terms = [drawn(shape[0], shape[1], n, seed + place) for place, n in enumerate(widths)]
    found = total(terms)
    assert found.rank == sum(widths)
    torch.testing.assert_close(dense(found), torch.stack([*map(dense, terms)]).sum(0), **CLOSE)


@given(shapes, st.integers(1, 12), seeds)
def test_inner_product_and_norm(shape: tuple[int, int, int], other: int, seed: int) -> None:
    one, two = drawn(*shape, seed), drawn(shape[0], shape[1], other, seed + 1)
    expected = float((dense(one) * dense(two)).sum())
    assert inner(one, two) == pytest.approx(expected, rel=1e-9, abs=1e-9)
    assert inner(one, two) == pytest.approx(inner(two, one), rel=1e-9, abs=1e-9)
    assert norm(one) == pytest.approx(float(dense(one).norm()), rel=1e-6, abs=1e-9)


def test_a_difference_of_equals_has_no_norm_and_no_nan() -> None:
    """Its square may come out below zero by rounding."""
    for seed in range(50):
        one = drawn(9, 4, 3, seed)
        assert norm(total([one, Product(-one.left, one.right)])) <= 1e-7 * norm(one)


def test_products_are_exact_in_float64_and_scaled_once() -> None:
    random = torch.Generator().manual_seed(0)
    b, a = torch.randn(7, 3, generator=random), torch.randn(3, 5, generator=random)
    found = product(b, a, scale=-2.5)
    assert found.left.dtype == found.right.dtype == torch.float64
    assert torch.equal(dense(found), (-2.5 * b.double()) @ a.double())


@given(shapes, st.sampled_from([None, 0, 1, 2]), st.integers(1, 12), seeds)
def test_the_svd_is_that_of_the_dense_matrix(
    shape: tuple[int, int, int], deficient: int | None, most: int, seed: int
) -> None:
    """Values as they are; vectors up to a sign, which their product does not have."""
    matrix = drawn(*shape, seed, rank=deficient)
    u, values, v = svd(matrix, most)
    whole, scale = dense(matrix), max(1.0, float(dense(matrix).norm()))
    expected = torch.linalg.svdvals(whole)
    k = min(most, *shape)
    assert u.shape == (shape[0], k)
    assert v.shape == (k, shape[1])
    assert values.shape == (k,)
    torch.testing.assert_close(values, expected[:k], rtol=0, atol=1e-10 * scale)
    eye = torch.eye(k, dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, eye, **CLOSE)
    torch.testing.assert_close(v @ v.T, eye, **CLOSE)
    lost = (u * values) @ v - whole
    # Eckart and Young: no matrix of rank k is closer.
    assert float(lost.norm()) == pytest.approx(float(expected[k:].norm()), abs=1e-9 * scale)


@pytest.mark.parametrize("shape", [(9, 4, 3), (4, 9, 3), (5, 5, 8), (1, 6, 2)])
def test_equal_products_give_equal_factors_whatever_their_own_signs(
    shape: tuple[int, int, int],
) -> None:
    matrix = drawn(*shape, 3)
    found = svd(matrix, 2)
    turned = torch.linalg.qr(drawn(shape[2], shape[2], shape[2], 7).left)[0]
    for other in (
        Product(-matrix.left, -matrix.right),
        Product(matrix.left @ turned, turned.T @ matrix.right),
        Product(8.0 * matrix.left, matrix.right / 8.0),
    ):
        for one, two in zip(found, svd(other, 2), strict=True):
            torch.testing.assert_close(one, two, **CLOSE)
    for row in found[2]:
        assert row[row.abs().argmax()] > 0
    again = svd(matrix, 2)
    assert all(torch.equal(one, two) for one, two in zip(found, again, strict=True))


@pytest.mark.parametrize("n", [0, 1, 3])
def test_zero_has_a_decomposition_too(n: int) -> None:
    zero = Product(torch.zeros(6, n, dtype=torch.float64), torch.zeros(n, 4, dtype=torch.float64))
    u, values, v = svd(zero, 2)
    assert not values.any()
    assert not ((u * values) @ v).any()
    assert norm(zero) == 0.0
    assert all(bool(torch.isfinite(t).all()) for t in (u, values, v))


@given(shapes, seeds)
def test_compressed_is_the_same_matrix_no_wider_than_itself(
    shape: tuple[int, int, int], seed: int
) -> None:
    matrix = drawn(*shape, seed)
    found = compressed(matrix)
    assert found.rank == min(shape[2], shape[0], shape[1])
    torch.testing.assert_close(dense(found), dense(matrix), **CLOSE)
    if matrix.rank <= min(shape[:2]):
        assert found is matrix


def test_terms_that_come_one_at_a_time_are_the_same_sum() -> None:
    terms = [drawn(9, 7, n, n) for n in (2, 0, 3)]
    whole = total(terms)
    found = gathered(iter(terms), rank=5, shape=(9, 7))
    assert torch.equal(found.left, whole.left)
    assert torch.equal(found.right, whole.right)
    left, right = rounded(iter(terms), rank=5, shape=(9, 7))
    assert torch.equal(left, whole.left.float())  # rounded once, and no value changed otherwise
    assert torch.equal(right, whole.right.float())


def test_a_sum_wider_than_itself_is_compressed_before_it_is_rounded() -> None:
    terms = [drawn(9, 4, 3, seed) for seed in (1, 2)]
    left, right = rounded(iter(terms), rank=6, shape=(9, 4))
    assert (left.shape, right.shape) == ((9, 4), (4, 4))
    assert left.dtype == right.dtype == torch.float32
    assert left.is_contiguous()
    assert right.is_contiguous()
    expected = dense(total(terms))
    torch.testing.assert_close(left.double() @ right.double(), expected, rtol=1e-5, atol=1e-5)


def test_what_random_vectors_see_of_a_sum() -> None:
    terms = [drawn(30, 40, 3, seed) for seed in (1, 2)]
    whole = total(terms)
    torch.testing.assert_close(probed(iter(terms)), probed([whole]), **CLOSE)
    rough = float(probed([whole]).norm()) / math.sqrt(PROBES)
    assert rough == pytest.approx(norm(whole), rel=0.3)


WIDE, TALL, MANY, RANK = 640, 700, 600, 16


def with_values(values: Tensor, seed: int = 5) -> Product:
    """``TALL x WIDE``, of ``MANY`` columns and rows, with these singular values."""
    random = torch.Generator().manual_seed(seed)
    u = torch.linalg.qr(torch.randn(TALL, MANY, generator=random, dtype=torch.float64)).Q
    v = torch.linalg.qr(torch.randn(WIDE, MANY, generator=random, dtype=torch.float64)).Q
    return Product(u * values, v.T)


SPECTRA = {
    # the values, by how much the residual's norm may be above the best, and the values' error
    "falls fast": (0.5 ** torch.arange(MANY, dtype=torch.float64), 1e-6, 1e-9),
    "16 above noise": (
        torch.cat([torch.linspace(20, 10, RANK), torch.linspace(1, 0.1, MANY - RANK)]).double(),
        1e-4,
        1e-5,
    ),
    "falls slowly": (1 / torch.arange(1, MANY + 1, dtype=torch.float64), 0.02, 0.1),
    "flat": (torch.ones(MANY, dtype=torch.float64), 1e-9, 1e-9),
    "nearly flat": (torch.linspace(1, 0.5, MANY, dtype=torch.float64), 0.02, 0.1),
}


@pytest.mark.parametrize("name", SPECTRA)
def test_of_many_columns_the_leading_part_is_nearly_the_best(name: str) -> None:
    values, above, error = SPECTRA[name]
    matrix = with_values(values)
    u, found, v = leading(matrix, RANK)
    best = float(values[RANK:].norm())
    lost = float((dense(matrix) - (u * found) @ v).norm())
    assert best * (1 - 1e-9) <= lost <= best * (1 + above)
    torch.testing.assert_close(found, values[:RANK], rtol=error, atol=0)
    assert bool((found <= values[:RANK] * (1 + 1e-9)).all())
    eye = torch.eye(RANK, dtype=torch.float64)
    torch.testing.assert_close(u.T @ u, eye, **CLOSE)
    torch.testing.assert_close(v @ v.T, eye, **CLOSE)
    # Twice the expectation's bound, and the cut: theorems 10.6 and 9.3 of 0909.4061.
    factor = 1 + (RANK / 7) ** 0.5 + 2.72 * (RANK + 8) ** 0.5 / 8 * (TALL - RANK) ** 0.5
    spectral = float(torch.linalg.matrix_norm(dense(matrix) - (u * found) @ v, ord=2))
    assert spectral <= (2 * factor**0.25 + 1) * float(values[RANK])
    again = leading(matrix, RANK)
    assert all(torch.equal(one, two) for one, two in zip((u, found, v), again, strict=True))


@pytest.mark.parametrize(("n", "rank"), [(512, 4), (600, 150), (600, 700)])
def test_of_fewer_columns_the_leading_part_is_exact(n: int, rank: int) -> None:
    """Bit for bit the exact one: few columns, few for the rank, or a rank that takes all."""
    matrix = drawn(TALL, WIDE, n, 1)
    pairs = zip(leading(matrix, rank), svd(matrix, rank), strict=True)
    assert all(torch.equal(one, two) for one, two in pairs)


def test_many_columns_of_a_small_rank_or_none() -> None:
    small = drawn(40, 30, 600, 1, rank=2)
    u, values, v = leading(small, 4)
    torch.testing.assert_close(
        (u * values) @ v, dense(small), rtol=1e-9, atol=1e-9 * float(values[0])
    )
    nothing = Product(torch.zeros(40, 600).double(), small.right)
    assert not leading(nothing, 4)[1].any()


def test_inner_products_of_products_side_by_side() -> None:
    """Of any ranks, against the matrices multiplied out."""
    ranks = [1, 3, 2, 5]
    terms = [drawn(7, 4, n, seed) for seed, n in enumerate(ranks)]
    rows = torch.stack([dense(term).reshape(-1) for term in terms])
    found = inners(gathered(terms, rank=sum(ranks), shape=(7, 4)), ranks)
    torch.testing.assert_close(found, rows @ rows.T, **CLOSE)
    assert torch.equal(found, found.T)
