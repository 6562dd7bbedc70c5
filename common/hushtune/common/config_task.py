"""The settings of [task]: which kind of supervision a run is, and how it is judged."""

from __future__ import annotations

from difflib import get_close_matches
from typing import Annotated, Literal

from pydantic import Field, model_validator

from hushtune.common.config_base import Range, Section, refuse
from hushtune.common.kinds import KINDS, Kind, Targets, metrics_in_words

KindName = Literal[
    "text-classification",
    "multi-label",
    "text-regression",
    "text-pair-classification",
    "text-pair-regression",
    "token-classification",
    "causal-lm",
    "seq2seq",
    "image-classification",
    "tabular-classification",
    "tabular-regression",
    "recommendation",
]


class TaskConfig(Section):
    """Which kind of supervision a run is, and by which figure its models are compared."""

    kind: KindName = Field(default="text-classification", description="what is learnt from what")
    metric: str | None = Field(
        default=None,
        description="the figure that models are compared by; left out = the first that the kind "
        f"has. {metrics_in_words()}",
        examples=["macro_f1"],
    )
    range: Range | None = Field(
        default=None,
        description="for numbers: least and largest possible target, from public knowledge and "
        "never from the rows; targets are scaled by it",
        examples=[[-4.0, 4.0]],
    )
    positive: str | None = Field(
        default=None,
        description="of two classes the one to be detected, which average_precision, roc_auc and "
        "recall_at_precision are about; left out = the second by name",
        examples=["fraud"],
    )
    precision_floor: Annotated[float, Field(gt=0, lt=1)] = Field(
        default=0.5, description="precision at which recall_at_precision is taken, of two classes"
    )

    @property
    def of(self) -> Kind:
        """What is public of the kind."""
        return KINDS[self.kind]

    @property
    def main_metric(self) -> str:
        """The figure that models are compared by."""
        return self.metric or self.of.metrics[0]

    @property
    def bounds(self) -> tuple[float, float]:
        """The public range of targets that are numbers."""
        if self.range is None:
            raise ValueError(f"{self.kind} has no range")
        return self.range

    def _metric_remedy(self, given: str) -> str:
        near = get_close_matches(given, self.of.metrics, n=1)
        default = f"leave task.metric out for {self.of.metrics[0]}"
        return f"did you mean {near[0]!r}? Or {default}" if near else default

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        if self.metric is not None and self.metric not in self.of.metrics:
            refuse(
                f"{self.kind} has no figure of this name",
                key="metric",
                given=self.metric,
                expected=" or ".join(self.of.metrics),
                remedy=self._metric_remedy(self.metric),
            )
        numbers = self.of.targets is Targets.NUMBER
        if numbers and self.range is None:
            refuse(
                "what a regression predicts is scaled by the range of possible targets, which has "
                "to be public",
                key="range",
                given="nothing",
                expected="least and largest possible target",
                remedy="set task.range = [0.0, 100.0], say, from what is known without the rows",
            )
        if self.positive is not None and not self.of.has_classes:
            refuse(
                f"{self.kind} has no two classes of which one is to be detected",
                key="positive",
                given=self.positive,
                expected="no task.positive, or a kind with classes",
                remedy="leave task.positive out",
            )
        if self.range is not None and not numbers:
            refuse(
                "task.range is for targets that are numbers",
                key="range",
                given=list(self.range),
                expected="no task.range, or a regression",
                remedy="leave task.range out, or set task.kind to a regression",
            )
        if self.range is not None and not self.range[0] < self.range[1]:
            refuse(
                "task.range begins with the smaller number",
                key="range",
                given=list(self.range),
                expected="least, then largest possible target",
                remedy=f"set task.range = [{self.range[1]:g}, {self.range[0]:g}]",
            )
        return self
