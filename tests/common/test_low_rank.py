"""Matrices kept as products, against the same matrices multiplied out."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from hushtune.common.low_rank import Product, compressed, inner, norm, product, svd, total

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
