"""Means with 95 % intervals, and what is not beaten in two respects."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

CONFIDENCE, FEWEST = 0.95, 3


@dataclass(frozen=True)
class Estimate:
    """The mean of ``n`` values; ``half``: half the width of its interval, None of one or two."""

    n: int
    mean: float
    half: float | None

    @property
    def low(self) -> float | None:
        """The interval's lower end."""
        return None if self.half is None else self.mean - self.half

    @property
    def high(self) -> float | None:
        """The interval's upper end."""
        return None if self.half is None else self.mean + self.half


def written(value: float) -> float:
    """A figure of merit to six digits: models compute in float32, and what differs beyond is equal.

    >>> written(0.70833331) == written(0.70833334)
    True
    """
    return float(f"{value:.6g}")


def differences(pairs: Sequence[tuple[float, float]]) -> list[float]:
    """First less second of each pair, rounded to where float32 has the larger of them.

    So differences that are equal are so to the last bit, and ties of ranks are ties.

    >>> differences([(77 / 120, 76 / 120), (84 / 120, 83 / 120), (0.70833331, 0.70833334)])
    [0.008333, 0.008333, 0.0]
    """
    largest = max(abs(value) for pair in pairs for value in pair)
    if not 0.0 < largest < math.inf:
        return [first - second for first, second in pairs]
    places = 6 - math.ceil(math.log10(largest))
    return [round(first - second, places) for first, second in pairs]


def estimate(values: Sequence[float]) -> Estimate:
    """Mean and 95 % interval by Student's t, which takes the values for a normal sample.

    The fewest that have one are three: of two its half is nine times their standard deviation.

    >>> found = estimate([0.80, 0.82, 0.84])
    >>> found.n, round(found.mean, 3), round(found.half, 4)
    (3, 0.82, 0.0497)
    """
    from scipy.stats import t

    mean, n = statistics.fmean(values), len(values)
    if n < FEWEST:
        return Estimate(n, mean, None)
    quantile = float(t.ppf((1 + CONFIDENCE) / 2, n - 1))
    return Estimate(n, mean, quantile * statistics.stdev(values) / math.sqrt(n))


def front(points: Sequence[tuple[float, float]]) -> list[int]:
    """The places of the points that no other one beats, by cost; each is (cost, loss), less better.

    Of equal points all stay.

    >>> front([(1, 0.4), (2, 0.3), (3, 0.35), (2, 0.5)])
    [0, 1]
    """
    unbeaten = [
        place
        for place, (cost, loss) in enumerate(points)
        if not any(
            other_cost <= cost and other_loss <= loss and (other_cost, other_loss) != (cost, loss)
            for other_cost, other_loss in points
        )
    ]
    return sorted(unbeaten, key=lambda place: points[place])
