"""Paired tests on equal seeds: which of two is better, by how much, and whether that can be told.

Of two conditions that differ in one setting the runs of one seed share data, split and initial
adapter, so their difference is what is looked at. The t test takes differences for normal; the
signed ranks of Wilcoxon (Biometrics Bulletin 1, 1945) do not, and of five pairs or fewer can never
fall below 0.05. All tests of one kind in one table are a family, and p values are corrected for
their number by Holm (Scandinavian Journal of Statistics 6, 1979).
"""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from hushtune.simulations.reporting.intervals import Estimate, differences, estimate

LEVEL = 0.05
NOT_TOLD_APART = "not told apart"


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """``first`` less ``second`` over their common seeds; p values None where there is no test.

    ``held_t`` and ``held_ranks`` are corrected for the number of tests.
    """

    condition: str
    first: str
    second: str
    difference: Estimate
    p_t: float | None
    p_ranks: float | None
    held_t: float | None = None
    held_ranks: float | None = None
    verdict: str = ""


def compare_pair(
    first: Mapping[int, float], second: Mapping[int, float], *, condition: str, names: Sequence[str]
) -> Comparison | None:
    """One comparison of values by seed, not yet corrected; None without a common seed."""
    seeds = sorted(first.keys() & second.keys())
    if not seeds:
        return None
    found = differences([(first[seed], second[seed]) for seed in seeds])
    p_t, p_ranks = _p_values(found)
    return Comparison(
        condition=condition,
        first=names[0],
        second=names[1],
        difference=estimate(found),
        p_t=p_t,
        p_ranks=p_ranks,
    )


def _p_values(found: Sequence[float]) -> tuple[float | None, float | None]:
    """Of the paired t test and the signed-rank test; None where one cannot be made.

    Differences that are all the same have no spread to hold their mean against.
    """
    from scipy.stats import ttest_1samp, wilcoxon

    if len(found) < 2:
        return None, None
    if not any(found):
        return 1.0, 1.0
    p_t = None
    if len({*found}) > 1:
        p_t = float(ttest_1samp(found, 0.0).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    with warnings.catch_warnings():  # of ties, for which the normal approximation is taken
        warnings.simplefilter("ignore")
        p_ranks = float(wilcoxon(found).pvalue)  # pyright: ignore[reportAttributeAccessIssue]
    return p_t, min(1.0, p_ranks)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Corrected p values, in the order given; what was not tested is no part of the family.

    >>> holm([0.01, None, 0.04, 0.03])
    [0.03, None, 0.06, 0.06]
    """
    told = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    held: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(told):
        largest = max(largest, min(1.0, (len(told) - rank) * p))
        held[place] = largest
    return held


def p_text(value: float | None) -> str:
    """A p value in words.

    >>> p_text(0.0004), p_text(0.0312), len(p_text(None))
    ('< 0.001', '0.031', 1)
    """
    if value is None:
        return "\N{EN DASH}"
    return "< 0.001" if value < 0.001 else f"{value:.3f}"


def judged(found: Sequence[Comparison], *, higher_is_better: bool) -> list[Comparison]:
    """All comparisons of one family, corrected and with their verdicts in words."""
    held_t = holm([one.p_t for one in found])
    held_ranks = holm([one.p_ranks for one in found])
    corrected = [
        replace(one, held_t=t, held_ranks=ranks)
        for one, t, ranks in zip(found, held_t, held_ranks, strict=True)
    ]
    return [replace(one, verdict=_verdict(one, higher_is_better)) for one in corrected]


def _verdict(one: Comparison, higher_is_better: bool) -> str:
    if one.difference.n < 2:
        return "one seed in common: not tested"
    if one.held_t is None:
        return "the same difference at every seed: not tested"
    if one.held_t >= LEVEL:
        return NOT_TOLD_APART
    better = one.first if (one.difference.mean > 0) is higher_is_better else one.second
    ranks = one.held_ranks
    if ranks is not None and ranks >= LEVEL:
        return f"{better} is better by the t test, {NOT_TOLD_APART} by ranks"
    return f"{better} is better"
