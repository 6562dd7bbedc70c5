"""The grid on which an accountant rounds losses: how wide it may be."""

from __future__ import annotations

import math

Merged = tuple[tuple[float, float, int], ...]
"""Steps by rate and noise: (sampling probability, noise multiplier, number of steps)."""


def grid_width(merged: Merged, *, coarser: float = 1.0) -> float:
    """Width of the loss grid of a composition; any width gives an upper bound.

    One step's losses span about 1 / (2 sigma^2) + 10 / sigma, so little noise needs a wide grid to
    stay within memory, and much noise affords (and needs) a fine one. Sampling at a low rate q
    shrinks a step's loss to a deviation of about q / sigma: a grid wider than that would overstate
    many such steps severalfold. Falls with the least sigma and rises with the highest rate: adding
    an event to a composition can only coarsen the grid, so a spend never falls for numerical
    reasons.
    """
    rate, sigma = max(rate for rate, _, _ in merged), min(sigma for _, sigma, _ in merged)
    span = 0.5 / sigma**2 + 10 / sigma
    widest = 1e-4 if sigma >= 4 else max(1e-3, span / 40_000)
    sampled_span = math.log1p(rate * math.expm1(min(span, 700)))  # exp(710) overflows
    # Below 1e-6 dp-accounting's own rounding of 1 - q gets in the way.
    return coarser * min(widest, max(1e-6, rate / sigma / 2, sampled_span / 20_000))
