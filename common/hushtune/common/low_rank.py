"""Matrices kept as a product ``left (d_out, n) @ right (n, d_in)``, which is never multiplied out.

All in float64. With n far below d_out and d_in each function costs ``O((d_out + d_in) n^2)``.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


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
    return Product(b.double() * scale, a.double())


def total(terms: Sequence[Product]) -> Product:
    """The sum of products of one shape, exactly: their factors side by side."""
    return Product(
        torch.cat([term.left for term in terms], dim=1),
        torch.cat([term.right for term in terms], dim=0),
    )


def inner(one: Product, other: Product) -> float:
    """The inner product of two matrices, ``sum_ij X_ij Y_ij``."""
    return float(((one.left.T @ other.left) * (one.right @ other.right.T)).sum())


def norm(matrix: Product) -> float:
    """Frobenius norm; what is below 1e-8 of the largest of its terms may be rounding."""
    return math.sqrt(max(0.0, inner(matrix, matrix)))


def rough_norm(matrix: Product, *, probes: int = 16) -> float:
    """About the Frobenius norm, in time linear in n: from ``|| X w ||`` of random vectors w, since
    ``E || X w ||^2 = || X ||_F^2`` (Hutchinson 1990). The same vectors for all matrices as wide.
    """
    random = torch.Generator().manual_seed(0)
    width = matrix.right.shape[1]
    seen = torch.randn(width, probes, generator=random, dtype=torch.float64)
    return float((matrix.left @ (matrix.right @ seen)).norm()) / math.sqrt(probes)


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


def compressed(matrix: Product) -> Product:
    """The same matrix with no more columns and rows than its own shape has."""
    most = min(matrix.left.shape[0], matrix.right.shape[1])
    if matrix.rank <= most:
        return matrix
    u, values, v = svd(matrix, most)
    return Product(u * values, v)
