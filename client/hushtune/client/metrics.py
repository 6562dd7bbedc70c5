"""What a site tells of the global model: score and loss on its held-out units, with noise.

Each unit gives a vector in the unit square, how right its rows are on average (its score: of
classes the accuracy, see ``hushtune.common.kinds``) and their mean loss cut at ``MOST_LOSS``.
Adding, removing or replacing a unit moves the sum of these by at most sqrt(2) in L2 norm, so one
release is a Gaussian mechanism (Dwork and Roth 2014, theorem
A.1; Balle and Wang 1805.06530) of the order's noise multiplier, without sampling. The sums are
divided by a public number of units, never by how many there are. Figures that are asked for
without noise are the plain means over the units that there are, and the loss is not cut.
"""

from __future__ import annotations

import torch
from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.metrics_messages import MOST_TOLD_LOSS, SENSITIVITY
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import DpSgdEvent
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Units

MOST_LOSS = 4.0
"""Nats at which a row's loss is cut, so that no row can move the sum by more."""


def event(noise_multiplier: float) -> DpSgdEvent:
    """What one release costs: one step that draws every unit."""
    return DpSgdEvent(sampling_probability=1.0, noise_multiplier=noise_multiplier, steps=1)


def figures(
    task: Task,
    state: AdapterState,
    units: Units,
    *,
    public_units: float,
    noise_multiplier: float | None,
    noise: NoiseSource,
) -> dict[str, float]:
    """``score`` in [0, 1] and ``loss`` of an adapter, plain or in [0, MOST_LOSS] with noise."""
    if noise_multiplier is None:
        return _plain(task, state, units)
    sums = unit_sums(task, state, units)  # (2,)
    sums = noise.noised(sums, std=noise_multiplier * SENSITIVITY)
    # Cut to what is possible, which is free: it looks at nothing but the noisy sums.
    score, loss = (sums / public_units).clamp(0.0, 1.0).tolist()
    return {"score": score, "loss": loss * MOST_LOSS}


def _plain(task: Task, state: AdapterState, units: Units) -> dict[str, float]:
    if not len(units):
        return {"score": 0.0, "loss": 0.0}
    right, losses = task.row_figures(state, units.rows)
    told = torch.nan_to_num(losses, nan=MOST_TOLD_LOSS).clamp(0.0, MOST_TOLD_LOSS)
    rows = torch.stack([right.double(), told.double()], dim=1)  # (rows, 2)
    score, loss = units.means(rows).mean(0).tolist()
    return {"score": score, "loss": loss}


def unit_sums(task: Task, state: AdapterState, units: Units) -> Tensor:
    """Sum over units of (mean score, mean loss / MOST_LOSS); no norm above sqrt(2)."""
    if not len(units):
        return torch.zeros(2)
    right, losses = task.row_figures(state, units.rows)
    cut = torch.nan_to_num(losses, nan=MOST_LOSS, posinf=MOST_LOSS).clamp(0.0, MOST_LOSS)
    bounded = torch.nan_to_num(right.float(), nan=0.0).clamp(0.0, 1.0)
    rows = torch.stack([bounded, cut / MOST_LOSS], dim=1)  # (rows, 2)
    return units.means(rows).sum(0)
