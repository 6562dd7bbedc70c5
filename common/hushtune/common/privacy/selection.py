"""What it costs to train a random number of times and to release the best result alone.

Papernot and Steinke (2110.03620): a mechanism is run K times, K drawn from a law that depends on no
data, and whichever of the K results is best leaves; the others, and K itself, are never told. Its
Renyi divergence is then a little more than that of one run, however large K may be. With a number
of runs that is fixed, or known, this fails (section 3.2 there), and with runs that learn from one
another nothing is proved: each has to be drawn anew, its settings too.

For K from the truncated negative binomial law of shape eta and gamma (definition 1; eta = 1 is the
geometric, eta = 0 the logarithmic one), theorem 2 bounds the divergence at order a, by that of one
run, rho, at a and at any other order b:

    rho(a) + (1 + eta) ((1 - 1/b) rho(b) + log(1/gamma) / b) + log(E[K]) / (a - 1)

and for K from a Poisson law of mean mu, theorem 6 does so by the delta(a) that one run has at
epsilon log(1 + 1/(a - 1)):

    rho(a) + mu delta(a) + log(mu) / (a - 1)
"""

from __future__ import annotations

import math
import secrets
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from functools import lru_cache
from typing import Any

from hushtune.common.errors import PlanError
from hushtune.common.privacy.plan import DpSgdEvent, Relation

SELECTION_ACCOUNTANT = (
    "Renyi divergence of the Poisson-sampled Gaussian at whole orders (Mironov et al. 1908.10530), "
    "of the best of a random number of runs (Papernot and Steinke 2110.03620), as (epsilon, delta) "
    "(Canonne et al. 2004.00010, proposition 12)"
)
ORDERS = (*range(2, 64), 80, 128, 256, 512)
_MOST_MEAN = 10_000.0


class CountLaw(StrEnum):
    """From which law the number of runs comes; `FIXED` is none that a choice can be charged by."""

    GEOMETRIC = "geometric"
    LOGARITHMIC = "logarithmic"
    POISSON = "poisson"
    FIXED = "fixed"


