"""Text classification: one label a text."""

from __future__ import annotations

from collections.abc import Callable, Generator, Mapping, Sequence
from contextlib import contextmanager
from functools import cached_property

import numpy as np
import torch
from sklearn.metrics import f1_score
from torch import Tensor, nn
from transformers import PreTrainedTokenizerBase

from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.errors import ConfigError
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.tasks.activations import Activations, TokenRows, in_pieces
from hushtune.common.tasks.base import Batch, Metrics
from hushtune.common.tasks.units import Piece, Rows, Units

EVALUATION_BATCH = 32


def tokenize(
    tokenizer: PreTrainedTokenizerBase, texts: Sequence[str], *, max_tokens: int
) -> TokenRows:
    """Token ids of every text, cut to ``max_tokens``; an empty result is padded to one token."""
    encoded = tokenizer(list(texts), truncation=True, max_length=max_tokens)["input_ids"]
    found = [tokenizer.pad_token_id, tokenizer.eos_token_id]
    pad_id = next((i for i in found if isinstance(i, int)), 0)
    rows = [np.asarray(ids or [pad_id], dtype=np.int32) for ids in encoded]  # pyright: ignore[reportArgumentType]
    offsets = np.concatenate([[0], np.cumsum([len(row) for row in rows])]).astype(np.int64)
    return TokenRows(torch.from_numpy(np.concatenate(rows)), offsets, pad_id, max_tokens)


