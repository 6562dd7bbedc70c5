"""The settings of [task]: which kind of supervision a run is, and how it is judged."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Annotated, Any, Literal, cast

from pydantic import Field, model_validator

from hushtune.common.config_base import Range, Section, refuse
from hushtune.common.config_data import DataConfig
from hushtune.common.kinds import KINDS, Inputs, Kind, Targets

if TYPE_CHECKING:
    from hushtune.common.tasks.sources import Source

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
        "has: accuracy (classes), micro_f1 (several labels), rmse (numbers), token_accuracy "
        "(tags), perplexity (answers)",
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

    @model_validator(mode="after")
    def _consistent(self) -> TaskConfig:
        if self.metric is not None and self.metric not in self.of.metrics:
            refuse(
                f"{self.kind} has no figure of this name",
                key="metric",
                given=self.metric,
                expected=" or ".join(self.of.metrics),
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
        if self.range is not None and not numbers:
            refuse(
                "task.range is for targets that are numbers",
                key="range",
                given=list(self.range),
                expected="no task.range, or a regression",
            )
        if self.range is not None and not self.range[0] < self.range[1]:
            refuse(
                "task.range begins with the smaller number",
                key="range",
                given=list(self.range),
                expected="least, then largest possible target",
            )
        return self


def with_source(tree: Any) -> Any:
    """A configuration as it was read, with the kind and the range of data that it names.

    What it says itself stays as it is.
    """
    if not isinstance(tree, Mapping) or not isinstance(tree.get("data"), Mapping):
        return tree
    given = cast("Mapping[str, Any]", tree)
    source = named_source(given["data"].get("source"))
    task = given.get("task", {})
    if source is None or not isinstance(task, Mapping):
        return given
    known: dict[str, Any] = {"kind": source.kind}
    if source.target_range is not None and task.get("kind", source.kind) == source.kind:
        known["range"] = list(source.target_range)
    return {**given, "task": {**known, **task}}


def named_source(name: object) -> Source | None:
    """Data by name; None for rows of one's own, and for a name that is none."""
    from hushtune.common.tasks.sources import SOURCES  # which needs settings in its turn

    return SOURCES.get("rated-polarity" if name == "demo" else str(name))


def check_source(data: DataConfig, task: TaskConfig) -> None:
    """Refuse a name that no data have, or a kind, sites or groups that they are not made for."""
    if data.source in (None, "sites"):
        return
    source = named_source(data.source)
    if source is None:
        from hushtune.common.tasks.sources import SOURCES

        near = get_close_matches(data.source, SOURCES, n=1)
        refuse(
            "there are no data of this name",
            key="data.source",
            given=data.source,
            expected=", ".join(("demo", "sites", *SOURCES)),
            remedy=f"did you mean {near[0]!r}?" if near else "see docs/data.md",
        )
    if task.kind != source.kind:
        refuse(
            f"{source.name} is for {source.kind}",
            key="task.kind",
            given=task.kind,
            expected=source.kind,
            remedy="leave task.kind out",
        )
    if not source.sites and data.partition == "natural":
        refuse(
            "nothing says which row of these data belongs to which site",
            key="data.partition",
            given="natural",
            expected="iid, dirichlet, quantity or shards, and data.sites",
            remedy='set data.partition = "iid" and data.sites = 4, say',
        )
    if data.group is not None and not source.group:
        refuse(
            "these data name no patients or users",
            key="data.group",
            given=data.group,
            expected="no data.group",
        )


def without_warmup(tree: Any) -> Any:
    """A configuration as it was read, without a warm-up of the head where the kind has none."""
    if not isinstance(tree, Mapping):
        return tree
    given = cast("Mapping[str, Any]", tree)
    task, train = given.get("task"), given.get("train", {})
    if isinstance(task, TaskConfig):
        task = {"kind": task.kind}
    kind = KINDS.get(task.get("kind", "")) if isinstance(task, Mapping) else None
    if kind is None or kind.has_head or not isinstance(train, Mapping) or "warmup_rounds" in train:
        return given
    return {**given, "train": {**train, "warmup_rounds": 0}}


def check_task(
    task: TaskConfig, data: DataConfig, *, head: str, warmup_rounds: int, attack: str
) -> None:
    """Refuse what a kind of supervision cannot do; keys are those of the whole configuration."""
    kind = task.of
    if not kind.has_head and warmup_rounds:
        refuse(
            f"{kind.name} trains no head, so no round can train the head alone",
            key="train.warmup_rounds",
            given=warmup_rounds,
            expected="0",
            remedy="leave train.warmup_rounds out",
        )
    own_head = kind.inputs in (Inputs.TEXT, Inputs.PAIR, Inputs.IMAGE) and kind.has_classes
    if head == "own" and not own_head:
        refuse(
            f"the family's own head is for classes of texts and images, not for {kind.name}",
            key="model.head",
            given=head,
            expected="mean",
            remedy="leave model.head out",
        )
    if data.class_weights and not (kind.has_classes or kind.targets is Targets.TAGS):
        refuse(
            f"{kind.name} has no classes to weigh",
            key="data.class_weights",
            given=", ".join(data.class_weights),
            expected="no data.class_weights",
        )
    if attack == "label_flip" and not kind.has_classes:
        refuse(
            f"labels can be flipped where each example has one, not in {kind.name}",
            key="simulation.attack",
            given=attack,
            expected="another attack",
        )
    named = kind.targets not in (Targets.NUMBER, Targets.ANSWER)
    if data.labels is not None and not named:
        refuse(
            f"{kind.name} has no labels",
            key="data.labels",
            given=", ".join(data.labels),
            expected="no data.labels",
        )
    if data.source == "sites" and named and data.labels is None:
        refuse(
            "with rows that only their sites see, data.labels must be declared",
            key="data.labels",
            given="nothing",
            expected="names and numbers that are public",
            remedy='set data.labels = ["negative", "positive"]',
        )
    for key, inputs, what in (
        ("second", Inputs.PAIR, "the column with the second text"),
        ("columns", Inputs.COLUMNS, "the columns that are read"),
    ):
        given = bool(getattr(data, key))
        if given and kind.inputs is not inputs:
            refuse(
                f"{kind.name} does not read data.{key}",
                key=f"data.{key}",
                given=str(getattr(data, key)),
                expected=f"no data.{key}, or a kind that does",
            )
        if data.source is None and kind.inputs is inputs and not given:
            refuse(
                f"{kind.name} needs {what}",
                key=f"data.{key}",
                given="nothing",
                expected=what,
            )
