"""What a sequence of DP-SGD events costs, by Google's dp-accounting.

The authority is the privacy loss distribution (PLD) of Koskela et al. (1906.03049) with the
connect-the-dots discretisation of Doroshenko et al. (2207.04380). Every discretisation used here
is pessimistic: the figure is an upper bound of the true epsilon at any interval. Renyi accounting
(Mironov 1702.07476) is kept as an independent and looser cross-check.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from functools import lru_cache, partial, reduce
from importlib.metadata import version
from typing import TYPE_CHECKING

from hushtune.common.errors import PlanError
from hushtune.common.privacy.delta import LEAST_DELTA
from hushtune.common.privacy.loss_grid import Merged, grid_width
from hushtune.common.privacy.mixtures import mixture_distribution
from hushtune.common.privacy.plan import MOST_NOISE_MULTIPLIER, DpSgdEvent, Relation
from hushtune.common.privacy.selection import Charged, ChoiceEvent, epsilon_with_choices

if TYPE_CHECKING:
    from dp_accounting.pld.privacy_loss_distribution import PrivacyLossDistribution
    from dp_accounting.privacy_accountant import NeighboringRelation

ACCOUNTANT = f"dp-accounting PLD {version('dp-accounting')}"
CALIBRATION_TOLERANCE = 1e-4
"""Relative: calibrated noise is at most this much larger than the least that would do."""

LEAST_NOISE_MULTIPLIER = 0.05

_LOWEST, _HIGHEST = math.log(LEAST_NOISE_MULTIPLIER), math.log(MOST_NOISE_MULTIPLIER)
_ROUGH = 8
_LEAST_GROUP_RATE = 1e-7
"""Below about 1e-9 dp-accounting finds no loss of a mixture that is above zero, and fails."""


def epsilon(events: Sequence[Charged], *, delta: float, relation: Relation) -> float:
    """Epsilon of all `events` together at `delta`, an upper bound; 0.0 for no events.

    Events of equal rate and noise are merged first, so R rounds of T steps cost exactly what one
    run of R*T steps costs. With choices among runs it is a Renyi bound (`epsilon_with_choices`).
    Raises PlanError for a delta outside (0, 1).

    >>> event = DpSgdEvent(sampling_probability=0.1316, noise_multiplier=1.725, steps=60)
    >>> round(epsilon([event], delta=1e-5, relation=Relation.ADD_OR_REMOVE_ONE), 3)
    2.997
    """
    _check_delta(delta)
    releases = [event for event in events if isinstance(event, DpSgdEvent)]
    choices = [event for event in events if isinstance(event, ChoiceEvent)]
    if choices:
        return epsilon_with_choices(choices, releases, delta=delta, relation=Relation(relation))
    merged = _merge(releases)
    return _epsilon(merged, delta, Relation(relation)) if merged else 0.0


def epsilon_rdp(
    events: Sequence[DpSgdEvent],
    *,
    delta: float,
    relation: Relation = Relation.ADD_OR_REMOVE_ONE,
) -> float:
    """The same cost by Renyi accounting: an independent bound, never below the PLD's.

    Raises PlanError for `REPLACE_ONE`, for which no Renyi bound of Poisson sampling is known here.
    """
    _check_delta(delta)
    if relation is not Relation.ADD_OR_REMOVE_ONE:
        raise PlanError(
            "the Renyi cross-check covers one relation only",
            given=f"relation = {relation}",
            expected=Relation.ADD_OR_REMOVE_ONE.value,
        )
    counts = tuple(Counter(events).items())
    return _epsilon_rdp(counts, delta, Relation(relation)) if counts else 0.0


def epsilon_group(events: Sequence[DpSgdEvent], *, delta: float, records: int) -> float:
    """Epsilon at `delta` for one who adds or removes `records` records instead of one.

    By the mixture of Gaussians of Ganesh (2401.10294): of k records, each clipped to 1, a binomial
    number is drawn. An upper bound at the same `delta`, on a coarser grid than `epsilon`, which it
    equals for one record; where that grid is too coarse, as at very low rates, the generic bound
    (Dwork and Roth 2014, theorem 2.2 and its extension to delta > 0) takes its place.
    """
    _check_delta(delta)
    if records < 1:
        raise PlanError("a group has at least one record", given=str(records), expected=">= 1")
    merged = _merge(events)
    if records == 1:
        return epsilon(events, delta=delta, relation=Relation.ADD_OR_REMOVE_ONE)
    if not merged or _ever_drawn(merged, records) <= delta:
        return 0.0  # with the records and without, the same is released but for such a chance
    return min(_epsilon_group(merged, delta, records), _generic_group(merged, delta, records))


def calibrate_noise(
    *,
    epsilon: float,
    delta: float,
    sampling_probability: float,
    steps: int,
    relation: Relation,
    also: Sequence[DpSgdEvent] = (),
) -> float:
    """The least noise multiplier, up to `CALIBRATION_TOLERANCE`, that costs at most `epsilon`.

    `also`: other releases on the same records that have to be paid for from `epsilon`.
    Never costs more than `epsilon`, and is never below `LEAST_NOISE_MULTIPLIER`. Raises PlanError
    where no noise up to `MOST_NOISE_MULTIPLIER` is enough.

    >>> sigma = calibrate_noise(epsilon=3.0, delta=1e-5, sampling_probability=0.1316, steps=60,
    ...                         relation=Relation.ADD_OR_REMOVE_ONE)
    >>> round(sigma, 2)
    1.72
    """
    _check_delta(delta)
    if not 0 < epsilon < math.inf:
        raise PlanError("epsilon is out of range", given=str(epsilon), expected="> 0, finite")
    return _calibrate(epsilon, delta, sampling_probability, steps, Relation(relation), tuple(also))


@lru_cache(maxsize=256)
def _calibrate(
    target: float,
    delta: float,
    rate: float,
    steps: int,
    relation: Relation,
    also: tuple[DpSgdEvent, ...],
) -> float:
    def cost(log_sigma: float, *, widen: int) -> float:
        step = DpSgdEvent(
            sampling_probability=rate, noise_multiplier=math.exp(log_sigma), steps=steps
        )
        return _epsilon(_merge((step, *also)), delta, relation, widen)

    # A wide grid finds the neighbourhood at a fraction of the price. It decides nothing: what is
    # returned was searched for, and its cost looked at, on the grid of `epsilon`.
    rough = _least_noise(
        partial(cost, widen=_ROUGH), target, start=0.0, stride=math.log(2), tolerance=0.01
    )
    least = _least_noise(
        partial(cost, widen=1),
        target,
        start=0.0 if rough is None else rough,
        stride=math.log(2) if rough is None else 0.02,
        tolerance=CALIBRATION_TOLERANCE / 2,
    )
    if least is None:
        raise PlanError(
            "no amount of noise reaches this epsilon",
            given=f"epsilon = {target}, delta = {delta}, q = {rate}, steps = {steps}",
            remedy="raise epsilon, or take fewer steps or a lower sampling probability",
        )
    return LEAST_NOISE_MULTIPLIER if least == _LOWEST else math.exp(least)


def _least_noise(
    cost: Callable[[float], float],
    target: float,
    *,
    start: float,
    stride: float,
    tolerance: float,
) -> float | None:
    """The logarithm of the least noise, up to `tolerance`, whose `cost` is at most `target`.

    Walks from `start` by growing strides until two points enclose it. None where no noise up to
    `MOST_NOISE_MULTIPLIER` will do, and never below `LEAST_NOISE_MULTIPLIER`.
    """
    from scipy.optimize import brentq

    enough: list[float] = []

    def excess(log_sigma: float) -> float:
        found = cost(log_sigma)
        # Logarithms of both make the curve nearly straight: a few evaluations find its root.
        ratio = math.log(max(found / target, 1e-12))
        if found > target:
            return max(ratio, 1e-300)  # never rounded to a root
        enough.append(log_sigma)
        return ratio

    low = high = start
    while excess(high) > 0:
        if high >= _HIGHEST:
            return None
        low, high, stride = high, min(high + stride, _HIGHEST), 2 * stride
    if low == high:
        while excess(low) <= 0:
            if low <= _LOWEST:
                return _LOWEST
            high, low, stride = low, max(low - stride, _LOWEST), 2 * stride
    # Ends when two points closer than the tolerance enclose the root: one of them is enough.
    brentq(excess, low, high, xtol=tolerance)  # pyright: ignore[reportArgumentType]
    return min(enough)


def _check_delta(delta: float) -> None:
    if not 0 < delta < 1:
        raise PlanError("delta is out of range", given=str(delta), expected="above 0 and below 1")


def _merge(events: Sequence[DpSgdEvent]) -> Merged:
    steps: dict[tuple[float, float], int] = {}
    for event in events:
        key = (event.sampling_probability, event.noise_multiplier)
        steps[key] = steps.get(key, 0) + event.steps
    return _merged(steps)


def _merged(steps: Mapping[tuple[float, float], int]) -> Merged:
    """Steps by rate and noise, in one order; all that draw every record become a single step.

    Without sampling, releases with noise s_1, s_2, ... are, rotated, one release whose precision
    1 / s^2 is the sum of theirs (Dong et al. 1905.02383, corollary 3.3). That is exact, and spares
    the grid the rounding of each step.
    """
    sampled = [(rate, sigma, steps[rate, sigma]) for rate, sigma in sorted(steps) if rate < 1]
    whole = [steps[rate, sigma] / sigma**2 for rate, sigma in sorted(steps) if rate == 1]
    return (*sampled, *([(1.0, math.fsum(whole) ** -0.5, 1)] if whole else []))


@lru_cache(maxsize=4096)
def _epsilon(merged: Merged, delta: float, relation: Relation, widen: int = 1) -> float:
    return float(_pld(merged, relation, widen).get_epsilon_for_delta(delta))


@lru_cache(maxsize=256)
def _epsilon_rdp(
    counts: tuple[tuple[DpSgdEvent, int], ...], delta: float, relation: Relation
) -> float:
    """Many sites of one run were charged alike, and each one's bound is looked for anew."""
    from dp_accounting.rdp import RdpAccountant

    # Whole orders only: the series for fractional ones does not always converge, and says so.
    orders = [*range(2, 64), 80, 128, 256, 512]
    accountant = RdpAccountant(orders, _dp_accounting_relation(relation))
    for event, count in counts:
        accountant.compose(event.to_dp_event(), count)
    return float(accountant.get_epsilon(delta))


