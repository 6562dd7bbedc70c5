"""The privacy plan: sampling, clipping and noise of a whole run, calibrated as one object.

Every number in a plan is public. `make_plan` takes the *declared* public size of a site, never a
dataset, so that two neighbouring datasets always get one and the same plan.
"""

import math
import operator
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from enum import StrEnum
from typing import TYPE_CHECKING

from hushtune.common.errors import PlanError, TooFewRowsError
from hushtune.common.privacy.batch import check_expected
from hushtune.common.privacy.delta import check_delta

if TYPE_CHECKING:
    from dp_accounting.dp_event import DpEvent


MOST_NOISE_MULTIPLIER = 1e6
"""Beyond, what is left of a sum is nothing, and its float32 noise comes near the end of floats."""

CLIP_NORMS = (1e-6, 1e6)
"""Least and most: gradients, sums and noise of this size are far from the ends of float32, where
small values vanish and a clipped sum could move by more than the clip norm."""


class Unit(StrEnum):
    """What one person's contribution is, for the guarantee."""

    EXAMPLE = "example"
    GROUP = "group"
    CLIENT = "client"


class Relation(StrEnum):
    """Which two datasets count as neighbours."""

    ADD_OR_REMOVE_ONE = "add_or_remove_one"
    REPLACE_ONE = "replace_one"


class Trust(StrEnum):
    """Whom a site has to trust: `SITE` only itself; `SERVER` the server, which sees its updates;
    `DISTRIBUTED` that enough other sites add their noise and keep apart from the server. `OFF`
    means that nothing is protected.
    """

    SITE = "site"
    SERVER = "server"
    DISTRIBUTED = "distributed"
    OFF = "off"

    @property
    def charges_sites(self) -> bool:
        """Whether a site's own ledger is charged: what leaves it is protected, by its own noise."""
        return self in (Trust.SITE, Trust.DISTRIBUTED)


