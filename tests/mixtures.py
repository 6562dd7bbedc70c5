"""The library's search for the losses of a mixture of Gaussians, for all losses at once.

It calls itself for each half of each interval, which takes some hundred milliseconds for every
private site of a run: with its bound for groups every statement asks for it. The numbers are the
same to the bit, which ``common/privacy/test_mixtures.py`` holds; what tests the accountant itself
has the library's own.
"""

from __future__ import annotations

from typing import Any

import numpy as np

NAME = (
    "dp_accounting.pld.privacy_loss_mechanism"
    ".MixtureGaussianPrivacyLoss._inverse_privacy_losses_with_range"
)


def inverse(self: Any, losses: Any, bounds: tuple[float, float], precision: float = 1e-6) -> Any:
    """For each loss the smallest multiple of ``precision`` at which the loss is at most that."""
    low, high = np.full_like(losses, bounds[0]), np.full_like(losses, bounds[1])
    wide = high - low > precision
    while wide.any():
        middle = (low + high) / 2
        above = losses < losses_at(self, middle)
        low, high = np.where(wide & above, middle, low), np.where(wide & ~above, middle, high)
        wide = high - low > precision
    return np.floor(high / precision) * precision


def losses_at(self: Any, places: Any) -> Any:
    """The privacy loss at each place."""
    one = self.sensitivities * places[:, None] / self._variance
    constants = self._precompute_privacy_loss_constants
    if self.adjacency_type.name == "ADD":
        return -np.logaddexp.reduce(constants + one, axis=1)
    return np.logaddexp.reduce(constants - one, axis=1)
