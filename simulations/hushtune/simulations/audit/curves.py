"""The trade-off curve of what was charged, and of the same mechanism with more or less noise.

An (epsilon, delta) says little of a mechanism: what a Poisson-sampled Gaussian promises at all
other deltas is stronger, and so easier to refute where it is broken. The curve of what was charged
follows from the accountant. As it stands it is a claim, and refuting it refutes the claim, whatever
the mechanism is. With the noise scaled it is a family, and the least noise that is refuted gives a
lower bound on the epsilon of a mechanism of that family (Nasr et al. 2302.07956).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np

from hushtune.common.privacy import accountant
from hushtune.common.privacy.plan import MOST_NOISE_MULTIPLIER, DpSgdEvent, Relation
from hushtune.simulations.audit.bounds import Curve

Events = tuple[DpSgdEvent, ...]
_DELTAS = (*np.logspace(-7, -1.6, 12).tolist(), *np.linspace(0.04, 0.94, 16).tolist())
_STEP = 1.05
_MOST_NOISE = 16.0


@dataclass(frozen=True)
class Claim:
    """What the sites' ledgers hold of a run: each one's events, and the delta of the promise.

    Neighbours add or remove one unit, as a canary's coin does.
    """

    sites: tuple[Events, ...]
    delta: float

    def epsilon(self, noise: float = 1.0) -> float:
        """The largest of any site, with ``noise`` times the noise."""
        return max(_epsilon(events, self.delta, noise) for events in self.sites)

    def curve(self, noise: float = 1.0) -> Curve:
        """What holds at every site, with ``noise`` times the noise."""
        promised = np.array([[_epsilon(e, d, noise) for d in _DELTAS] for e in self.sites])
        return Curve(promised.max(0), np.array(_DELTAS))

    def bound(self, refutes: Callable[[Curve], bool]) -> float:
        """Epsilon with the least noise, of steps of 5%, that is refuted; 0 where none is.

        ``refutes`` must hold for more noise where it holds for less.
        """
        lowest, highest = _lowest(self.sites), _highest()
        low, high = (lowest, 0) if refutes(self.curve()) else (1, highest + 1)
        while low < high:  # each power from `high` on is refuted, and none below `low`
            middle = (low + high) // 2
            if refutes(self.curve(_STEP**middle)):
                high = middle
            else:
                low = middle + 1
        return self.epsilon(_STEP**high) if high <= highest else 0.0


def _lowest(sites: tuple[Events, ...]) -> int:
    """The least power of the step at which the accountant can still tell what the noise costs."""
    least = min(event.noise_multiplier for events in sites for event in events)
    return math.ceil(math.log(accountant.LEAST_NOISE_MULTIPLIER / least, _STEP))


def _highest() -> int:
    return math.floor(math.log(_MOST_NOISE, _STEP))


@lru_cache(maxsize=65536)
def _epsilon(events: Events, delta: float, noise: float) -> float:
    scaled = [
        replace(e, noise_multiplier=min(MOST_NOISE_MULTIPLIER, noise * e.noise_multiplier))
        for e in events
    ]
    return accountant.epsilon(scaled, delta=delta, relation=Relation.ADD_OR_REMOVE_ONE)