@lru_cache(maxsize=16)
def _pld(merged: Merged, relation: Relation, widen: int) -> "PrivacyLossDistribution":
    interval = widen * grid_width(merged)
    plds = [
        # One step is its own composition; dp-accounting would round it once more.
        step if steps == 1 else step.self_compose(steps)
        for rate, sigma, steps in merged
        for step in (_step(rate, sigma, relation, interval),)
    ]
    return reduce(lambda total, other: total.compose(other), plds)


@lru_cache(maxsize=16)
def _step(
    rate: float, sigma: float, relation: Relation, interval: float
) -> "PrivacyLossDistribution":
    """One step; kept, as it takes longer to make than to compose any number of times."""
    from dp_accounting.pld import privacy_loss_distribution

    return privacy_loss_distribution.from_gaussian_mechanism(
        standard_deviation=sigma,
        sampling_prob=rate,
        value_discretization_interval=interval,
        neighboring_relation=_dp_accounting_relation(relation),
    )


@lru_cache(maxsize=256)
def _epsilon_group(merged: Merged, delta: float, records: int) -> float:
    from dp_accounting.pld import privacy_loss_distribution
    from scipy.stats import binom

    # A mixture's losses are inverted numerically, point by point.
    interval = records * grid_width(merged, coarser=10)
    total = privacy_loss_distribution.identity(value_discretization_interval=interval)
    counts = range(records + 1)
    for given_rate, sigma, steps in merged:
        rate = max(given_rate, _LEAST_GROUP_RATE)  # drawing more often never costs less
        if rate == 1.0:  # no mixture, but a Gaussian at k times the sensitivity
            whole = privacy_loss_distribution.from_gaussian_mechanism(
                standard_deviation=sigma / records, value_discretization_interval=interval
            )
            total = total.compose(whole if steps == 1 else whole.self_compose(steps))
            continue
        chances = [float(binom.pmf(count, records, rate)) for count in counts]
        drawn = [(count, chance) for count, chance in zip(counts, chances, strict=True) if chance]
        step = mixture_distribution(
            sigma=sigma,
            sensitivities=[float(count) for count, _ in drawn],
            chances=[chance for _, chance in drawn],
            interval=interval,
        )
        total = total.compose(step.self_compose(steps))
    return float(total.get_epsilon_for_delta(delta))


