"""Correlated noise for rounds in which clients take turns: DP-FTRL by a banded square root.

Kalinin and Lampert, 2405.13763. After round t a model is the sum of all rounds' sums so far, so
what matters is the noise on prefix sums. With E the lower triangular matrix of ones (rounds by
rounds), ``E = B C`` where C is the square root of E cut to a band of p diagonals: lower triangular,
Toeplitz, with the coefficients ``f_k = binom(2 k, k) / 4^k`` for k < p. Noise ``C^-1 z`` on the
rounds' sums x, with z independent and Gaussian, makes the release ``C^-1 (C x + z)``: as private as
the Gaussian mechanism on ``C x``, whatever follows from round to round (Denisov et al. 2202.08312).
A later round takes a part of the earlier rounds' noise back, and the prefix sums gain.

A client that takes part at most k times, its rounds at least b apart with p <= b, moves ``C x`` by
k columns of C that do not overlap: by at most ``sqrt(k) ||f||`` times the clip norm. Which clients
take part when is fixed by their places in a public list, and depends on nobody's data.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from hushtune.common.errors import PlanError


def coefficients(band: int) -> NDArray[np.float64]:
    """``f_0`` to ``f_(band-1)``: the first column of the root of the matrix of ones.

    >>> coefficients(4).tolist()
    [1.0, 0.5, 0.375, 0.3125]
    """
    if band < 1:
        raise PlanError("a band has at least one diagonal", given=str(band), expected=">= 1")
    orders = np.arange(1, band)
    return np.concatenate([[1.0], np.cumprod((2 * orders - 1) / (2 * orders))])


def turn(place: int, *, every: int, round: int) -> bool:
    """Whether the client at this place of the public list takes part in a round (from 1).

    >>> [turn(4, every=3, round=number) for number in range(1, 7)]
    [False, True, False, False, True, False]
    """
    return place % every == (round - 1) % every


def turns(rounds: int, *, every: int) -> int:
    """How often a client takes part at most."""
    return -(-rounds // every)


def sensitivity(band: int, *, rounds: int, every: int) -> float:
    """How far one client can move ``C x``, in clip norms; PlanError for a band that overlaps."""
    if not band <= min(every, rounds):
        raise PlanError(
            "the band of correlated noise is wider than a client's rounds are apart",
            given=f"{band} diagonals, a turn in {every} of {rounds} rounds",
            expected=f"at most {min(every, rounds)}",
        )
    return math.sqrt(turns(rounds, every=every)) * float(np.linalg.norm(coefficients(band)))


def prefix_error(band: int, *, rounds: int, every: int) -> NDArray[np.float64]:
    """Standard deviation of the noise on each round's prefix sum, at noise multiplier and clip 1.

    Of independent noise, which is a band of one diagonal, it is ``sqrt(k t)`` after round t.
    """
    kept = coefficients(band)
    inverse = np.zeros(rounds)  # the first column of C^-1
    inverse[0] = 1.0
    for place in range(1, rounds):
        reach = min(band - 1, place)
        inverse[place] = -kept[1 : reach + 1] @ inverse[place - reach : place][::-1]
    summed = np.sqrt(np.cumsum(np.cumsum(inverse) ** 2))  # of E C^-1, row by row
    return sensitivity(band, rounds=rounds, every=every) * summed


def best_band(*, rounds: int, every: int) -> int:
    """The band with the least mean squared noise over all prefix sums; never worse than one."""
    bands = range(1, min(every, rounds) + 1)
    return min(
        bands,
        key=lambda band: float(np.square(prefix_error(band, rounds=rounds, every=every)).sum()),
    )
