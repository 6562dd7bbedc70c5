"""Lower bounds on epsilon from how often somebody guesses right whether a canary was in.

Each of m canaries is in by a fair coin of its own. Whoever sees what was released guesses for r of
them, in or out, and abstains from the rest; v guesses are right. Three bounds follow:

- ``one_run`` (Steinke, Nasr and Jagielski 2305.08846, theorem 5.2): under (epsilon, delta) the
  chance of v right guesses is at most ``beta + 2 m delta alpha``, where beta is the tail of a
  binomial of r trials, each right with chance ``1 / (1 + exp(-epsilon))``.
- ``one_run_f`` (Mahloujifar, Melis and Chaudhuri 2410.22235, algorithm 3): the same game against
  any trade-off curve, here that of (epsilon, delta) itself or of a mechanism. It bounds all numbers
  of right guesses together, and so loses less to delta.
- ``two_sample`` (Jagielski et al. 2006.07709): runs with one canary against runs without it, by the
  rates of a threshold (Clopper and Pearson, 1934).

All are one-sided: with the confidence that is named no smaller epsilon explains what was seen.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import stats

Scores = NDArray[np.float64]
CONFIDENCE = 0.95
MOST_EPSILON = 50.0
"""Beyond, no number of canaries that fits into a run tells one epsilon from another."""
_TOLERANCE = 1e-4
_CHOOSES = 5
_FEWEST_SCORES = 2 * _CHOOSES
_QUANTILES = np.linspace(0.0, 1.0, 41)


@dataclass(frozen=True)
class Guessed:
    """What came of guessing: ``correct`` of ``guesses`` for ``canaries`` in all."""

    canaries: int
    guesses: int
    correct: int

    def __post_init__(self) -> None:
        if not 0 <= self.correct <= self.guesses <= self.canaries:
            raise ValueError(f"{self}: correct <= guesses <= canaries must hold")


def p_value(seen: Guessed, *, epsilon: float, delta: float) -> float:
    """At most this is the chance of so many right guesses if (epsilon, delta) holds.

    >>> round(p_value(Guessed(10, 10, 10), epsilon=0.0, delta=0.0), 6)  # 2^-10
    0.000977
    """
    right = 1.0 / (1.0 + math.exp(-epsilon))
    tail = float(stats.binom.sf(seen.correct - 1, seen.guesses, right))
    if delta == 0.0 or seen.correct == 0:
        return min(1.0, tail)
    fewer = np.arange(1, seen.correct + 1)
    # P[v > W >= v - i] / i, the largest over i: what delta can add.
    between = stats.binom.sf(seen.correct - fewer - 1, seen.guesses, right) - tail
    return min(1.0, tail + 2 * seen.canaries * delta * float(np.max(between / fewer)))


def one_run(seen: Guessed, *, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon that is refuted by ``p_value``; 0 where none is."""
    error = 1.0 - confidence
    return _largest(lambda epsilon: p_value(seen, epsilon=epsilon, delta=delta) <= error)


@dataclass(frozen=True)
class Curve:
    """A trade-off curve as what it promises: (epsilon, delta) at each of some points, ``(n,)``.

    Fewer points promise less, so any choice of them is on the safe side.
    """

    epsilons: Scores
    deltas: Scores

    @classmethod
    def at(cls, epsilon: float, delta: float) -> Curve:
        """One (epsilon, delta) and nothing else."""
        return cls(np.array([epsilon]), np.array([delta]))

    def least_false(self, true: float) -> float:
        """The least false-alarm rate of any test that is right with chance ``true``.

        By ``P <= exp(e) Q + d`` for a set and for its complement.
        """
        grown = np.exp(self.epsilons)
        return max(
            0.0,
            float(np.max((true - self.deltas) / grown)),
            float(np.max(1.0 - self.deltas - grown * (1.0 - true))),
        )


