"""From scores of canaries to bounds on epsilon."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from hushtune.simulations.audit.bounds import (
    CONFIDENCE,
    Guessed,
    apart,
    one_run,
    one_run_f,
    rates,
    refuted,
    two_sample,
)
from hushtune.simulations.audit.curves import Claim
from hushtune.simulations.audit.games import Seen

FRACTIONS = (1.0, 0.5, 0.25, 0.1, 0.03)
"""Of all canaries: for how many of them it is guessed. Each is tried, at a fifth of the error."""

ONE_RUN = "one run, binomial tail (2305.08846)"
ONE_RUN_F = "one run, trade-off curve (2410.22235)"
TWO_SAMPLES = "rates of a threshold, canaries independent"


@dataclass(frozen=True)
class Row:
    """What one method finds in what one observer sees, at the confidence for each row by itself.

    ``lower_bound``: on epsilon at the claim's delta, whatever the mechanism is. ``in_family``: on
    that of the claimed mechanism with its noise scaled; None where the method has none.
    ``refutes``: whether the claimed epsilon, or the claimed curve, is refuted.
    """

    canary: str
    observer: str
    method: str
    canaries: int
    claimed: float
    lower_bound: float
    in_family: float | None
    refutes: bool


def assess(seen: Seen, claim: Claim, *, confidence: float = CONFIDENCE) -> list[Row]:
    """The bounds of every method that fits, the one with most power first."""
    rows = [_by_rates(seen, claim, confidence)] if seen.independent else []
    return [*rows, *_by_guesses(seen, claim, confidence)]


def guesses(seen: Seen, fraction: float) -> Guessed:
    """Guess "in" above the median score and "out" below it, where a score lies farthest from it.

    Scores alone decide, so that this is no more than what follows from what is released.
    """
    distances = seen.scores - np.median(seen.scores)
    count = max(1, round(fraction * len(distances)))
    surest = np.argsort(-np.abs(distances), kind="stable")[:count]
    right = (distances[surest] > 0) == seen.included[surest]
    return Guessed(len(distances), count, int(right.sum()))


def _by_rates(seen: Seen, claim: Claim, confidence: float) -> Row:
    """Two tests, each at half of the error."""
    told, others = seen.scores[seen.included], seen.scores[~seen.included]
    half = 1.0 - (1.0 - confidence) / 2
    bound = two_sample(told, others, delta=claim.delta, confidence=half)
    found = rates(told, others, better=apart, confidence=half)
    return _row(seen, claim, TWO_SAMPLES, bound, claim.bound(found.refute))


def _by_guesses(seen: Seen, claim: Claim, confidence: float) -> list[Row]:
    part = 1.0 - (1.0 - confidence) / len(FRACTIONS)
    tried = [guesses(seen, fraction) for fraction in FRACTIONS]
    tail = max(one_run(one, delta=claim.delta, confidence=part) for one in tried)
    # Two tests, the one of (epsilon, delta) and the one of the family's curve.
    half = 1.0 - (1.0 - part) / 2
    bound = max(one_run_f(one, delta=claim.delta, confidence=half) for one in tried)
    in_family = claim.bound(lambda curve: any(refuted(g, curve, confidence=half) for g in tried))
    return [
        _row(seen, claim, ONE_RUN, tail, None),
        _row(seen, claim, ONE_RUN_F, bound, in_family),
    ]


def _row(seen: Seen, claim: Claim, method: str, bound: float, in_family: float | None) -> Row:
    epsilon = claim.epsilon()
    return Row(
        canary=seen.canary,
        observer=seen.observer,
        method=method,
        canaries=len(seen.scores),
        claimed=epsilon,
        lower_bound=bound,
        in_family=in_family,
        refutes=bound > epsilon or (in_family is not None and in_family >= epsilon),
    )