def _ever_drawn(merged: Merged, records: int) -> float:
    """The chance that any of `records` records is in any step."""
    if any(rate == 1 for rate, _, _ in merged):
        return 1.0
    return -math.expm1(math.fsum(records * n * math.log1p(-rate) for rate, _, n in merged))


def _generic_group(merged: Merged, delta: float, records: int) -> float:
    """k records one after the other: (k e, d (1 + exp(e) + ... + exp((k - 1) e))) at (e, d).

    Any d that is small enough gives a bound; the search finds one close to the largest.
    """

    def at(log_delta: float) -> tuple[float, float]:
        """One record's epsilon at d, and the logarithm of the sum that d is multiplied by."""
        one = _epsilon(merged, math.exp(log_delta), Relation.ADD_OR_REMOVE_ONE)
        return one, math.log(sum(math.exp(min(700.0, number * one)) for number in range(records)))

    low, high, best = math.log(LEAST_DELTA), math.log(delta / records), math.inf
    # A d below one that is too large costs no less: it is no larger than that one's sum allows.
    for _ in range(8):
        high = math.log(delta) - at(high)[1]
        if high < low:
            return math.inf
    for _ in range(16):
        middle = (low + high) / 2
        one, factor = at(middle)
        if middle + factor <= math.log(delta):
            best, low = min(best, records * one), middle
        else:
            high = middle
    return best


def _dp_accounting_relation(relation: Relation) -> "NeighboringRelation":
    from dp_accounting.privacy_accountant import NeighboringRelation

    return {
        Relation.ADD_OR_REMOVE_ONE: NeighboringRelation.ADD_OR_REMOVE_ONE,
        Relation.REPLACE_ONE: NeighboringRelation.REPLACE_ONE,
    }[relation]
