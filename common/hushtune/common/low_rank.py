"""Matrices kept as a product ``left (d_out, n) @ right (n, d_in)``, which is never multiplied out.

All in float64. ``inner``, ``norm`` and ``svd`` cost ``O((d_out + d_in) n^2)``; ``probed`` and, for
large n, ``leading`` cost ``O((d_out + d_in) n)`` times a few columns.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

_MOST_EXACT, _WIDER = 512, 4
"""``leading`` is exact up to so many columns and rows, and up to so many times the rank."""
_OVERSAMPLING, _POWER = 8, 2
PROBES = 16


@dataclass(frozen=True)
class Product:
    """``left (d_out, n) @ right (n, d_in)``, float64."""

    left: Tensor
    right: Tensor

    @property
    def rank(self) -> int:
        """The number n of its columns and rows, which the rank is at most."""
        return self.left.shape[1]


def product(b: Tensor, a: Tensor, *, scale: float = 1.0) -> Product:
    """``scale * b @ a``; one factor is scaled, and not both."""
    left = b.double()
    return Product(left if scale == 1.0 else left * scale, a.double())


def total(terms: Sequence[Product]) -> Product:
    """The sum of products of one shape, exactly: their factors side by side."""
    return Product(
        torch.cat([term.left for term in terms], dim=1),
        torch.cat([term.right for term in terms], dim=0),
    )


def gathered(terms: Iterable[Product], *, rank: int, shape: tuple[int, int]) -> Product:
    """``total`` of terms that come one at a time, in the memory of the sum and of one term.

    ``rank``: what the terms' ranks add up to. ``shape``: ``(d_out, d_in)``.
    """
    return Product(*_side_by_side(terms, rank, shape, torch.float64))


def rounded(
    terms: Iterable[Product], *, rank: int, shape: tuple[int, int]
) -> tuple[Tensor, Tensor]:
    """The factors of a sum in float32, no wider than its own shape; each value is rounded once.

    As ``gathered`` for the rest. Where ``rank`` is no larger than ``d_out`` and ``d_in``, the terms
    are written as they come, in the memory of the outcome and of one term.
    """
    if rank > min(shape):
        whole = compressed(gathered(terms, rank=rank, shape=shape))
        return whole.left.float().contiguous(), whole.right.float().contiguous()
    return _side_by_side(terms, rank, shape, torch.float32)


def _side_by_side(
    terms: Iterable[Product], rank: int, shape: tuple[int, int], dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    left, right = torch.empty(shape[0], rank, dtype=dtype), torch.empty(rank, shape[1], dtype=dtype)
    begin = 0
    for term in terms:
        end = begin + term.rank
        left[:, begin:end] = term.left
        right[begin:end] = term.right
        begin = end
    assert begin == rank
    return left, right


def inner(one: Product, other: Product) -> float:
    """The inner product of two matrices, ``sum_ij X_ij Y_ij``."""
    return float(((one.left.T @ other.left) * (one.right @ other.right.T)).sum())


def inners(whole: Product, ranks: Sequence[int]) -> Tensor:
    """``inner`` of each of n products with each, (n, n), of the products side by side.

    ``ranks``: how many columns and rows of ``whole`` each of them has.
    """
    found = torch.zeros(len(ranks), len(ranks), dtype=torch.float64)
    begin = 0
    for place, rank in enumerate(ranks):
        end = begin + rank
        left = whole.left[:, begin:end].T @ whole.left[:, :end]
        pairs = left.mul_(whole.right[begin:end] @ whole.right[:end].T)
        parts = pairs.split(list(ranks[: place + 1]), dim=1)
        found[place, : place + 1] = torch.stack([part.sum() for part in parts])
        begin = end
    return found + found.tril(-1).T


def norm(matrix: Product) -> float:
    """Frobenius norm; what is below 1e-8 of the largest of its terms may be rounding."""
    return math.sqrt(max(0.0, inner(matrix, matrix)))


def probed(terms: Iterable[Product]) -> Tensor:
    """``X w`` of a sum X of one product or more and PROBES random vectors w: (d_out, PROBES).

    Its norm is about ``sqrt(PROBES) || X ||_F``, in time linear in n, since ``E || X w ||^2 =
    || X ||_F^2`` (Hutchinson 1990). The same vectors for all matrices as wide.
    """
    random, vectors, seen = torch.Generator().manual_seed(0), None, None
    for term in terms:
        if vectors is None:
            width = term.right.shape[1]
            vectors = torch.randn(width, PROBES, generator=random, dtype=torch.float64)
        found = term.left @ (term.right @ vectors)
        seen = found if seen is None else seen.add_(found)
    assert seen is not None
    return seen


def svd(matrix: Product, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """``U (d_out, k)``, ``S (k)`` and ``V^T (k, d_in)`` of the ``k = min(rank, n)`` largest values.

    From the QR decompositions of the two factors and the SVD of the small core between them. The
    largest entry of each row of ``V^T`` is positive, so that equal products give equal factors.
    """
    left, left_core = torch.linalg.qr(matrix.left)
    right, right_core = torch.linalg.qr(matrix.right.T)
    u, values, v = torch.linalg.svd(left_core @ right_core.T, full_matrices=False)
    k = min(rank, len(values))
    u, values, v = left @ u[:, :k], values[:k], v[:k] @ right.T
    places = v.abs().argmax(dim=1, keepdim=True)
    signs = torch.where(v.gather(1, places) < 0, -1.0, 1.0)  # (k, 1)
    return u * signs.T, values, v * signs


def leading(matrix: Product, rank: int) -> tuple[Tensor, Tensor, Tensor]:
    """``svd``, or where n is above 512 and four times the rank, nearly so in time linear in n.

    Randomised subspace iteration (Halko, Martinsson and Tropp 0909.4061, algorithms 4.4 and 5.1):
    from a Gaussian test matrix W, always the same, of ``l = rank + 8`` columns, an orthonormal
    Q (d_out, l) with the range of ``(X X^T)^2 W``, orthonormalised after each product; the outcome
    is ``svd`` of ``Q Q^T X``. With s_j the true singular values and k the rank, their theorem 10.6,
    of ``(X X^T)^2``, and proposition 8.6 say in spectral norm

        E || X - Q Q^T X || <= (1 + sqrt(k / 7) + e sqrt(k + 8) / 8 * sqrt(d_out - k))^(1/4) s_(k+1)

    and cutting to rank k adds s_(k+1) at most (theorem 9.3). Values are never above the true ones.
    A spectrum that falls fast is met almost exactly; of a flat one no k columns are much better.
    """
    d_out, d_in = matrix.left.shape[0], matrix.right.shape[1]
    columns = rank + _OVERSAMPLING
    if matrix.rank <= max(_MOST_EXACT, _WIDER * rank) or columns >= min(d_out, d_in):
        return svd(matrix, rank)
    random = torch.Generator().manual_seed(0)
    q = torch.randn(d_out, columns, generator=random, dtype=torch.float64)
    for _ in range(_POWER):
        of_rows = _basis(((q.T @ matrix.left) @ matrix.right).T)
        q = _basis(matrix.left @ (matrix.right @ of_rows))
    return svd(Product(q, (q.T @ matrix.left) @ matrix.right), rank)


def _basis(columns: Tensor) -> Tensor:
    return torch.linalg.qr(columns).Q


def compressed(matrix: Product) -> Product:
    """The same matrix with no more columns and rows than its own shape has."""
    most = min(matrix.left.shape[0], matrix.right.shape[1])
    if matrix.rank <= most:
        return matrix
    u, values, v = svd(matrix, most)
    return Product(u * values, v)
