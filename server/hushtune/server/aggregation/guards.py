"""How many faulty sites an estimate guards against in a run, and what to say where it is none."""

from __future__ import annotations

from dataclasses import dataclass

from hushtune.common.compatibility import refusal
from hushtune.common.config import AggregationConfig
from hushtune.server.aggregation.aggregator import ROBUST, make_estimate
from hushtune.server.aggregation.robust import assumed


@dataclass(frozen=True)
class Unguarded:
    """A warning: what is not guarded against, and what to do."""

    message: str
    remedy: str


def withstood(config: AggregationConfig, updates: int) -> int:
    """How many of a round's updates may be anything; FederationError where they are too few."""
    estimate = make_estimate(config)
    if config.estimate == "mean":
        return 0
    return assumed(config.estimate, estimate.least, faulty=config.faulty_sites, updates=updates)


def unguarded(config: AggregationConfig, updates: int) -> Unguarded | None:
    """What to say of an estimate that was chosen to guard and guards against nobody; else None.

    ``updates``: of a round in which every site answers that is asked. FederationError where they
    are too few for the estimate.
    """
    if config.estimate == "mean" or config.norm_bound is not None:  # a bound holds for one site too
        return None
    if withstood(config, updates):
        return None
    least = make_estimate(config).least(1)
    instead = [name for name in ROBUST if _guards(config, name, updates)]
    other = f", or set aggregation.estimate to {' or '.join(instead)}" if instead else ""
    return Unguarded(
        f"aggregation.estimate = {config.estimate!r} guards against nobody here: of {updates} "
        f"updates a round it withstands 0 that are anything",
        remedy=(
            "leave aggregation.faulty_sites out, or set it to 1 or more"
            if config.faulty_sites == 0 and updates >= least
            else f"have {least} sites or more in a round{other}"
        ),
    )


def _guards(config: AggregationConfig, name: str, updates: int) -> bool:
    """Whether another estimate guards against one site, and goes with the rule."""
    goes = refusal(rule=config.rule, trust="site", estimate=name) is None
    return goes and ROBUST[name]().least(1) <= updates
