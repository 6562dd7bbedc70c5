"""What a charged choice costs each site, known before the first run, and where it cannot be known.

Nothing here looks at data: costs follow from settings and public sizes.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NoReturn

from hushtune.common.config import RunConfig
from hushtune.common.config_io import replace
from hushtune.common.errors import ConfigError, PlanError
from hushtune.common.lora_rules import FEDIT, RULES
from hushtune.common.planning import site_plans
from hushtune.common.privacy.accountant import epsilon
from hushtune.common.privacy.plan import DpSgdEvent, Relation
from hushtune.common.privacy.selection import RandomCount, epsilon_of_best
from hushtune.simulations.searching.space import Parameter

_STEPS = ("train.rounds", "train.local_steps", "train.batch_size", "train.sampling_probability")
"""The settings, of those that can be searched, on which noise and number of steps depend."""

_MOST_KINDS = 24
_REMEDY = "choose on public data (--choice public), or leave the choice to nobody: fix the settings"


@dataclass(frozen=True, kw_only=True)
class SiteCost:
    """Of one site: epsilon of one run, at most, and of the run that is chosen; at `delta`."""

    epsilon_of_one: float
    epsilon: float
    delta: float


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a choice costs, by site, and which releases of one run that is about."""

    count: RandomCount
    sites: Mapping[str, SiteCost]
    kinds: Mapping[str, tuple[DpSgdEvent, ...]]


def check_chargeable(config: RunConfig) -> None:
    """ConfigError for a run of which no bound on a choice is known here."""
    privacy, simulation = config.privacy, config.simulation
    if privacy.trust == "off":
        _refuse("privacy.trust", "off", "a run without privacy has nothing to charge", '"site"')
    if privacy.trust == "distributed":
        why = "what whole numbers cost in secure sums is known as an epsilon, which does not go in"
        _refuse("privacy.trust", "distributed", why, '"site"')
    if privacy.unit == "client" or privacy.trust == "server":
        why = "all data of a client are protected, and the choice looks at validation rows plainly"
        _refuse("privacy.unit", privacy.unit, why, '"example" or "group"')
    if privacy.relation != Relation.ADD_OR_REMOVE_ONE:
        why = "no Renyi bound of replacing a record under Poisson sampling is known here"
        _refuse("privacy.relation", privacy.relation, why, Relation.ADD_OR_REMOVE_ONE.value)
    if privacy.insecure_seeded_noise:
        why = "noise that a seed repeats protects nothing"
        _refuse("privacy.insecure_seeded_noise", "true", why, "false")
    if config.metrics.release != "none":
        why = "figures that sites tell in every run would leave the runs that are not chosen too"
        _refuse("metrics.release", config.metrics.release, why, '"none"')
    if config.personal.method != "none":
        why = "each site's own model comes from every run, chosen or not"
        _refuse("personal.method", config.personal.method, why, '"none"')
    if simulation.policies is not None:
        why = (
            "a site with a policy of its own charges every run that it takes part in, as their "
            "server sees them all; towards it a choice costs no less than their sum"
        )
        _refuse("simulation.policies", str(simulation.policies), why, "none")
    if simulation.attack != "none":
        why = "attacked runs are no runs to release"
        _refuse("simulation.attack", simulation.attack, why, '"none"')


def _refuse(key: str, given: object, why: str, expected: str) -> NoReturn:
    raise ConfigError(
        f"a choice cannot be charged with these settings: {why}",
        given=f"{key} = {given}",
        expected=expected,
        remedy=_REMEDY,
    )


def cost_of(config: RunConfig, space: Sequence[Parameter], count: RandomCount) -> Cost:
    """The cost at each site; `config` has the public sizes of all of them.

    Raises ConfigError where noise or steps could be chosen from a continuous range or from too many
    values, and PlanError where one of the values has no plan.
    """
    check_chargeable(config)
    searched = [parameter.choices for parameter in space if parameter.key == "aggregation.rule"]
    for rule in searched[0] if searched else [config.aggregation.rule]:
        if rule in RULES and RULES[rule].kept:
            why = "a part of what is compared stays at each site, and what is released lacks it"
            _refuse("aggregation.rule", rule, why, f"a rule that shares all, such as {FEDIT.name}")
    plans = [site_plans(replace(config, chosen)) for chosen in _kinds(space)]
    found: dict[str, SiteCost] = {}
    kinds: dict[str, tuple[DpSgdEvent, ...]] = {}
    for site in sorted(config.data.public_sizes):
        of_site = [plan[site] for plan in plans]
        events = tuple(dict.fromkeys(plan.event(plan.steps) for plan in of_site))
        (delta,) = {plan.delta for plan in of_site}
        relation = of_site[0].relation
        found[site] = SiteCost(
            epsilon_of_one=max(epsilon([e], delta=delta, relation=relation) for e in events),
            epsilon=epsilon_of_best(
                [[event] for event in events], count=count, delta=delta, relation=relation
            ),
            delta=delta,
        )
        kinds[site] = events
    return Cost(count=count, sites=found, kinds=kinds)


def _kinds(space: Sequence[Parameter]) -> list[dict[str, Any]]:
    """Every combination of the values on which noise or steps depend."""
    listed: dict[str, tuple[Any, ...]] = {}
    for parameter in space:
        if parameter.key in _STEPS:
            if parameter.values is None:
                raise ConfigError(
                    f"{parameter.key} changes the noise: of a continuous range no cost is known",
                    given=f"{parameter.low} to {parameter.high}",
                    expected="a list of values, or whole numbers",
                    remedy=f"{parameter.key.rpartition('.')[2]} = {{ choices = "
                    f"[{parameter.low}, {parameter.high}] }}",
                )
            listed[parameter.key] = parameter.values
    found = [
        dict(zip(listed, chosen, strict=True)) for chosen in itertools.product(*listed.values())
    ]
    if len(found) > _MOST_KINDS:
        raise ConfigError(
            "too many combinations of settings change the noise: each needs a plan of its own",
            given=str(len(found)),
            expected=f"at most {_MOST_KINDS}",
            remedy=f"fewer values of {', '.join(listed)}",
        )
    return found


def check_covered(charged: Iterable[DpSgdEvent], kinds: Sequence[DpSgdEvent], *, site: str) -> None:
    """PlanError unless what a run charged is within one of the releases that were counted."""
    steps: dict[tuple[float, float], int] = {}
    for event in charged:
        key = (event.sampling_probability, event.noise_multiplier)
        steps[key] = steps.get(key, 0) + event.steps
    within = any(
        steps.keys() <= {(kind.sampling_probability, kind.noise_multiplier)}
        and sum(steps.values()) <= kind.steps
        for kind in kinds
    )
    if not within:
        raise PlanError(
            f"a run released more at site {site} than the cost of the choice was worked out for",
            given=f"{steps}",
            expected=f"one of {[kind.to_dict() for kind in kinds]}",
            remedy="release none of these runs, and begin anew in another folder",
        )


def epsilon_of_all(charged: Sequence[DpSgdEvent], *, delta: float, relation: Relation) -> float:
    """What all runs cost together towards who sees every one of them, as a server does.

    Their settings were drawn without a look at data or at one another, so they are composed as if
    they had been fixed before.
    """
    return epsilon(charged, delta=delta, relation=relation)
