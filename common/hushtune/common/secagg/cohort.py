"""Who adds up together: the sites of a sum, how many must stay, and how many may be false.

``sites`` take part, ``min_survivors`` (m) of them must answer for a sum to be opened, and up to
``colluding`` (t) of them may tell the server all that they know. Each site adds a share of the
noise that is large enough for any ``m - t`` shares to make up the whole.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from hushtune.common.errors import PlanError
from hushtune.common.secagg.ring import sensitivity

MOST_SHARE = 2.0**15
"""Clip norms that a share of the noise has at most: a share of any number of values, which is less
than twice that by ``ring.sensitivity``, can then be drawn (``discrete.MOST_STD``)."""
_SECURITY_BITS = 40
"""A sparse graph fails to hide somebody with a chance of at most 2^-40."""

_LEAST_DEGREE = 32
"""A few dozen sites share masks with everybody: fewer neighbours would save them nothing."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Cohort:
    """The sites of a secure sum, by name and sorted; PlanError where it could protect nothing."""

    sites: tuple[str, ...]
    min_survivors: int
    colluding: int

    def __post_init__(self) -> None:
        number, least, false = len(self.sites), self.min_survivors, self.colluding
        if number < 2:
            raise PlanError(
                "a secure sum needs two sites or more: with fewer the sum is the site's own",
                given=f"{number} site{'' if number == 1 else 's'}",
                expected="2 or more",
                remedy='with one site, set privacy.trust = "site"',
            )
        if list(self.sites) != sorted(set(self.sites)):
            raise PlanError(
                "the sites of a secure sum are not in order, each with a name of its own",
                given=", ".join(self.sites)[:200],
                expected="different names, sorted",
            )
        if not 0 <= false < number:
            raise PlanError(
                "so many sites cannot side with the server: nobody would be left to protect",
                given=f"colluding_sites = {false} of {number}",
                expected=f"0 to {number - 1}",
                remedy="lower privacy.colluding_sites",
            )
        if least > number:
            raise PlanError(
                "min_survivors is more than there are sites",
                given=f"min_survivors = {least} of {number} sites",
                expected=f"at most {number}",
                remedy="lower privacy.min_survivors, or leave it out",
            )
        if not (least == number or 2 * least > number + false + 1):
            raise PlanError(
                "min_survivors does not fit the sites: two sets of so many could have only false "
                "sites in common, and a server could have each of them open another sum",
                given=f"min_survivors = {least}, {number} sites, colluding_sites = {false}",
                expected=_allowed((number + false + 1) // 2 + 1, number),
                remedy="set privacy.min_survivors, or lower privacy.colluding_sites",
            )

    @property
    def noise_shares(self) -> int:
        """The shares of noise that are sure to be in a sum and unknown to the server: m - t."""
        return self.min_survivors - self.colluding

    def check_noise(self, noise_multiplier: float) -> None:
        """PlanError for noise whose shares could not be drawn, however many values it is for."""
        share = noise_multiplier / math.sqrt(self.noise_shares)
        if share > MOST_SHARE:
            raise PlanError(
                "a share of so much noise cannot be drawn in whole numbers",
                given=f"noise multiplier {noise_multiplier:g}, {self.noise_shares} shares",
                expected=f"{MOST_SHARE * math.sqrt(self.noise_shares):g} or less",
                remedy="raise privacy.epsilon or privacy.delta: under so much noise nothing is "
                "learnt",
            )

    def share_std(self, noise_multiplier: float, num_values: int) -> float:
        """The noise that each site adds, in steps of the grid: any m - t shares make the whole."""
        return noise_multiplier * sensitivity(num_values) / math.sqrt(self.noise_shares)

    @property
    def needs_agreement(self) -> bool:
        """Whether sites have to make sure that all were told the same (see ``agreement``).

        Not where all must stay: each refuses any list but that of all sites by itself.
        """
        return self.min_survivors < len(self.sites)

    @property
    def is_complete(self) -> bool:
        """Whether every site shares masks with every other."""
        return self.degree == len(self.sites) - 1

    @property
    def degree(self) -> int:
        """How many others each site shares masks with: all of them, unless there are very many.

        Of a sparse graph, with a chance of at most 2^-40 over all sites: enough of any site's
        neighbours survive to open what it shared; too few of them are false to open it twice; and
        not all of one side of its neighbours are lost (Bell et al. 2020, section 3).
        """
        number = len(self.sites)
        return _degree(number, number - self.min_survivors, self.colluding, _SECURITY_BITS)

    @property
    def share_threshold(self) -> int:
        """How many shares open what a site has shared: m, or two thirds of a sparse graph's."""
        if self.is_complete:
            return self.min_survivors
        return _threshold(self.degree)

    def neighbours(self, site: str, *, session: str) -> tuple[str, ...]:
        """The others that a site shares masks with, sorted; who, follows from the session's name.

        A ring of all sites in an order that the session's name decides, each next to ``degree`` of
        them (the Harary graph of Bell et al.).
        """
        number, degree = len(self.sites), self.degree
        if degree == number - 1:
            return tuple(name for name in self.sites if name != site)
        seed = int.from_bytes(hashlib.sha256(session.encode()).digest(), "big")
        order = [self.sites[place] for place in np.random.default_rng(seed).permutation(number)]
        place = order.index(site)
        around = (offset for offset in range(-degree // 2, degree // 2 + 1) if offset)
        return tuple(sorted(order[(place + offset) % number] for offset in around))


def _allowed(least: int, number: int) -> str:
    if least >= number:
        return f"{number}, all of them"
    return f"{least} to {number}"


def _threshold(degree: int) -> int:
    return 2 * (degree + 1) // 3 + 1


@lru_cache(maxsize=64)
def _degree(number: int, silent: int, false: int, bits: int) -> int:
    """The least even degree that will do; ``number - 1`` where no smaller one does."""
    from scipy.stats import hypergeom

    chance = 2.0**-bits / number
    for degree in range(_LEAST_DEGREE, number - 1, 2):
        spare, twice = degree + 1 - _threshold(degree), 2 * _threshold(degree) - degree - 1
        unopened = hypergeom.sf(spare, number - 1, silent, degree)
        opened_twice = hypergeom.sf(twice - 1, number - 1, false, degree)
        cut_off = ((silent + false) / number) ** (degree // 2)
        if max(unopened, opened_twice, cut_off) <= chance:
            return degree
    return number - 1