class TextClassification:
    """Cross-entropy, accuracy and macro-F1 of one adapted model over one table of rows."""

    def __init__(
        self,
        model: AdaptedModel,
        tokens: TokenRows,
        labels: Rows,
        *,
        class_weights: Sequence[float] | None = None,
        label_smoothing: float = 0.0,
        cache_megabytes: int = 0,
        rows_in_use: Rows | None = None,
        on_fill: Callable[[int, int], None] | None = None,
    ) -> None:
        """``class_weights``: one public number a label; ``label_smoothing``: the part of each label
        that is spread evenly over all (1512.00567), in training. Activations are kept for
        ``rows_in_use`` (None: all rows) where ``cache_megabytes`` are enough; ``on_fill(done,
        total)`` hears how filling them goes. Whether they are kept decides how long it takes, and
        nothing else."""
        self._model = model
        self._tokens = tokens
        self._labels = torch.from_numpy(labels)
        weights = [1.0] * model.num_labels if class_weights is None else list(class_weights)
        self._weights = torch.tensor(weights, dtype=torch.float32)
        self._smoothing = label_smoothing
        self._budget = cache_megabytes * 2**20
        everything = np.arange(len(labels), dtype=np.int64)
        self._in_use = everything if rows_in_use is None else rows_in_use
        self._on_fill = on_fill
        self._kept: Activations | None = None

    @property
    def model(self) -> AdaptedModel:
        """The process's one model."""
        return self._model

    @property
    def tokens(self) -> TokenRows:
        """The rows' tokens."""
        return self._tokens

    def level(self, state: AdapterState, trainable: tuple[str, ...] = ()) -> Level:
        """See ``Task.level``: features need an adapter without effect, that stays so.

        It follows from adapter and order alone. If it depended on what there is room for, and so on
        how many rows there are, one record could change how all others are computed.
        """
        self._activations()
        still = all(key.startswith("head.") for key in trainable) and not state.has_effect()
        if still and self._model.head is not None:
            return Level.FEATURES
        return Level.TOKENS if self._model.adapts_tokens else Level.HIDDEN

    @contextmanager
    def relabelled(self, rows: Rows, labels: Rows) -> Generator[None]:
        """Other ``labels (n,)`` for ``rows (n,)`` while the block runs.

        A simulated site that poisons its data trains in it. Activations, which know no labels,
        stay as they are.
        """
        kept = self._labels
        changed = kept.clone()
        changed[torch.from_numpy(rows)] = torch.from_numpy(labels)
        self._labels = changed
        try:
            yield
        finally:
            self._labels = kept

    def microbatches(self, units: Units, size: int) -> list[Piece]:
        """See ``Task.microbatches``."""
        return in_pieces(self._tokens, units, size)

    def batch(self, rows: Rows, level: Level) -> Batch:
        """See ``Task.batch``."""
        device = self._weights.device if not rows.size else self._device()
        labels = self._labels[torch.from_numpy(rows)].to(device)
        if level is Level.FEATURES:
            return Batch({"features": self._features(rows).to(device)}, labels)
        inputs = self._tokens.inputs(rows)
        if level is Level.HIDDEN:
            inputs["hidden"] = self._padded_hidden(rows)
        return Batch({key: value.to(device) for key, value in inputs.items()}, labels)

    def example_losses(self, batch: Batch) -> Tensor:
        """Cross-entropy of each example times its label's weight, ``(b,)``."""
        logits = self._model(batch.inputs)
        losses = nn.functional.cross_entropy(
            logits, batch.labels, reduction="none", label_smoothing=self._smoothing
        )
        return losses * self._weights.to(losses.device)[batch.labels]

    @torch.no_grad()
    def logits(self, state: AdapterState, rows: Rows) -> Tensor:
        """Logits of some rows, ``(len(rows), num_labels)``, in their order."""
        lora.install(self._model, state)
        self._model.frozen_mode()
        level = self.level(state)
        distinct, places = np.unique(rows, return_inverse=True)
        out = torch.empty(len(distinct), self._model.num_labels)
        for piece in self.microbatches(Units.single(distinct), EVALUATION_BATCH):
            where = torch.from_numpy(np.searchsorted(distinct, piece.units.rows))
            found = self._model(self.batch(piece.rows, level).inputs)
            out[where] = found[: len(where)].float().cpu()
        return out[torch.from_numpy(places)]

    def row_figures(self, state: AdapterState, rows: Rows) -> tuple[Tensor, Tensor]:
        """See ``Task.row_figures``."""
        logits, labels = self.logits(state, rows), self._labels[torch.from_numpy(rows)]
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return logits.argmax(1) == labels, losses

    def metrics_by_group(
        self, state: AdapterState, groups: Mapping[str, Rows]
    ) -> dict[str, Metrics]:
        """Mean loss (unweighted), accuracy and macro-F1 of each group, from one pass."""
        rows = np.unique(np.concatenate(list(groups.values())))
        logits, labels = self.logits(state, rows), self._labels
        return {
            name: scores(
                logits[torch.from_numpy(np.searchsorted(rows, group))],
                labels[torch.from_numpy(group)],
            )
            for name, group in groups.items()
        }

    def metrics_of_models(
        self, models: Mapping[str, tuple[AdapterState, Rows]], *, together: str
    ) -> dict[str, Metrics]:
        """See ``Task.metrics_of_models``."""
        logits = {name: self.logits(state, rows) for name, (state, rows) in models.items()}
        labels = {name: self._labels[torch.from_numpy(rows)] for name, (_, rows) in models.items()}
        found = {name: scores(logits[name], labels[name]) for name in models}
        everything = torch.cat(list(logits.values())), torch.cat(list(labels.values()))
        return {**found, together: scores(*everything)}

    def _device(self) -> torch.device:
        return next(self._model.parameters()).device

    def _features(self, rows: Rows) -> Tensor:
        kept = self._activations()
        if kept.features is None:
            kept = self._computed(np.unique(rows), hidden=False, features=True)
        if kept.features is None:
            raise ValueError("a model with its family's own head has no features")
        return kept.features[torch.from_numpy(np.searchsorted(kept.rows, rows))]

    def _padded_hidden(self, rows: Rows) -> Tensor:
        kept = self._activations()
        if kept.hidden is None:
            kept = self._computed(np.unique(rows), hidden=True, features=False)
        return kept.padded_hidden(rows)

    def _activations(self) -> Activations:
        """What is kept: all of it, or the features alone, or nothing, as there is room."""
        if self._kept is None:
            count, total = len(self._in_use), int(self._tokens.lengths[self._in_use].sum())
            a_value = int(self._model.base.config.hidden_size) * 4
            self._kept = self._computed(
                self._in_use,
                hidden=not self._model.adapts_tokens and (total + count) * a_value <= self._budget,
                features=count * a_value <= self._budget,
                on_fill=self._on_fill,
            )
        return self._kept

    @torch.no_grad()
    def _computed(
        self,
        rows: Rows,
        *,
        hidden: bool,
        features: bool,
        on_fill: Callable[[int, int], None] | None = None,
    ) -> Activations:
        """The frozen states of some rows, sorted, that are asked for.

        Always as many rows at once as one another, as wide as each of them is: a row's states are
        the same whichever other rows are computed.
        """
        width = int(self._model.base.config.hidden_size)
        starts = np.concatenate([[0], np.cumsum(self._tokens.lengths[rows])]).astype(np.int64)
        features = features and self._model.head is not None
        found = Activations(
            self._tokens,
            rows,
            starts,
            torch.full((int(starts[-1]), width), torch.nan) if hidden else None,
            torch.full((len(rows), width), torch.nan) if features else None,
        )
        if not hidden and not features:
            return found
        aside = lora.extract(self._model) if features else None
        if aside is not None:  # features are those of the base alone
            lora.install(self._model, self._without_effect)
        done = 0
        for piece in self.microbatches(Units.single(rows), EVALUATION_BATCH):
            inputs = self._tokens.inputs(piece.rows)
            inputs = {key: value.to(self._device()) for key, value in inputs.items()}
            states, pooled = self._model.frozen_activations(inputs, pooled=features)
            places = np.searchsorted(rows, piece.units.rows)
            if found.hidden is not None:
                for row, at in enumerate(places):
                    start, end = starts[at], starts[at + 1]
                    found.hidden[start:end] = states[row, : end - start]
            if found.features is not None and pooled is not None:
                found.features[torch.from_numpy(places)] = pooled[: len(places)].cpu()
            done += len(places)
            if on_fill is not None:
                on_fill(done, len(rows))
        if aside is not None:
            lora.install(self._model, aside)
        return found

    @cached_property
    def _without_effect(self) -> AdapterState:
        return lora.initial_state(self._model, seed=0)


def scores(logits: Tensor, labels: Tensor) -> Metrics:
    """Mean cross-entropy, accuracy and macro-F1 over the labels that occur."""
    predicted = logits.argmax(1)
    return {
        "loss": float(nn.functional.cross_entropy(logits, labels)),
        "accuracy": float((predicted == labels).float().mean()),
        "macro_f1": float(f1_score(labels.numpy(), predicted.numpy(), average="macro")),
    }


def weights_of(names: Sequence[str], given: Mapping[str, float]) -> list[float] | None:
    """Class weights in the order of the labels; 1 where none is given."""
    unknown = sorted(set(given) - set(names))
    if unknown:
        raise ConfigError(
            "data.class_weights names a label that the data do not have",
            given=", ".join(unknown),
            expected=", ".join(names),
        )
    return [given.get(name, 1.0) for name in names] if given else None