def refuted(seen: Guessed, curve: Curve, *, confidence: float = CONFIDENCE) -> bool:
    """Whether so many right guesses refute that the mechanism keeps to the curve.

    Algorithm 3 of 2410.22235: were each number of right guesses from v on as likely as the curve
    allows, and all together as likely as the error, the mean number of guesses would be too small.
    """
    error, guesses, canaries = 1.0 - confidence, seen.guesses, seen.canaries
    if not seen.correct:
        return False
    right = error * seen.correct / canaries
    wrong = error * (guesses - seen.correct) / canaries
    for number in range(seen.correct - 1, -1, -1):
        least = max(wrong, curve.least_false(right))
        if least == wrong:  # then neither changes any more
            break
        right = min(1.0, right + number / (guesses - number) * (least - wrong))
        wrong = least
    return right + wrong > guesses / canaries


def one_run_f(seen: Guessed, *, delta: float, confidence: float = CONFIDENCE) -> float:
    """The largest epsilon for which (epsilon, delta) as a trade-off curve is refuted; 0 if none."""
    return _largest(lambda epsilon: refuted(seen, Curve.at(epsilon, delta), confidence=confidence))


@dataclass(frozen=True)
class Rates:
    """Of a test by a threshold: at least so many hits, at most so many false alarms."""

    hits: float
    alarms: float

    def refute(self, curve: Curve) -> bool:
        """Whether a test with these rates refutes that the mechanism keeps to the curve."""
        return curve.least_false(self.hits) > self.alarms


def rates(
    seen: Scores,
    unseen: Scores,
    *,
    better: Callable[[Rates], float],
    confidence: float = CONFIDENCE,
) -> Rates:
    """What one threshold on the scores does, both rates bounded together at the confidence.

    Of canaries that were in, and of others. Counts them as independent of one another. The
    threshold is the best by ``better`` on every fifth score, and judged on the others.
    """
    error = (1.0 - confidence) / 2

    def at(threshold: float, hits: Scores, alarms: Scores) -> Rates:
        true, false = int((hits > threshold).sum()), int((alarms > threshold).sum())
        most_missed = _most(len(hits) - true, len(hits), error)
        return Rates(1.0 - most_missed, _most(false, len(alarms), error))

    if min(len(seen), len(unseen)) < _FEWEST_SCORES:
        return Rates(0.0, 1.0)
    (few_seen, seen), (few_unseen, unseen) = _parted(seen), _parted(unseen)
    thresholds = np.unique(np.quantile(np.concatenate([few_seen, few_unseen]), _QUANTILES))
    best = max(thresholds, key=lambda it: better(at(float(it), few_seen, few_unseen)))
    return at(float(best), seen, unseen)


def apart(found: Rates) -> float:
    """How far the rates lie apart, as those of two Gaussians of one spread do."""
    return float(stats.norm.ppf(found.hits) - stats.norm.ppf(found.alarms))


def two_sample(
    seen: Scores, unseen: Scores, *, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Epsilon that no (epsilon, delta) below it explains, by ``rates``; 0 where none is refuted."""

    def ratio(found: Rates) -> float:
        return (found.hits - delta) / found.alarms

    found = rates(seen, unseen, better=ratio, confidence=confidence)
    return _largest(lambda epsilon: found.refute(Curve.at(epsilon, delta)))


def _parted(scores: Scores) -> tuple[Scores, Scores]:
    chooses = np.arange(len(scores)) % _CHOOSES == 0
    return scores[chooses], scores[~chooses]


def _most(count: int, total: int, error: float) -> float:
    """The largest rate that explains ``count`` of ``total`` (Clopper and Pearson)."""
    return 1.0 if count == total else float(stats.beta.ppf(1 - error, count + 1, total - count))


def _largest(is_refuted: Callable[[float], bool]) -> float:
    """The largest epsilon that is refuted, to ``_TOLERANCE`` from below; 0 where 0 is not."""
    if not is_refuted(0.0):
        return 0.0
    low, high = 0.0, MOST_EPSILON
    if is_refuted(high):
        return high
    while high - low > _TOLERANCE:
        middle = (low + high) / 2
        low, high = (middle, high) if is_refuted(middle) else (low, middle)
    return low
