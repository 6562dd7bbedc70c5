"""What a kind of supervision needs of the other settings, and what it cannot do."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from typing import TYPE_CHECKING, Any, cast

from hushtune.common.config_base import refuse
from hushtune.common.config_data import DataConfig
from hushtune.common.config_task import TaskConfig
from hushtune.common.kinds import KINDS, Inputs, Kind, Targets

if TYPE_CHECKING:
    from hushtune.common.tasks.sources import Source


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
            remedy="leave data.group out",
        )


_ROWS_AT_ONCE = 4
"""Of a language model: logits over a vocabulary are large, and few rows are of the same sizes."""


def without_warmup(tree: Any) -> Any:
    """A configuration as it was read, without a warm-up of the head where the kind has none, and
    with fewer rows at once; what it says itself stays as it is."""
    if not isinstance(tree, Mapping):
        return tree
    given = cast("Mapping[str, Any]", tree)
    task, train = given.get("task"), given.get("train", {})
    if isinstance(task, TaskConfig):
        task = {"kind": task.kind}
    kind = KINDS.get(task.get("kind", "")) if isinstance(task, Mapping) else None
    if kind is None or kind.has_head or not isinstance(train, Mapping):
        return given
    return {**given, "train": {"warmup_rounds": 0, "microbatch": _ROWS_AT_ONCE, **train}}


def check_task(
    task: TaskConfig,
    data: DataConfig,
    *,
    head: str,
    warmup_rounds: int,
    attack: str,
    smoothing: float,
    image_size: int | None,
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
            remedy="leave data.class_weights out",
        )
    for key, given, what in (
        ("train.label_smoothing", smoothing, "to smooth"),
        ("data.shots", data.shots, "to draw examples of"),
    ):
        if given and not kind.has_classes:
            refuse(
                f"{kind.name} has no classes {what}",
                key=key,
                given=str(given),
                expected=f"no {key}, or a kind with one class an example",
                remedy=f"leave {key} out",
            )
    if data.form != "auto" and kind.targets is not Targets.ANSWER:
        refuse(
            f"data.form is for instructions and answers, not for {kind.name}",
            key="data.form",
            given=data.form,
            expected="no data.form, or task.kind = causal-lm or seq2seq",
            remedy="leave data.form out",
        )
    if attack == "label_flip" and not kind.has_classes:
        refuse(
            f"labels can be flipped where each example has one, not in {kind.name}",
            key="simulation.attack",
            given=attack,
            expected="another attack",
            remedy="leave simulation.attack out, or name another",
        )
    _check_labels(kind, data)
    _check_inputs(kind, data, image_size=image_size)


def _check_labels(kind: Kind, data: DataConfig) -> None:
    """Refuse labels where there are none, and none where nobody else knows them."""
    named = kind.targets not in (Targets.NUMBER, Targets.ANSWER)
    if data.labels is not None and not named:
        refuse(
            f"{kind.name} has no labels",
            key="data.labels",
            given=", ".join(data.labels),
            expected="no data.labels",
            remedy="leave data.labels out",
        )
    if data.source == "sites" and named and data.labels is None:
        refuse(
            "with rows that only their sites see, data.labels must be declared",
            key="data.labels",
            given="nothing",
            expected="names and numbers that are public",
            remedy='set data.labels = ["negative", "positive"]',
        )


def _check_inputs(kind: Kind, data: DataConfig, *, image_size: int | None) -> None:
    """Refuse settings of inputs that a kind does not read, and the lack of those that it does."""
    images = kind.inputs is Inputs.IMAGE
    if image_size is not None and not images:
        refuse(
            f"{kind.name} reads no images",
            key="model.image_size",
            given=image_size,
            expected="no model.image_size",
            remedy="leave model.image_size out",
        )
    if images and data.dataset is not None:
        refuse(
            "images are read from a folder, or by their paths from a table",
            key="data.dataset",
            given=data.dataset,
            expected="data.folder, data.file or data.files",
            remedy="set data.folder in place of data.dataset",
        )
    if data.folder is not None and (not images or data.group is not None):
        refuse(
            f"{kind.name} is not read from data.folder"
            if not images
            else "a folder of images does not say which patient or user each is of",
            key="data.folder",
            given=str(data.folder),
            expected="data.file or data.files" + (", with a column of paths" if images else ""),
            remedy="set data.file or data.files in place of data.folder",
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
                remedy=f"leave data.{key} out, or set task.kind to a kind that reads it",
            )
        if data.source is None and kind.inputs is inputs and not given:
            refuse(
                f"{kind.name} needs {what}",
                key=f"data.{key}",
                given="nothing",
                expected=what,
                remedy=f"set data.{key}",
            )
