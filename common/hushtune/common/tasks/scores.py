"""Scores of classes that a run tells in each round.

scikit-learn has all of them, and the tests hold these to its figures; but to import it takes a
second and 80 MB, which every process that judges a model would pay.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Classes = NDArray[np.int64]


def macro_f1(held: Classes, told: Classes) -> float:
    """The mean of F1 over the classes that occur in ``held (n,)`` or ``told (n,)``."""
    return float(np.mean([_f1(held == name, told == name) for name in np.union1d(held, told)]))


def label_f1(held: Classes, told: Classes) -> tuple[float, float]:
    """F1 over all pairs of row and label, and its mean over labels, of ``(n, labels)`` zeros and
    ones; of what neither is nor is told 0."""
    pairs = zip(held.T > 0, told.T > 0, strict=True)
    return _f1(held > 0, told > 0), float(np.mean([_f1(*label) for label in pairs]))


def _f1(held: NDArray[np.bool_], told: NDArray[np.bool_]) -> float:
    """``2 tp / (2 tp + fp + fn)``."""
    either = int(held.sum()) + int(told.sum())
    return 2 * int((held & told).sum()) / either if either else 0.0


@dataclass(frozen=True)
class Detection:
    """How well numbers tell positives, by every threshold that parts them: ``right`` and ``wrong``
    ``(t,)`` are how many positives and negatives lie at or above it, the highest first."""

    right: NDArray[np.int64]
    wrong: NDArray[np.int64]

    @classmethod
    def of(cls, is_positive: NDArray[np.bool_], by: NDArray[np.floating]) -> Detection:
        """From ``(n,)`` each, with at least one positive; equal numbers are not parted, infinite
        ones among them, and what is no number is below all others."""
        by = np.nan_to_num(by.astype(np.float64), nan=np.finfo(np.float64).min)
        order = np.argsort(-by, kind="stable")
        ends = np.append(np.flatnonzero(np.diff(by[order])), len(by) - 1)
        right = np.cumsum(is_positive[order], dtype=np.int64)[ends]
        return cls(right, ends + 1 - right)

    @property
    def recall(self) -> NDArray[np.float64]:
        """At each threshold."""
        return self.right / self.right[-1]

    @property
    def precision(self) -> NDArray[np.float64]:
        """At each threshold."""
        return self.right / (self.right + self.wrong)

    @property
    def average_precision(self) -> float:
        """Precision, weighted by what recall gains at each threshold."""
        return float(np.sum(np.diff(self.recall, prepend=0.0) * self.precision))

    @property
    def roc_auc(self) -> float:
        """The area under the ROC curve, by trapezia; 0.5 where all are positive."""
        if not self.wrong[-1]:
            return 0.5
        false = np.append(0.0, self.wrong / self.wrong[-1])
        return float(np.trapezoid(np.append(0.0, self.recall), false))

    def recall_at(self, precision: float) -> float:
        """The most recall at so much precision or more; 0 where no threshold has it."""
        return float(self.recall[self.precision >= precision].max(initial=0.0))
