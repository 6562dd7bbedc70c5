"""A lower bound on epsilon from what runs with and without a canary release.

Of a test with a threshold on one score a run (Jagielski et al. 2006.07709; Nasr et al. 2302.07956).
"""

from __future__ import annotations

import math

import numpy as np
from scipy import stats

CONFIDENCE = 0.99


def lower_bound(seen: np.ndarray, unseen: np.ndarray, *, delta: float) -> float:
    """Epsilon that no (epsilon, delta) below it explains, at ``CONFIDENCE`` for the whole.

    The threshold is chosen on one half of the runs, and both rates are bounded on the other half
    (Clopper and Pearson, 1934).
    """
    (choose_seen, seen), (choose_unseen, unseen) = (
        np.split(values, 2) for values in (seen, unseen)
    )

    def bound(threshold: float, hits: np.ndarray, alarms: np.ndarray) -> float:
        true, false = int((hits > threshold).sum()), int((alarms > threshold).sum())
        error = (1 - CONFIDENCE) / 2
        least = stats.beta.ppf(error, true, len(hits) - true + 1) if true else 0.0
        most = (
            stats.beta.ppf(1 - error, false + 1, len(alarms) - false)
            if false < len(alarms)
            else 1.0
        )
        return max(0.0, math.log((least - delta) / most)) if least > delta else 0.0

    thresholds = np.quantile(choose_unseen, np.linspace(0.5, 1, 26))
    best = max(thresholds, key=lambda at: bound(at, choose_seen, choose_unseen))
    return bound(float(best), seen, unseen)
