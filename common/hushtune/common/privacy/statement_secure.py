"""What a privacy statement says of secure sums: what they rest on, and what is left without it."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from hushtune.common.privacy import accountant
from hushtune.common.privacy.discrete import epsilon_of_the_grid
from hushtune.common.privacy.figures import bounded, epsilon_text, spans
from hushtune.common.privacy.plan import DpSgdEvent, Relation, Unit
from hushtune.common.privacy.statement_sentence import unit_word
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
    sided = {
        0: "no site tells it what that site knows",
        1: "at most one other site tells it what that site knows",
    }.get(cohort.colluding, f"at most {cohort.colluding} other sites tell it what they know")
    within = _within(cohort.min_survivors, len(cohort.sites))
    return (
        f" This holds if the server keeps to the protocol and {sided}; a sum was opened only with "
        f"{within} in it."
    )


def _within(least: int, number: int) -> str:
    """
    >>> _within(4, 4), _within(3, 4)
    ('all 4 sites', 'at least 3 of the 4 sites')
    """
    return f"all {number} sites" if least == number else f"at least {least} of the {number} sites"


def towards(cohort: Cohort | None) -> str:
    """To whom the promise is made: another site knows its own share of the noise."""
    if cohort is None:
        return "the server, its peers and the public"
    if cohort.colluding == 0:
        return "the server and the public, and not towards the other sites"
    return "the server, the other sites and the public"


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


def rests_on(section: Mapping[str, Any], unit: str) -> str:
    """What both pages say above the table of false sites."""
    number, shares = len(section["sites"]), section["noise_shares"]
    false = {0: "no site may tell the server its own", 1: "one site may tell the server its own"}
    may = false.get(
        section["colluding"], f"up to {section['colluding']} sites may tell the server theirs"
    )
    own = "Each site is one client. " if unit == Unit.CLIENT else ""
    one = unit_word(unit)
    whose = "client that does not" if unit == Unit.CLIENT else f"{one} of a site that does not"
    return (
        f"{own}A sum is opened only with {_within(section['min_survivors'], number)} in it. Each "
        f"site adds a share of the noise. {shares} share{'s make' if shares > 1 else ' makes'} up "
        f"the noise that is promised, so {may}. By the number of sites "
        f"that do, the epsilon of a {whose} is:"
    )


def told(section: Mapping[str, Any], unit: str) -> str:
    """The section as one paragraph and a table, Markdown."""
    rows = "\n".join(
        f"| {row['colluding']}{' (promised)' if row['colluding'] == section['colluding'] else ''} "
        f"| {row['noise_shares']} | {epsilon_text(row['epsilon'])} |"
        for row in section["epsilon_by_colluding"]
    )
    return (
        f"{rests_on(section, unit)}\n\n| sites that tell the server their share | shares of noise "
        f"left | epsilon |\n|---|---|---|\n{rows}"
    )


def several(unit: str) -> str:
    """What somebody with more than one unit reads, as all sites are in one sum."""
    if unit == Unit.CLIENT:
        return (
            "All records of one client are covered by its figure, however many there are. Whoever "
            "has records at two clients reads the figure for two clients."
        )
    one = unit_word(unit)
    has = "is in" if unit == Unit.GROUP else "has"
    return (
        f"All sites' records are in one sum. Whoever {has} two {one}s, at one site or at two, "
        f"reads the figure for two {one}s."
    )


def lost(rounds: Sequence[int]) -> str:
    """What became of rounds that the server began and did not finish; "" of none.

    >>> lost([3, 4]).partition(":")[0]
    'Rounds 3 to 4 were lost'
    """
    if not rounds:
        return ""
    which = f"Round{'' if len(rounds) == 1 else 's'} {spans(rounds)}"
    return (
        f"{which} {'was' if len(rounds) == 1 else 'were'} lost: the server stopped before the end. "
        "No step of it is in the model or was asked for again. What sites had charged for such "
        "steps stays charged, and is in the figures here."
    )