@dataclass(frozen=True, kw_only=True, slots=True)
class DpSgdEvent:
    """`steps` releases of a Poisson-sampled Gaussian sum; what the ledger keeps.

    `sampling_probability`: chance of each unit to be in a step, in (0, 1].
    `noise_multiplier`: standard deviation of the noise in units of the clip norm, > 0.
    Raises PlanError for anything out of range.
    """

    sampling_probability: float
    noise_multiplier: float
    steps: int

    def __post_init__(self) -> None:
        # Coerced, so that equal events have equal JSON (1 and 1.0 differ) and so equal hashes.
        object.__setattr__(self, "sampling_probability", _number(self, "sampling_probability"))
        object.__setattr__(self, "noise_multiplier", _number(self, "noise_multiplier"))
        object.__setattr__(self, "steps", _count(self, "steps"))
        _check_rate(self.sampling_probability)
        within = f"above 0, at most {MOST_NOISE_MULTIPLIER:g}"
        sigma = self.noise_multiplier
        _require(0 < sigma <= MOST_NOISE_MULTIPLIER, "noise_multiplier", sigma, within)

    def to_dict(self) -> dict[str, float | int]:
        """JSON-ready fields."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "DpSgdEvent":
        """Inverse of `to_dict`; PlanError for missing, unknown, ill-typed or out-of-range ones."""
        _check_keys(cls, values)
        return cls(**values)  # pyright: ignore[reportArgumentType] (__post_init__ checks the types)

    def to_dp_event(self) -> "DpEvent":
        """The same mechanism in the vocabulary of dp-accounting."""
        from dp_accounting import dp_event

        step = dp_event.PoissonSampledDpEvent(
            self.sampling_probability, dp_event.GaussianDpEvent(self.noise_multiplier)
        )
        return dp_event.SelfComposedDpEvent(step, self.steps)


@dataclass(frozen=True, kw_only=True, slots=True)
class PrivacyPlan:
    """What one site does in a whole run, and what that costs at most.

    `epsilon`, `delta`: the bound after all `steps`, under `relation` and `unit`.
    `sampling_probability`: Poisson rate q of each step, in (0, 1].
    `noise_multiplier`: sigma; the noise on a clipped sum has std `sigma * clip_norm`.
    `denominator`: the public number (q times the public size) that divides the noisy sum; never
    the size of the batch that was drawn.
    With `trust` off: sigma is 0, epsilon and clip norm are infinite, and nothing is protected.
    Raises PlanError for anything out of range.
    """

    epsilon: float
    delta: float
    sampling_probability: float
    noise_multiplier: float
    clip_norm: float
    denominator: float
    steps: int
    unit: Unit
    relation: Relation
    trust: Trust

    def __post_init__(self) -> None:
        for name in _PLAN_NUMBERS:
            object.__setattr__(self, name, _number(self, name))
        object.__setattr__(self, "steps", _count(self, "steps"))
        object.__setattr__(self, "unit", _member(Unit, "unit", self.unit))
        object.__setattr__(self, "relation", _member(Relation, "relation", self.relation))
        object.__setattr__(self, "trust", _member(Trust, "trust", self.trust))
        _check_rate(self.sampling_probability)
        _require(0 < self.denominator < math.inf, "denominator", self.denominator, "> 0")
        _require(0 < self.delta < 1, "delta", self.delta, "above 0 and below 1")
        if self.is_private:
            least, most = CLIP_NORMS
            allowed = f"{least:g} to {most:g}"
            _require(least <= self.clip_norm <= most, "clip_norm", self.clip_norm, allowed)
        without = {"epsilon": math.inf, "noise_multiplier": 0.0, "clip_norm": math.inf}
        for name, value in without.items():
            given = getattr(self, name)
            if self.is_private:
                _require(0 < given < math.inf, name, given, "> 0, finite")
            else:
                _require(given == value, name, given, f"{value}, as trust is off")

    @property
    def is_private(self) -> bool:
        """Whether anything is clipped, noised and charged at all."""
        return self.trust is not Trust.OFF

    def event(self, steps: int) -> DpSgdEvent:
        """What `steps` of this plan cost; PlanError beyond the plan's steps or with trust off."""
        if not self.is_private:
            raise PlanError(
                "a plan without protection has no cost to charge",
                given="trust = off",
                remedy="do not charge a run whose privacy is off",
            )
        _require(0 < steps <= self.steps, "steps", steps, f"1 to {self.steps}, as planned")
        return DpSgdEvent(
            sampling_probability=self.sampling_probability,
            noise_multiplier=self.noise_multiplier,
            steps=steps,
        )

    def to_dict(self) -> dict[str, float | int | str | None]:
        """JSON-ready fields; an infinite number becomes None, as JSON has no infinity."""
        return {
            name: None if value == math.inf else str(value) if isinstance(value, StrEnum) else value
            for name, value in asdict(self).items()
        }

    @classmethod
    def from_dict(cls, values: Mapping[str, object]) -> "PrivacyPlan":
        """Inverse of `to_dict`; PlanError for missing, unknown, ill-typed or out-of-range ones."""
        _check_keys(cls, values)
        given = dict(values)
        for name in ("epsilon", "clip_norm"):
            given[name] = math.inf if values[name] is None else values[name]
        return cls(**given)  # pyright: ignore[reportArgumentType] (__post_init__ checks the types)


