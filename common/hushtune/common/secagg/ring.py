"""Real vectors as whole numbers that are added modulo 2^64, and masks that hide them there.

A vector of norm at most C is scaled so that C is ``2^32``, and rounded. Sums of two billion such
vectors, noise of a million times C included, stay within the ring, so nothing ever wraps around
but what was masked.
"""

from __future__ import annotations

import math

import numpy as np
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms
from numpy.typing import NDArray

from hushtune.common.errors import PrivacyError

GRID_BITS = 32
GRID = 2**GRID_BITS
"""Steps of the grid in one clip norm."""

Ring = NDArray[np.uint64]
_LARGEST = 2.0**62


def to_ring(values: NDArray[np.float64], *, clip_norm: float) -> Ring:
    """``values``, rounded to whole multiples of ``clip_norm / 2^32``, as numbers modulo 2^64.

    Values beyond 2^30 clip norms are cut, which moves no two vectors further apart; one that is
    not finite raises PrivacyError.
    """
    if not np.isfinite(values).all():
        raise PrivacyError("a sum of clipped gradients is not finite")
    scaled = np.rint(values * (GRID / clip_norm))
    return np.clip(scaled, -_LARGEST, _LARGEST).astype(np.int64).view(np.uint64)


def from_ring(values: Ring, *, clip_norm: float) -> NDArray[np.float64]:
    """Inverse of ``to_ring`` up to the rounding."""
    return values.view(np.int64).astype(np.float64) * (clip_norm / GRID)


def sensitivity(num_values: int) -> float:
    """How far, in steps of the grid, one unit can move a site's rounded sum of so many values.

    The sum of real numbers moves by ``2^32`` steps at most, the clip norm. Two roundings come on
    top. To the grid, each value of either sum is moved by half a step at most, so both together by
    ``sqrt(num_values)``. (Kairouz et al. round each record's vector and at random; a site's sum is
    rounded once, so this is smaller and certain.) Before that, sums of n units in float64 are off
    by ``2^-52 n^2`` clip norms at most (see ``hushtune.client.dp``), and a client's change by
    2^-50: ``2^-20`` of the clip norm is enough for both with any batch of up to 65,000 units at a
    site, whatever is in them, and for far larger ones unless all units pull the same way.
    """
    return GRID * (1.0 + 2.0**-20) + math.sqrt(num_values)


def mask(seed: bytes, size: int) -> Ring:
    """``size`` pseudorandom numbers modulo 2^64: the ChaCha20 keystream (RFC 8439) of a seed.

    A seed of 32 bytes must serve for one mask alone.
    """
    # Counter and nonce may be 0 as no seed is used twice.
    encryptor = Cipher(algorithms.ChaCha20(seed, bytes(16)), mode=None).encryptor()
    words = np.zeros(size, np.uint64)
    encryptor.update_into(np.zeros(size, np.uint64).data.cast("B"), words.data.cast("B"))
    return words
