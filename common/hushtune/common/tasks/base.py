"""What every kind of supervision offers to training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Protocol

from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.packing import Packing
from hushtune.common.tasks.objectives import Metrics
from hushtune.common.tasks.units import Piece, Rows, Units

__all__ = ["Batch", "Metrics", "Task"]


@dataclass(frozen=True, slots=True)
class Batch:
    """Model inputs and targets of ``b`` examples; every tensor has ``b`` rows, but for inputs that
    are packed, which have one row of places."""

    inputs: Mapping[str, Tensor]
    targets: Tensor  # (b, ...)
    packing: Packing | None = None


class Task(Protocol):
    """Data, model, loss and metrics of one kind of supervision, over rows named by index.

    A loss is one number an example, ``(b,)``, and depends on that example alone: a mean over the
    batch, or over its tokens, would let one example change the others' gradients.
    """

    @property
    def model(self) -> AdaptedModel:
        """The process's one model."""
        ...

    def level(self, state: AdapterState, trainable: tuple[str, ...] = ()) -> Level:
        """The cheapest start of a forward pass that is exact for this adapter."""
        ...

    @property
    def augments(self) -> bool:
        """Whether examples are changed at random when they are trained on."""
        ...

    def views(self, units: Units) -> Units:
        """Units as a training step sees them: each row as often as it has views."""
        ...

    def microbatches(self, units: Units, size: int, level: Level) -> list[Piece]:
        """Whole units in pieces of about ``size`` rows, one for each unit; none for no units.
        ``level``: where a pass over them will start."""
        ...

    def batch(
        self,
        rows: Rows,
        level: Level,
        *,
        draw: int | None = None,
        packing: Packing | None = None,
    ) -> Batch:
        """Inputs and targets of some rows. ``packing``: of the piece whose rows they are.

        ``draw``: of a training step that changes examples, which changes; those of a row follow
        from it, the row's content, and how often the row came before, and from no other row.
        """
        ...

    def example_losses(self, batch: Batch) -> Tensor:
        """One loss an example, ``(b,)``."""
        ...

    def row_figures(self, state: AdapterState, rows: Rows) -> tuple[Tensor, Tensor]:
        """How right each row is, in [0, 1] ``(n,)``, and its unweighted loss ``(n,)``."""
        ...

    def metrics_by_group(
        self, state: AdapterState, groups: Mapping[str, Rows]
    ) -> dict[str, Metrics]:
        """Figures of an adapter on groups of rows, which may overlap; installs the adapter."""
        ...

    def metrics_of_models(
        self, models: Mapping[str, tuple[AdapterState, Rows]], *, together: str
    ) -> dict[str, Metrics]:
        """Figures of several adapters, each on rows of its own, and of all rows ``together``."""
        ...
