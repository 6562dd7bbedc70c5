"""Which delta promises something: not so large that it lets a whole unit out, nor too small."""

from __future__ import annotations

from hushtune.common.errors import PlanError

LEAST_DELTA = 1e-12
"""The smallest delta that is accounted for: tails of about 1e-15 are cut off in each composition,
and near that no noise is enough and no epsilon finite."""
DELTA_TOO_SMALL = (
    "delta is too small to account for: tails of the privacy loss of about 1e-15 are cut off, so "
    "no noise would be enough"
)


def check_delta(place: str, delta: float, number: int, *, one: str, together: bool) -> None:
    """Raise PlanError unless delta is large enough to account for and below 1 / ``number``.

    ``number``: the public number of units among which one hides: those of ``place``, or, if they
    are protected ``together``, those of all sites. ``one``: what such a unit is called.
    """
    if 0 < delta < LEAST_DELTA:
        raise PlanError(
            DELTA_TOO_SMALL,
            given=f"delta = {delta:g}",
            expected=f"{LEAST_DELTA:g} or more, and below 1/n = {1 / number:.3g}",
            remedy="a delta well below 1/n is enough, such as 1e-06 for a thousand records",
        )
    if 0 < delta < 1 / number:
        return
    where, what, remedy = (
        f"at {place}",
        f"one of its n = {number} {one}s in full",
        "lower privacy.delta, or leave out sites with so few rows",
    )
    if one == "client":
        where, what = "over all clients", f"all data of one of the n = {number} clients"
    elif together:
        where, what = "over all sites together", f"one of their n = {number} {one}s in full"
    if together or one == "client":
        remedy = "lower privacy.delta"
    raise PlanError(
        f"delta must be below 1/n {where}: at 1/n, publishing {what} would count as private",
        given=f"delta = {delta}",
        expected=f"above 0 and below {1 / number:.3g}",
        remedy=remedy,
    )
