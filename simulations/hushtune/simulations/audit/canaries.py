"""Canaries: units of a site's training data that are made to be recognised.

- A *gradient canary* is a row whose gradient is one coordinate of the head's weights, far longer
  than the clip norm: after clipping it adds the clip norm there and nothing elsewhere, which is the
  most that any unit may do, and others' canaries do not get in its way. It is an example like any
  other to the client: drawn by Poisson sampling, differentiated by the same hooks, clipped, noised.
- A *mislabelled canary* is a real row under a wrong label.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import UnsupportedModelError
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.packing import Packing
from hushtune.common.tasks.base import Batch, Metrics, Task
from hushtune.common.tasks.units import Piece, Rows, Units

WEIGHT = "head.weight"
_LOUDNESS = 100.0
"""Clip norms in a canary's gradient. Its output's bias has one, so that a hundredth goes there."""


@dataclass(frozen=True)
class Placed:
    """A site's gradient canaries: ``coordinates (n,)`` of the flat head weight, ``included (n,)``.

    Canary ``i`` is row ``first_row + i``, beyond the rows that there are.
    """

    coordinates: Rows
    included: np.ndarray
    first_row: int

    @property
    def units(self) -> Units:
        """Those that are in, each a unit of its own."""
        return Units.single(self.first_row + np.flatnonzero(self.included))


class CanaryTask:
    """A site's task with gradient canaries in place of its rows; all else is the task's own."""

    def __init__(self, task: Task, placed: Placed, *, clip_norm: float) -> None:
        self._task = task
        self._placed = placed
        self._pull = clip_norm

    @property
    def model(self) -> AdaptedModel:
        """See ``Task``."""
        return self._task.model

    @property
    def augments(self) -> bool:
        """See ``Task``."""
        return self._task.augments

    def level(self, state: AdapterState, trainable: tuple[str, ...] = ()) -> Level:
        """See ``Task``."""
        return self._task.level(state, trainable)

    def views(self, units: Units) -> Units:
        """See ``Task``."""
        return self._task.views(units)

    def microbatches(self, units: Units, size: int, level: Level) -> list[Piece]:
        """See ``Task``."""
        pieces: list[Piece] = []
        for start in range(0, len(units), size):
            places = np.arange(start, min(start + size, len(units)), dtype=np.int64)
            pieces.append(Piece.filled(units.take(places), size))
        return pieces

    def batch(
        self,
        rows: Rows,
        level: Level,
        *,
        draw: int | None = None,
        packing: Packing | None = None,
    ) -> Batch:
        """See ``Task``."""
        width = self.model.feature_size
        outputs, inputs = np.divmod(self._placed.coordinates[rows - self._placed.first_row], width)
        features = torch.zeros(len(rows), width)
        features[torch.arange(len(rows)), torch.from_numpy(inputs)] = _LOUDNESS
        device = next(self.model.parameters()).device
        return Batch({"features": features.to(device)}, torch.from_numpy(outputs).to(device))

    def example_losses(self, batch: Batch) -> Tensor:
        """See ``Task``: a canary's is linear in one output, so that its gradient never changes."""
        found = self.model(batch.inputs)
        return self._pull * found.gather(1, batch.targets.unsqueeze(1)).squeeze(1)

    def row_figures(self, state: AdapterState, rows: Rows) -> tuple[Tensor, Tensor]:
        """See ``Task``."""
        return self._task.row_figures(state, rows)

    def metrics_by_group(
        self, state: AdapterState, groups: Mapping[str, Rows]
    ) -> dict[str, Metrics]:
        """See ``Task``."""
        return self._task.metrics_by_group(state, groups)

    def metrics_of_models(
        self, models: Mapping[str, tuple[AdapterState, Rows]], *, together: str
    ) -> dict[str, Metrics]:
        """See ``Task``."""
        return self._task.metrics_of_models(models, together=together)


def num_coordinates(model: AdaptedModel) -> int:
    """How many gradient canaries fit side by side; raises UnsupportedModelError without any."""
    if not (model.reads_features and isinstance(model.head, nn.Linear)):
        raise UnsupportedModelError(
            "this model has no linear head on one pooled vector an example, in which an audit "
            "could put canaries",
            given=f"head {model.head_kind}",
            expected="a classifier or regressor of texts or images",
            remedy="audit a run of another kind with the same privacy settings: they are accounted "
            "for in the same way",
        )
    return model.head.weight.numel()


def place(count: int, *, coordinates: int, first_row: int, random: np.random.Generator) -> Placed:
    """``count`` canaries at distinct coordinates, each in by a fair coin."""
    return Placed(
        coordinates=random.permutation(coordinates)[:count].astype(np.int64),
        included=random.random(count) < 0.5,
        first_row=first_row,
    )