_SHAPES = {CountLaw.GEOMETRIC: 1.0, CountLaw.LOGARITHMIC: 0.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class RandomCount:
    """The law of the number of runs. Raises PlanError for a fixed number, or a mean of 1 or less.

    `mean`: how many runs there are on average. Of a Poisson law there may be none at all.
    """

    law: CountLaw
    mean: float

    def __post_init__(self) -> None:
        if self.law is CountLaw.FIXED:
            raise PlanError(
                "a fixed number of runs cannot be charged as one choice: whoever knows how many "
                "there were learns more from the best of them than any bound here says",
                given=f"{self.mean:g} runs, fixed",
                expected="a number that is drawn: geometric, logarithmic or poisson",
                remedy="draw the number of runs, or choose on public data",
            )
        if not 1 < self.mean <= _MOST_MEAN:
            raise PlanError(
                "the mean number of runs is out of range",
                given=str(self.mean),
                expected=f"above 1, at most {_MOST_MEAN:g}",
            )

    @property
    def gamma(self) -> float:
        """The parameter of definition 1 that gives the mean; PlanError for a Poisson law."""
        if self.law is CountLaw.GEOMETRIC:
            return 1 / self.mean
        if self.law is CountLaw.LOGARITHMIC:
            return _logarithmic_gamma(self.mean)
        raise PlanError("a Poisson law has no gamma", given=str(self.law))

    def chance(self, count: int) -> float:
        """The chance of so many runs."""
        if self.law is CountLaw.POISSON:
            if count < 0:
                return 0.0
            return math.exp(count * math.log(self.mean) - self.mean - math.lgamma(count + 1))
        if count < 1:
            return 0.0
        gamma = self.gamma
        if self.law is CountLaw.GEOMETRIC:
            return gamma * (1 - gamma) ** (count - 1)
        return (1 - gamma) ** count / (count * -math.log(gamma))

    def draw(self, uniform: Callable[[], float] | None = None) -> int:
        """How many runs there will be: drawn once, before the first, and told to nobody.

        `uniform`: where numbers in [0, 1) come from; by default the operating system, which no
        seed repeats.
        """
        chosen = _system_uniform() if uniform is None else uniform()
        count = 0 if self.law is CountLaw.POISSON else 1
        below = self.chance(count)
        while below <= chosen:
            count += 1
            more = self.chance(count)
            if below + more == below and count > self.mean:  # the rest is lost in rounding
                break
            below += more
        return count


@dataclass(frozen=True, kw_only=True, slots=True)
class ChoiceEvent:
    """The best of a random number of runs, and nothing else of them: what a ledger keeps of a
    whole search.

    `kinds`: what one run releases under each of the settings that may be drawn. It says nothing of
    how many runs there were. Towards whoever sees them all, as their server does, it bounds
    nothing: there each run's own charges add up. Raises PlanError for no kinds.
    """

    count: RandomCount
    kinds: tuple[DpSgdEvent, ...]

    def __post_init__(self) -> None:
        if not self.kinds:
            raise PlanError("there is no run to choose from", given="no events")

    @property
    def steps(self) -> int:
        """Of the run that was chosen, at most."""
        return max(event.steps for event in self.kinds)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {
            "law": self.count.law.value,
            "mean": self.count.mean,
            "kinds": [event.to_dict() for event in self.kinds],
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> ChoiceEvent:
        """Inverse of `to_dict`; PlanError, KeyError, TypeError or ValueError for anything else."""
        if set(values) != {"law", "mean", "kinds"}:
            raise PlanError("these are not the fields of a choice", given=", ".join(values))
        return cls(
            count=RandomCount(law=CountLaw(values["law"]), mean=float(values["mean"])),
            kinds=tuple(DpSgdEvent.from_dict(event) for event in values["kinds"]),
        )


Charged = DpSgdEvent | ChoiceEvent
"""What a site's ledger may hold."""


def _system_uniform() -> float:
    return secrets.randbits(53) / 2**53


def _logarithmic_gamma(mean: float) -> float:
    """The gamma for which (1/gamma - 1) / log(1/gamma) is the mean."""
    from scipy.optimize import brentq

    def excess(log_gamma: float) -> float:
        return math.expm1(-log_gamma) / -log_gamma - mean

    return math.exp(brentq(excess, -60.0, -1e-12, xtol=1e-14))  # pyright: ignore[reportArgumentType]


def renyi(events: Sequence[DpSgdEvent]) -> list[float]:
    """The Renyi divergence of all events together, at each of `ORDERS`; one record added or left
    out."""
    return [math.fsum(_step(event, order) * event.steps for event in events) for order in ORDERS]


@lru_cache(maxsize=2**14)
def _step(event: DpSgdEvent, order: int) -> float:
    """One step of a Poisson-sampled Gaussian at a whole order (1908.10530, section 3.3).

    Kept, as a ledger holds many charges of one kind and is asked before each of them.
    """
    rate, sigma = event.sampling_probability, event.noise_multiplier
    if rate == 1.0:
        return order / (2 * sigma**2)
    terms = [
        math.lgamma(order + 1)
        - math.lgamma(k + 1)
        - math.lgamma(order - k + 1)
        + k * math.log(rate)
        + (order - k) * math.log1p(-rate)
        + (k * k - k) / (2 * sigma**2)
        for k in range(order + 1)
    ]
    largest = max(terms)
    total = largest + math.log(math.fsum(math.exp(term - largest) for term in terms))
    return max(0.0, total) / (order - 1)


def renyi_of_best(one: Sequence[float], count: RandomCount) -> list[float]:
    """The divergence of the best of a random number of runs, from that of one, at `ORDERS`."""
    if count.law is CountLaw.POISSON:
        from dp_accounting.rdp.rdp_privacy_accountant import compute_delta

        return [
            rho
            + count.mean * compute_delta(ORDERS, one, math.log1p(1 / (order - 1)))[0]
            + math.log(count.mean) / (order - 1)
            for order, rho in zip(ORDERS, one, strict=True)
        ]
    shape, gamma = _SHAPES[count.law], count.gamma
    constant = (1 + shape) * min(
        (1 - 1 / order) * rho - math.log(gamma) / order
        for order, rho in zip(ORDERS, one, strict=True)
    )
    return [
        rho + constant + math.log(count.mean) / (order - 1)
        for order, rho in zip(ORDERS, one, strict=True)
    ]


def epsilon_of_best(
    kinds: Sequence[Sequence[DpSgdEvent]],
    *,
    count: RandomCount,
    delta: float,
    relation: Relation,
) -> float:
    """Epsilon at `delta` of whichever run is best; an upper bound, never below that of one run.

    `kinds`: the events of a run under each of the settings that may be drawn. At each order the
    costliest of them counts, which bounds a run whose settings are drawn at random. Raises
    PlanError for replacing a record, of which no Renyi bound under Poisson sampling is known here,
    for a delta outside (0, 1), and where nothing can be said.
    """
    if relation is not Relation.ADD_OR_REMOVE_ONE:
        raise PlanError(
            "a private choice is accounted for one relation only",
            given=f"relation = {relation}",
            expected=Relation.ADD_OR_REMOVE_ONE.value,
        )
    if not 0 < delta < 1:
        raise PlanError("delta is out of range", given=str(delta), expected="above 0 and below 1")
    if not kinds or not all(kinds):
        raise PlanError("there is no run to choose from", given="no events")
    from hushtune.common.privacy.accountant import epsilon

    found = _epsilon_of(_curve_of_best(kinds, count), delta)
    single = max(epsilon(events, delta=delta, relation=relation) for events in kinds)
    if not math.isfinite(found):
        raise PlanError("no bound is known for this choice", given=f"delta = {delta}")
    return max(found, single)


def epsilon_with_choices(
    choices: Sequence[ChoiceEvent],
    events: Sequence[DpSgdEvent],
    *,
    delta: float,
    relation: Relation,
) -> float:
    """Epsilon at `delta` of choices and of other releases together, by their Renyi divergences.

    Infinite for replacing a record, of which no bound is known here. Never below what a part of it
    costs by itself.
    """
    if relation is not Relation.ADD_OR_REMOVE_ONE:
        return math.inf
    from hushtune.common.privacy.accountant import epsilon

    curves = [renyi(events)]
    alone = [epsilon(events, delta=delta, relation=relation)]
    for choice in choices:
        kinds = [[event] for event in choice.kinds]
        curves.append(_curve_of_best(kinds, choice.count))
        alone.append(epsilon_of_best(kinds, count=choice.count, delta=delta, relation=relation))
    total = [math.fsum(column) for column in zip(*curves, strict=True)]
    return max(_epsilon_of(total, delta), *alone)


def _curve_of_best(kinds: Sequence[Sequence[DpSgdEvent]], count: RandomCount) -> list[float]:
    curves = [renyi(events) for events in kinds]
    worst = [max(column) for column in zip(*curves, strict=True)]
    return renyi_of_best(worst, count)


def _epsilon_of(curve: Sequence[float], delta: float) -> float:
    from dp_accounting.rdp.rdp_privacy_accountant import compute_epsilon

    return float(compute_epsilon(ORDERS, curve, delta)[0])
