"""Who adds up together."""

from __future__ import annotations

import math

import pytest

from hushtune.common.errors import PlanError
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import sensitivity


def cohort(number: int, least: int | None = None, false: int = 1) -> Cohort:
    """Sites of made-up names."""
    names = tuple(sorted(f"site {place:05d}" for place in range(number)))
    return Cohort(sites=names, min_survivors=least or number, colluding=false)


@pytest.mark.parametrize("number", [2, 3, 4, 10, 400])
@pytest.mark.parametrize("false", [0, 1])
def test_what_honest_sites_add_makes_up_the_whole_noise(number: int, false: int) -> None:
    least = min(number, (number + false + 1) // 2 + 1)
    group = cohort(number, least, false)
    share = group.share_std(1.7, 5000)
    whole = math.sqrt(least - false) * share
    assert whole == pytest.approx(1.7 * sensitivity(5000))


@pytest.mark.parametrize(
    ("number", "least", "false"),
    [
        (1, 1, 0),
        (5, 3, 0),
        (6, 4, 1),
        (4, 2, 0),
        (4, 5, 0),
        (4, 2, 1),
        (6, 3, 1),
        (4, 4, 4),
        (4, 4, -1),
        (5, 3, 2),
    ],
)
def test_a_cohort_that_could_be_opened_twice_or_protects_nobody_is_refused(
    number: int, least: int, false: int
) -> None:
    with pytest.raises(PlanError):
        cohort(number, least, false)


@pytest.mark.parametrize("names", [("a", "a"), ("b", "a")])
def test_a_site_counts_once(names: tuple[str, ...]) -> None:
    with pytest.raises(PlanError, match="name of its own"):
        Cohort(sites=names, min_survivors=2, colluding=0)


def test_few_sites_all_share_masks_and_any_survivors_open_them() -> None:
    group = cohort(10, 7)
    for site in group.sites:
        assert set(group.neighbours(site, session="s")) == set(group.sites) - {site}
    assert group.share_threshold == 7


@pytest.mark.parametrize("number", [2, 6, 20, 33])
def test_a_few_dozen_sites_all_share_masks_even_where_nobody_is_lost_or_false(number: int) -> None:
    assert cohort(number, number, 0).degree == number - 1


def test_many_sites_share_masks_with_some_and_all_agree_who() -> None:
    group = cohort(2000, 1900, 20)
    assert 20 < group.degree < 200
    around = {site: set(group.neighbours(site, session="s")) for site in group.sites}
    assert all(len(others) == group.degree for others in around.values())
    assert all(site in around[other] for site, others in around.items() for other in others)
    assert all(site not in others for site, others in around.items())
    other = {site: set(group.neighbours(site, session="t")) for site in group.sites}
    assert other != around
    # No two halves: whom one can reach over neighbours is everybody.
    seen, front = set[str](), {group.sites[0]}
    while front:
        seen |= front
        front = {name for site in front for name in around[site]} - seen
    assert seen == set(group.sites)
    assert group.degree // 2 < group.share_threshold <= group.degree + 1
