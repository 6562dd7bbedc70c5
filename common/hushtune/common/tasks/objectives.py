"""What a model's outputs are held against: losses to train on, figures to judge by.

Every loss is of one example alone, ``(b,)``: a mean over a batch would let one example change the
others' gradients. What is needed to judge a row is kept as a row of numbers, its *figures*
``(n, k)``, from which the scores of any group of rows follow without the model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, cast

import numpy as np
import torch
from torch import Tensor, nn

from hushtune.common.tasks.scores import Detection, label_f1, macro_f1

Metrics = Mapping[str, float]


class Objective(Protocol):
    """Losses and scores of one kind of target; ``num_outputs`` is the width of the model's head."""

    @property
    def num_outputs(self) -> int:
        """Width of the outputs."""
        ...

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """One weighted loss an example, ``(b,)``, to train on."""
        ...

    def figures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """What is needed to judge each row, ``(b, k)``."""
        ...

    def judged(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """Of each row how right it is, in [0, 1], and its unweighted loss, both ``(n,)``."""
        ...

    def scores(self, figures: Tensor) -> Metrics:
        """The figures of merit of some rows, and ``loss``, their mean loss."""
        ...

    def constant(self, seen: Tensor, targets: Tensor) -> Tensor:
        """Figures, for ``targets``, of the best answer that looks at no input, from ``seen``."""
        ...


@dataclass(frozen=True, eq=False)
class Classification:
    """Cross-entropy over classes, each weighted by a public number.

    Of two classes ``positive`` is the one that is to be detected, and ``precision_floor`` the
    precision at which its recall is taken. ``smoothing``: the part of each label that is spread
    evenly over all (1512.00567), in training.
    """

    weights: Tensor  # (classes,)
    positive: int = 1
    precision_floor: float = 0.5
    smoothing: float = 0.0

    @property
    def num_outputs(self) -> int:
        """One logit a class."""
        return len(self.weights)

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Cross-entropy times the weight of the example's class."""
        losses = nn.functional.cross_entropy(
            outputs, targets, reduction="none", label_smoothing=self.smoothing
        )
        return losses * self.weights.to(losses.device)[targets]

    def figures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logits, then the class."""
        return torch.cat([outputs.float(), targets.float().unsqueeze(1)], dim=1)

    def judged(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """1 where the class with the largest logit is the right one, else 0; cross-entropy."""
        logits, labels = self._split(figures)
        losses = nn.functional.cross_entropy(logits, labels, reduction="none")
        return (logits.argmax(1) == labels).float(), losses

    def scores(self, figures: Tensor) -> Metrics:
        """Accuracy and macro-F1 over the classes that occur; of two classes what is detected too.

        Without a row of each class the area under the ROC curve is 0.5 and, without a positive
        one, average precision and recall are 0.
        """
        logits, labels = self._split(figures)
        predicted = logits.argmax(1)
        found = {
            "loss": float(nn.functional.cross_entropy(logits, labels)),
            "accuracy": float((predicted == labels).float().mean()),
            "macro_f1": macro_f1(labels.numpy(), predicted.numpy()),
        }
        return found if self.num_outputs != 2 else {**found, **self._detection(logits, labels)}

    def constant(self, seen: Tensor, targets: Tensor) -> Tensor:
        """The classes' shares as probabilities: the most frequent one is what it answers."""
        shares = torch.bincount(seen, minlength=self.num_outputs) / len(seen)
        logits = shares.clamp_min(1e-9).log().expand(len(targets), -1)
        return self.figures(logits, targets)

    def _split(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        return figures[:, :-1], figures[:, -1].long()

    def _detection(self, logits: Tensor, labels: Tensor) -> Metrics:
        """Of the positive class, by the difference of the logits."""
        is_positive = (labels == self.positive).numpy()
        by = (logits[:, self.positive] - logits[:, 1 - self.positive]).numpy()
        if not is_positive.any():
            return {"average_precision": 0.0, "roc_auc": 0.5, "recall_at_precision": 0.0}
        found = Detection.of(is_positive, by)
        return {
            "average_precision": found.average_precision,
            "roc_auc": found.roc_auc,
            "recall_at_precision": found.recall_at(self.precision_floor),
        }


@dataclass(frozen=True)
class MultiLabel:
    """Binary cross-entropy, the mean over the labels, each of which an example has or has not."""

    num_outputs: int

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The mean over the labels; ``targets (b, labels)`` are 0 or 1."""
        each = nn.functional.binary_cross_entropy_with_logits(outputs, targets, reduction="none")
        return each.mean(1)

    def figures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """The logits, then the labels."""
        return torch.cat([outputs.float(), targets.float()], dim=1)

    def judged(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """The share of labels that are told rightly, and the loss."""
        logits, labels = figures.split(self.num_outputs, dim=1)
        return ((logits > 0) == (labels > 0)).float().mean(1), self.losses(logits, labels)

    def scores(self, figures: Tensor) -> Metrics:
        """F1 over all pairs of row and label, its mean over labels, and the share told rightly."""
        logits, labels = figures.split(self.num_outputs, dim=1)
        right, losses = self.judged(figures)
        told, held = (logits > 0).long().numpy(), labels.long().numpy()
        micro, macro = label_f1(held, told)
        return {
            "loss": float(losses.mean()),
            "micro_f1": micro,
            "macro_f1": macro,
            "label_accuracy": float(right.mean()),
        }

    def constant(self, seen: Tensor, targets: Tensor) -> Tensor:
        """Each label's share as its probability."""
        shares = seen.float().mean(0).clamp(1e-6, 1 - 1e-6)
        return self.figures(shares.logit().expand(len(targets), -1), targets)


@dataclass(frozen=True)
class Regression:
    """Squared error of a number that is scaled from its public range to -1..1.

    Targets are in their own unit; what the model puts out is scaled.
    """

    low: float
    high: float

    @property
    def num_outputs(self) -> int:
        """One number."""
        return 1

    def losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Squared error in scaled units."""
        return (outputs.squeeze(1) - self._scaled(targets)).square()

    def figures(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Output in scaled units, then the target in its own."""
        return torch.cat([outputs.float(), targets.float().unsqueeze(1)], dim=1)

    def judged(self, figures: Tensor) -> tuple[Tensor, Tensor]:
        """Closeness, 1 - error / width of the range (0 at least), and the loss."""
        predicted, targets = self.answers(figures[:, :1]), figures[:, 1]
        close = 1 - (predicted - targets).abs() / (self.high - self.low)
        return close.clamp(0.0, 1.0), self.losses(figures[:, :1], targets)

    def scores(self, figures: Tensor) -> Metrics:
        """Root mean squared and mean absolute error in the target's unit, r2 and correlations.

        Answers are cut to the public range. Where either side is constant correlations are 0.
        """
        from scipy.stats import pearsonr, spearmanr

        close, losses = self.judged(figures)
        predicted = self.answers(figures[:, :1]).double().numpy()
        targets = figures[:, 1].double().numpy()
        errors, spread = predicted - targets, targets - targets.mean()
        total = float((spread**2).sum())
        varied = len(targets) > 1 and min(float(np.ptp(predicted)), float(np.ptp(targets))) > 0
        return {
            "loss": float(losses.mean()),
            "rmse": float(np.sqrt((errors**2).mean())),
            "mae": float(np.abs(errors).mean()),
            "r2": 1 - float((errors**2).sum()) / total if total > 0 else 0.0,
            "pearson": float(cast(Any, pearsonr(predicted, targets))[0]) if varied else 0.0,
            "spearman": float(cast(Any, spearmanr(predicted, targets))[0]) if varied else 0.0,
            "closeness": float(close.mean()),
        }

    def answers(self, outputs: Tensor) -> Tensor:
        """Outputs ``(n, 1)`` in the target's unit, within its range, ``(n,)``."""
        middle, half = (self.high + self.low) / 2, (self.high - self.low) / 2
        return (middle + half * outputs.squeeze(1)).clamp(self.low, self.high)

    def constant(self, seen: Tensor, targets: Tensor) -> Tensor:
        """The mean."""
        mean = self._scaled(seen.float()).mean().expand(len(targets), 1)
        return self.figures(mean, targets)

    def _scaled(self, targets: Tensor) -> Tensor:
        return (targets - (self.high + self.low) / 2) * (2 / (self.high - self.low))


def class_weights(weights: Sequence[float] | None, num_classes: int) -> Tensor:
    """Public weights of the classes as a tensor; 1 each where none are given."""
    return torch.tensor([1.0] * num_classes if weights is None else list(weights))