def make_plan(
    *,
    epsilon: float,
    delta: float,
    public_size: int,
    batch_size: int | None,
    sampling_probability: float | None,
    steps: int,
    clip_norm: float,
    unit: Unit,
    relation: Relation,
    trust: Trust,
    also: Sequence[DpSgdEvent] = (),
    site: str | None = None,
) -> PrivacyPlan:
    """The plan of one site for a run of `steps`, with the least noise that keeps (epsilon, delta).

    `public_size`: the number of units that the site declares in public. Exactly one of
    `batch_size` (expected units a step) and `sampling_probability` is given. With `trust` off,
    epsilon and clip norm are not used. `also`: what else the run releases and the budget has to pay
    for, such as metrics; it is no part of the plan's steps. `site` is only for the text of errors.
    Raises TooFewRowsError where the expected batch is larger than the site, and PlanError for
    epsilon <= 0, delta outside (0, 1/public_size), steps < 1 or an epsilon out of reach.
    """
    _require(public_size >= 1, "public_size", public_size, ">= 1")
    _require(steps >= 1, "steps (rounds x local steps)", steps, ">= 1")
    place = "the site" if site is None else f"site {site}"
    rate = _rate(place, public_size, batch_size=batch_size, probability=sampling_probability)
    denominator = float(batch_size) if batch_size is not None else rate * public_size
    check_expected(place, denominator, public_size, of_clients=unit is Unit.CLIENT)
    protected = trust is not Trust.OFF
    noise_multiplier = 0.0
    if protected:
        _require(0 < epsilon < math.inf, "epsilon", epsilon, "> 0, finite")
        _require(0 < clip_norm < math.inf, "clip_norm", clip_norm, "> 0, finite")
        together = trust is Trust.DISTRIBUTED
        check_delta(place, delta, public_size, one=_ONE[unit], together=together)
        # The accountant takes a second to import: only a plan that needs it pays for that.
        from hushtune.common.privacy.accountant import calibrate_noise

        noise_multiplier = calibrate_noise(
            epsilon=epsilon,
            delta=delta,
            sampling_probability=rate,
            steps=steps,
            relation=relation,
            also=also,
        )
    return PrivacyPlan(
        epsilon=epsilon if protected else math.inf,
        delta=delta,
        sampling_probability=rate,
        noise_multiplier=noise_multiplier,
        clip_norm=clip_norm if protected else math.inf,
        denominator=denominator,
        steps=steps,
        unit=unit,
        relation=relation,
        trust=trust,
    )


_ONE = {Unit.EXAMPLE: "record", Unit.GROUP: "group", Unit.CLIENT: "client"}

_PLAN_NUMBERS = (
    "epsilon",
    "delta",
    "sampling_probability",
    "noise_multiplier",
    "clip_norm",
    "denominator",
)


def _rate(
    place: str, public_size: int, *, batch_size: int | None, probability: float | None
) -> float:
    if batch_size is None and probability is not None:
        _check_rate(probability)
        return probability
    if batch_size is None or probability is not None:
        raise PlanError(
            "a plan needs either a batch size or a sampling probability",
            given=f"batch_size {batch_size}, sampling_probability {probability}",
            expected="exactly one of the two",
        )
    _require(batch_size >= 1, "batch_size", batch_size, ">= 1")
    if batch_size > public_size:
        raise TooFewRowsError(
            f"{place} has {public_size} training rows, fewer than the expected batch of "
            f"{batch_size}",
            given=f"{public_size} rows, batch_size {batch_size}",
            expected=f"batch_size of at most {public_size}",
            remedy="lower train.batch_size, or set train.sampling_probability in its place",
        )
    return batch_size / public_size


def _check_rate(rate: float) -> None:
    _require(0 < rate <= 1, "sampling_probability", rate, "above 0, at most 1")


def _require(holds: bool, name: str, given: object, expected: str) -> None:
    if not holds:
        raise PlanError(f"{name} is out of range", given=f"{name} = {given}", expected=expected)


def _check_keys(kind: type, values: Mapping[str, object]) -> None:
    expected = {field.name for field in fields(kind)}
    if set(values) != expected:
        raise PlanError(
            f"these are not the fields of a {kind.__name__}",
            given=", ".join(sorted(map(str, values))),
            expected=", ".join(sorted(expected)),
        )


def _number(holder: object, name: str) -> float:
    value = getattr(holder, name)
    if isinstance(value, bool) or not isinstance(value, int | float) or math.isnan(value):
        raise PlanError(f"{name} is not a number", given=repr(value), expected="a number")
    return float(value)


def _count(holder: object, name: str) -> int:
    value = getattr(holder, name)
    try:
        count = 0 if isinstance(value, bool) else operator.index(value)
    except TypeError:
        count = 0
    if not 1 <= count < 2**53:
        raise PlanError(f"{name} is not a count", given=repr(value), expected="an integer >= 1")
    return count


def _member(kind: type[StrEnum], name: str, value: object) -> StrEnum:
    try:
        return kind(value)
    except ValueError:
        raise PlanError(f"unknown {name}", given=value, expected=", ".join(kind)) from None
