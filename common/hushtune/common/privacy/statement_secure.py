"""What a privacy statement says of secure sums: what they rest on, and what is left without it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

from hushtune.common.privacy import accountant
from hushtune.common.privacy.discrete import epsilon_of_the_grid
from hushtune.common.privacy.figures import bounded
from hushtune.common.privacy.plan import DpSgdEvent, Relation, Unit
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import GRID_BITS, sensitivity

MECHANISM = (
    "DP-SGD over all sites together: per-{unit} clipping over all trained tensors jointly, Poisson "
    "sampling at each site, secure aggregation of whole numbers (steps of 2^-{bits} clip norms, "
    "modulo 2^64) in which each site has its share of discrete Gaussian noise, a public denominator"
)
MECHANISM_OF_CLIENTS = (
    "each client's change clipped over all trained tensors jointly, secure aggregation of whole "
    "numbers (steps of 2^-{bits} clip norms, modulo 2^64) in which each client has its share of "
    "discrete Gaussian noise, a public denominator"
)
COVERED = (
    "every masked sum that the site sent in these rounds, and their opened sums",
    "everything computed from those sums: the final adapter, checkpoints, predictions",
)
NOT_COVERED = (
    "sites beyond the number named here that tell the server their noise, or add none",
    "a server that stands for sites which do not exist, or that hands out keys of its own in place "
    "of theirs. Sites refuse keys that two share and fewer survivors than promised, and open "
    "nothing unless enough of them have signed that they were told the same; but they know one "
    "another's keys from the server alone",
    "with more than a few dozen sites, each of which shares masks with some others alone: a server "
    "that chooses who drops out by who shares with whom, which follows from a name that it draws",
)
_MOST_SHOWN = 6


def mechanism(unit: Unit) -> str:
    """One line on what was done."""
    text = MECHANISM_OF_CLIENTS if unit is Unit.CLIENT else MECHANISM
    return text.format(unit=unit, bits=GRID_BITS)


def provided(cohort: Cohort) -> str:
    """What the sentence adds: on whom it rests."""
    number, false = len(cohort.sites), cohort.colluding
    sided = {
        0: "and to a server with which no site sides",
        1: "and to a server with which one other site sides",
    }.get(false, f"and to a server with which up to {false} other sites side")
    return f" {sided}, of {number} sites of which {cohort.min_survivors} stayed or more,"


def towards(cohort: Cohort | None) -> str:
    """To whom the promise is made: another site knows its own share of the noise."""
    if cohort is not None and cohort.colluding == 0:
        return "the server and the public, and not to its peers,"
    return "the server, its peers and the public"


def of_whole_numbers(cohort: Cohort, spent: Sequence[DpSgdEvent], *, num_values: int) -> float:
    """What it adds to epsilon that sums and noise of so many values are whole numbers, drawn by a
    machine: no more than this for the events of a run, whoever drops out."""
    return sum(
        epsilon_of_the_grid(
            num_values=num_values,
            std=event.noise_multiplier * sensitivity(num_values),
            steps=event.steps,
            shares=len(cohort.sites),
        )
        for event in spent
    )


def section(
    cohort: Cohort,
    spent: Sequence[DpSgdEvent],
    told: Sequence[DpSgdEvent],
    *,
    delta: float,
    relation: Relation,
    extra: float = 0.0,
) -> dict[str, Any]:
    """Who has to be honest for what; ``epsilon_by_colluding`` by the number of false sites.

    The noise that is left when c sites side with the server is that of m - c shares, of which the
    plan counts m - t. ``told`` are figures, which each site noises alone, whoever is false.
    ``extra``: what whole numbers cost (``of_whole_numbers``), which each epsilon has in it.
    """
    shares = cohort.noise_shares
    table: list[dict[str, float | int | None]] = []
    for false in range(min(cohort.min_survivors, _MOST_SHOWN)):
        left = cohort.min_survivors - false
        factor = math.sqrt(left / shares)
        thinner = [
            DpSgdEvent(
                sampling_probability=event.sampling_probability,
                noise_multiplier=event.noise_multiplier * factor,
                steps=event.steps,
            )
            for event in spent
        ]
        cost = accountant.epsilon([*thinner, *told], delta=delta, relation=relation)
        table.append({"colluding": false, "noise_shares": left, "epsilon": bounded(cost + extra)})
    return {
        "sites": list(cohort.sites),
        "min_survivors": cohort.min_survivors,
        "colluding": cohort.colluding,
        "noise_shares": shares,
        "epsilon_of_whole_numbers": extra,
        "epsilon_by_colluding": table,
    }


def told(section: dict[str, Any]) -> str:
    """The section as one paragraph and a table, Markdown."""
    from hushtune.common.privacy.figures import epsilon_text

    rows = "\n".join(
        f"| {row['colluding']} | {row['noise_shares']} | {epsilon_text(row['epsilon'])} |"
        for row in section["epsilon_by_colluding"]
    )
    return (
        f"A sum is opened when {section['min_survivors']} of {len(section['sites'])} sites or more "
        f"are in it. Each adds a share of the noise; {section['noise_shares']} shares that the "
        f"server does not know make up what is promised, so up to {section['colluding']} sites may "
        "tell it theirs. If more do, or fewer, the epsilon of a record of a site that does not is:"
        "\n\n| sites that side with the server | shares of noise left | epsilon |\n|---|---|---|\n"
        + rows
    )
