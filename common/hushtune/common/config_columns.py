"""What a small network on columns needs of a configuration, and what has no meaning for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from hushtune.common.columns import Column
from hushtune.common.config_base import refuse
from hushtune.common.config_data import DataConfig
from hushtune.common.config_federation import AggregationConfig
from hushtune.common.config_kind import named_source
from hushtune.common.config_model import AdapterConfig, ModelConfig
from hushtune.common.config_task import TaskConfig
from hushtune.common.kinds import Inputs

COLUMNS = "columns"
"""As model.name: a small network on a table's columns in place of a pretrained model."""
WITHOUT_FACTORS = ("ffa", "fedit", "fedsgd")
"""Rules that mean something where a head is all that is trained; the first two are then one."""


def column_names(data: DataConfig) -> tuple[str, ...]:
    """The columns that are read, in their order."""
    source = named_source(data.source)
    if source is not None:
        return tuple(source.columns)
    return data.columns or tuple(sorted({*data.column_ranges, *data.column_values}))


def public_columns(data: DataConfig) -> tuple[Column, ...]:
    """The columns of which a public range or list is known, by the settings or else by the named
    source, in the order in which they are read."""
    source = named_source(data.source)
    ranges = {} if source is None else dict(source.ranges)
    values = {} if source is None else dict(source.values)
    found: list[Column] = []
    for name in column_names(data):
        if name in data.column_ranges:
            found.append(Column(name, data.column_ranges[name]))
        elif name in data.column_values:
            found.append(Column(name, values=data.column_values[name]))
        elif name in ranges:
            found.append(Column(name, ranges[name]))
        elif name in values:
            found.append(Column(name, values=values[name]))
    return tuple(found)


def columns_known(task: TaskConfig, data: DataConfig) -> bool:
    """Whether a network on columns can be made for these data."""
    names = column_names(data)
    return task.of.inputs is Inputs.COLUMNS and 0 < len(names) == len(public_columns(data))


def whole_rounds(tree: Any) -> Any:
    """A configuration as it was read, without a warm-up where a network on columns is trained, in
    which no part is frozen at first."""
    if not isinstance(tree, Mapping):
        return tree
    given = cast("Mapping[str, Any]", tree)
    model, train = given.get("model"), given.get("train", {})
    name = model.name if isinstance(model, ModelConfig) else None
    if isinstance(model, Mapping):
        name = cast("Mapping[str, Any]", model).get("name")
    if name != COLUMNS or not isinstance(train, Mapping) or "warmup_rounds" in train:
        return given
    return {**given, "train": {**train, "warmup_rounds": 0}}


def check_columns(
    task: TaskConfig,
    data: DataConfig,
    model: ModelConfig,
    adapter: AdapterConfig,
    aggregation: AggregationConfig,
    *,
    rounds: int,
    warmup_rounds: int,
) -> None:
    """Refuse what does not go with columns; keys are those of the whole configuration."""
    _check_lists(task, data)
    if model.name != COLUMNS:
        return
    if task.of.inputs is not Inputs.COLUMNS:
        refuse(
            "a network on columns reads tables",
            key="model.name",
            given=f"columns, task.kind = {task.kind}",
            expected="a kind of task whose inputs are columns, such as tabular-classification",
            remedy="leave model.name out",
        )
    known = {column.name for column in public_columns(data)}
    missing = [name for name in column_names(data) if name not in known]
    if missing or not known:
        first = missing[0] if missing else "NAME"
        refuse(
            "a network on columns needs the public range or list of each column, since what is "
            "taken from the rows would tell of them",
            key="data.column_ranges",
            given=f"nothing for {', '.join(missing)}" if missing else "no columns",
            expected="each column in data.column_ranges or data.column_values",
            remedy=f'set data.column_ranges = {{"{first}" = [0, 100]}} or data.column_values = '
            f'{{"{first}" = ["yes", "no"]}}, from what is known without the rows',
        )
    if model.head != "mean" or model.layer is not None:
        refuse(
            "a network on columns has no blocks and no family",
            key="model.head" if model.head != "mean" else "model.layer",
            given=model.head if model.head != "mean" else str(model.layer),
            expected="no model.head and no model.layer",
            remedy="leave it out",
        )
    if aggregation.rule not in WITHOUT_FACTORS:
        refuse(
            "this rule is about LoRA factors, of which a network on columns has none",
            key="aggregation.rule",
            given=aggregation.rule,
            expected=" or ".join(WITHOUT_FACTORS),
            remedy="leave aggregation.rule out",
        )
    if adapter.ranks or adapter.targets:
        refuse(
            "a network on columns has no modules to adapt",
            key="adapter.ranks" if adapter.ranks else "adapter.targets",
            given=", ".join(adapter.ranks or adapter.targets),
            expected="no adapter.ranks and no adapter.targets",
            remedy="leave it out",
        )
    if warmup_rounds not in (0, rounds):
        refuse(
            "a network on columns is trained whole from the first round",
            key="train.warmup_rounds",
            given=str(warmup_rounds),
            expected=f"0, or all {rounds}",
            remedy="leave train.warmup_rounds out",
        )


def _check_lists(task: TaskConfig, data: DataConfig) -> None:
    """Ranges and lists are of columns that are read."""
    for key in ("column_ranges", "column_values"):
        given: Mapping[str, Any] = getattr(data, key)
        if not given:
            continue
        if task.of.inputs is not Inputs.COLUMNS:
            refuse(
                f"{task.kind} does not read data.{key}",
                key=f"data.{key}",
                given=", ".join(given),
                expected=f"no data.{key}, or a kind that reads columns",
                remedy=f"leave data.{key} out",
            )
        unknown = sorted(set(given) - set(column_names(data)))
        if unknown:
            refuse(
                f"data.{key} names a column that is not read",
                key=f"data.{key}",
                given=", ".join(unknown),
                expected="some of " + ", ".join(column_names(data)),
                remedy="name a column of data.columns, or add it there",
            )
