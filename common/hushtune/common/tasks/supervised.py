"""Training and evaluation of one adapted model: the same for every kind of supervision."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import cached_property, partial
from typing import cast

import numpy as np
import torch
from torch import Tensor

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.packing import Packing
from hushtune.common.tasks.activations import (
    Activations,
    InputRows,
    TokenRows,
    in_pieces,
    padded_to_beside,
    shapes_of,
    side_by_side,
)
from hushtune.common.tasks.augment import AugmentedRows
from hushtune.common.tasks.base import Batch, Metrics
from hushtune.common.tasks.frozen_pass import frozen_pass, readable_layers
from hushtune.common.tasks.objectives import Objective
from hushtune.common.tasks.packed_rows import packed_inputs, packed_pieces
from hushtune.common.tasks.shared_states import Rest, filled
from hushtune.common.tasks.targets import DenseTargets, TargetRows
from hushtune.common.tasks.units import Piece, Rows, Units

EVALUATION_BATCH = 16  # of about one length: of more, many would only fill a batch up


class Supervised:
    """One adapted model over one table of rows, whatever its inputs and targets are."""

    def __init__(
        self,
        model: AdaptedModel,
        inputs: InputRows,
        targets: TargetRows,
        objective: Objective,
        *,
        evaluation_batch: int = EVALUATION_BATCH,
        cache_megabytes: int = 0,
        on_fill: Callable[[int, int], None] | None = None,
        augmented: AugmentedRows | None = None,
        layers: bool = False,
    ) -> None:
        """``augmented``: the inputs as training changes them at random; evaluation never does.
        ``layers``: heads will be compared by the layer that they read, so that one pass fills all.

        Activations are kept where ``cache_megabytes`` are enough; ``on_fill(done, total)`` hears
        how filling them goes. Whether they are kept decides how long it takes and, of rows
        that are judged side by side, how their figures are rounded; nothing else."""
        self._model = model
        self._inputs = inputs
        self._targets = targets
        self._objective = objective
        self.evaluation_batch = evaluation_batch
        self._budget = cache_megabytes * 2**20
        self._all = np.arange(len(inputs.lengths), dtype=np.int64)
        self._on_fill = on_fill
        self._augmented = augmented
        self._kept: Activations | None = None
        self._features_tried = False
        self._fills_layers = layers
        self._layer: int | None = None
        self._of_layers: dict[int, Tensor] = {}  # (n, d) each

    @property
    def model(self) -> AdaptedModel:
        """The process's one model."""
        return self._model

    @property
    def inputs(self) -> InputRows:
        """The rows' inputs."""
        return self._inputs

    @property
    def objective(self) -> Objective:
        """What outputs are held against."""
        return self._objective

    def level(self, state: AdapterState, trainable: tuple[str, ...] = ()) -> Level:
        """See ``Task.level``: features need an adapter without effect, that stays so.

        It follows from adapter and order alone. If it depended on what there is room for, and so on
        how many rows there are, one record could change how all others are computed.

        What is trained on changed examples begins at these.
        """
        if trainable and self.augments:
            return Level.TOKENS
        still = all(key.startswith("head.") for key in trainable) and not state.has_effect()
        if still and self._model.reads_features:
            if trainable:  # every step reads them; a look at a few rows makes its own
                self._activations(features=True)
            return Level.FEATURES
        self._activations()
        return Level.HIDDEN if self._model.keeps_hidden else Level.TOKENS

    @contextmanager
    def relabelled(self, rows: Rows, labels: Rows) -> Generator[None]:
        """Other classes ``(n,)`` for ``rows (n,)`` while the block runs.

        A simulated site that poisons its data trains in it. Activations, which know no classes,
        stay as they are. Blocks of other rows may begin and end meanwhile.
        """
        kept = self._targets
        if not isinstance(kept, DenseTargets):
            raise TypeError("only examples with one class each can be labelled anew")
        before = kept.values[torch.from_numpy(rows)]
        self._targets = kept.replaced(rows, torch.from_numpy(labels))
        try:
            yield
        finally:
            assert isinstance(self._targets, DenseTargets)
            self._targets = self._targets.replaced(rows, before)

    @property
    def readable_layers(self) -> Sequence[int]:
        """See ``frozen_pass.readable_layers``; none where training changes examples, of which
        nothing can be kept."""
        return () if self.augments else readable_layers(self._model)

    @contextmanager
    def reading(self, layer: int) -> Generator[None]:
        """The head reads the output of the first ``layer`` blocks while the block runs.

        For adapters without effect alone: what is above those blocks is not computed.
        """
        if layer not in self.readable_layers:
            raise ValueError(
                f"block {layer}, of {self.readable_layers}: only a mean-pooled head on examples as "
                "they are reads the output of a block"
            )
        if not self._of_layers:  # now, as it runs the model, and not within a step of training
            rest = self._computed(self._all, hidden=False, features=True, layers=True)
            self._of_layers |= rest[1]
        self._layer = layer
        try:
            yield
        finally:
            self._layer = None

    @property
    def augments(self) -> bool:
        """See ``Task.augments``."""
        return self._augmented is not None

    def views(self, units: Units) -> Units:
        """See ``Task.views``."""
        return units if self._augmented is None else units.repeated(self._augmented.views)

    def microbatches(self, units: Units, size: int, level: Level) -> list[Piece]:
        """See ``Task.microbatches``."""
        packs = self._model.packs and level is not Level.FEATURES and not self.augments
        if packs and isinstance(self._inputs, TokenRows):
            return packed_pieces(self._inputs, units, size)
        return in_pieces(self._inputs, units, size)

    def batch(
        self, rows: Rows, level: Level, *, draw: int | None = None, packing: Packing | None = None
    ) -> Batch:
        """See ``Task.batch``."""
        if packing is not None:
            hidden = self._padded_hidden if level is Level.HIDDEN else None
            inputs = packed_inputs(cast(TokenRows, self._inputs), rows, packing, hidden)
            return Batch(inputs, self._targets.take(rows), packing)  # on CPUs alone
        return self._batch(self._inputs, self._targets, rows, level, draw=draw)

    def _batch(
        self,
        inputs_of: InputRows,
        targets_of: TargetRows,
        rows: Rows,
        level: Level,
        *,
        draw: int | None = None,
    ) -> Batch:
        device = self._device()
        targets = targets_of.take(rows).to(device)
        if level is Level.FEATURES:
            return Batch({"features": self._features(rows).to(device)}, targets)
        if draw is not None and self._augmented is not None:
            if level is not Level.TOKENS:
                raise ValueError("what is kept of unchanged examples is none of changed ones")
            inputs = dict(self._augmented.inputs(rows, draw))
        else:
            inputs = dict(inputs_of.inputs(rows))
        if level is Level.HIDDEN:
            width = int(shapes_of(inputs_of)[rows, 0].max())
            inputs["hidden"] = self._padded_hidden(rows, width)
        return Batch({key: value.to(device) for key, value in inputs.items()}, targets)

    def example_losses(self, batch: Batch) -> Tensor:
        """The objective's loss of each example, ``(b,)``."""
        outputs = self._model(batch.inputs, packing=batch.packing)
        return self._objective.losses(outputs, batch.targets)

    @torch.no_grad()
    def figures(self, state: AdapterState, rows: Rows, *, apart: bool = True) -> Tensor:
        """What is needed to judge some rows, ``(len(rows), k)``, in their order.

        ``apart``: each in a shape of its own, so that its figures are the same whoever else is
        judged. Else texts are side by side, where that is quicker: their figures are equal but
        for rounding if the base honours its attention mask, as what pads them differs."""
        lora.install(self._model, state)
        self._model.frozen_mode()
        level = self.level(state)
        distinct, places = np.unique(rows, return_inverse=True)
        inputs, targets, size = self._inputs, self._targets, self.evaluation_batch
        if apart or not isinstance(inputs, TokenRows):
            pieces = in_pieces(inputs, Units.single(distinct), size)
        else:
            inputs, targets = padded_to_beside(inputs), padded_to_beside(targets)
            level = self._kept_level(level)
            pieces = side_by_side(inputs, distinct, 2 * size)
        out: Tensor | None = None
        for piece in pieces:
            where = torch.from_numpy(np.searchsorted(distinct, piece.units.rows))
            batch = self._batch(inputs, targets, piece.rows, level)
            found = self._objective.figures(self._model(batch.inputs), batch.targets).float().cpu()
            if out is None:
                out = torch.empty(len(distinct), found.shape[1])
            out[where] = found[: len(where)]
        if out is None:
            raise ValueError("there are no rows to judge")
        return out[torch.from_numpy(places)]

    def row_figures(self, state: AdapterState, rows: Rows) -> tuple[Tensor, Tensor]:
        """See ``Task.row_figures``."""
        return self._objective.judged(self.figures(state, rows))

    def metrics_by_group(
        self, state: AdapterState, groups: Mapping[str, Rows]
    ) -> dict[str, Metrics]:
        """The objective's scores of each group, from one pass."""
        rows = np.unique(np.concatenate(list(groups.values())))
        return self._by_group(self.figures(state, rows, apart=False), rows, groups)

    def metrics_of_models(
        self, models: Mapping[str, tuple[AdapterState, Rows]], *, together: str
    ) -> dict[str, Metrics]:
        """See ``Task.metrics_of_models``."""
        figures = {
            name: self.figures(state, rows, apart=False) for name, (state, rows) in models.items()
        }
        found = {name: self._objective.scores(rows) for name, rows in figures.items()}
        return {**found, together: self._objective.scores(torch.cat(list(figures.values())))}

    def constant_metrics(self, seen: Rows, groups: Mapping[str, Rows]) -> dict[str, Metrics]:
        """Scores of the best answer that looks at no input, from the targets of rows ``seen``."""
        rows = np.unique(np.concatenate(list(groups.values())))
        figures = self._objective.constant(self._targets.take(seen), self._targets.take(rows))
        return self._by_group(figures, rows, groups)

    def _by_group(
        self, figures: Tensor, rows: Rows, groups: Mapping[str, Rows]
    ) -> dict[str, Metrics]:
        return {
            name: self._objective.scores(figures[torch.from_numpy(np.searchsorted(rows, group))])
            for name, group in groups.items()
        }

    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _features(self, rows: Rows) -> Tensor:
        if self._layer is not None:
            found = self._of_layers[self._layer]
            return found[torch.from_numpy(rows)]
        kept = self._activations()
        if kept.features is None:
            kept, _ = self._computed(np.unique(rows), hidden=False, features=True)
        if kept.features is None:
            raise ValueError("a model with its family's own head has no features")
        return kept.features[torch.from_numpy(np.searchsorted(kept.rows, rows))]

    def _kept_level(self, level: Level) -> Level:
        """Where a pass begins that need not compute the states first that ``level`` begins at."""
        kept = self._activations()
        if level is Level.FEATURES and (kept.features is not None or self._layer is not None):
            return level
        return Level.TOKENS if kept.hidden is None else Level.HIDDEN

    def _padded_hidden(self, rows: Rows, width: int) -> Tensor:
        kept = self._activations()
        if kept.hidden is None:
            kept, _ = self._computed(np.unique(rows), hidden=True, features=False)
        return kept.padded_hidden(rows, width)

    def fill(self, *, features: bool) -> None:
        """Compute now what is kept; ``features``: of the base too, which heads alone read."""
        self._activations(features=features)

    def _activations(self, *, features: bool = False) -> Activations:
        """What is kept as there is room: hidden states and, once asked for, features."""
        before = self._kept
        if before is not None and (self._features_tried or not features):
            return before
        self._features_tried |= features
        count, total = len(self._all), int(self._inputs.lengths.sum())
        a_value, a_pooled = self._model.hidden_size * 4, self._model.feature_size * 4
        layers = self.readable_layers if self._fills_layers and features else ()
        found, of_layers = filled(
            (self._model, self._inputs, self._all),
            hidden=before is None
            and self._model.keeps_hidden
            and total * a_value + count * a_pooled <= self._budget,
            features=features and count * a_pooled <= self._budget,
            layers=layers if (1 + len(layers)) * count * a_pooled <= self._budget else (),
            compute=partial(self._computed, self._all, on_fill=self._on_fill),
        )
        self._of_layers |= of_layers
        self._kept = found if before is None else replace(before, features=found.features)
        return self._kept

    def _computed(
        self,
        rows: Rows,
        *,
        hidden: bool,
        features: bool,
        layers: bool = False,
        on_fill: Callable[[int, int], None] | None = None,
    ) -> Rest:
        return frozen_pass(
            self._model,
            self._inputs,
            rows,
            size=self.evaluation_batch,
            hidden=hidden,
            features=features and self._model.reads_features,
            layers=self.readable_layers if layers else (),
            without_effect=lambda: self._without_effect,
            on_fill=on_fill,
        )

    @cached_property
    def _without_effect(self) -> AdapterState:
        return lora.initial_state(self._model, seed=0)
