"""The points of a study: each one run, known by the hash of all of its settings."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Generator, Iterable, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from hushtune.common.config import RunConfig
from hushtune.common.config_io import config_hash, dump_toml, load_config
from hushtune.common.errors import ConfigError, HushtuneError
from hushtune.common.presets import PRESETS
from hushtune.common.privacy.plan import PrivacyPlan
from hushtune.common.tasks.workspace import workspace_key
from hushtune.common.tuning import measured_precision
from hushtune.simulations.reporting.combinations import without_seed
from hushtune.simulations.study import checked
from hushtune.simulations.sweep.study_file import Asked, Study

SEED = "seed"
_DEALT = ("public_sizes", "partition", "sites", "alpha", "shards_per_site")


@dataclass(frozen=True, kw_only=True)
class Point:
    """One run of a study.

    ``key``: the name of its folder, the first 12 digits of ``config_hash``. ``settings``: what the
    study varies, by dotted key, without the seed. ``shares``: what runs have in common, the least
    first: equal base and rows, and an equal workspace.
    """

    name: str
    settings: Mapping[str, Any]
    config: RunConfig
    plans: Mapping[str, PrivacyPlan]
    config_hash: str
    shares: tuple[str, str]

    @property
    def key(self) -> str:
        """See the class."""
        return self.config_hash[:12]

    @property
    def toml(self) -> str:
        """All settings, as a worker gets them."""
        return dump_toml(self.config)


def points_of(study: Study, *, precision: str | None = None) -> tuple[list[Point], list[str]]:
    """All points, each checked as far as it can be without the model, and notes on what is merged.

    ``precision``: what ``model.precision = "auto"`` stands for; None to measure it. The error of a
    point that cannot run names the point.
    """
    found: dict[str, Point] = {}
    first: dict[str, int] = {}
    notes: list[str] = []
    short = _short_names(study.keys)
    sound = _checked(study, precision or measured_precision())
    for number, (asked, (config, plans)) in enumerate(zip(study.asked, sound, strict=True), 1):
        digest = config_hash(config)
        if digest in found:
            notes.append(f"points {first[digest]} and {number} are one run, which runs once")
            continue
        tree = config.model_dump(mode="json")
        settings = {key: _value(tree, key) for key in study.keys if key != SEED}
        first[digest] = number
        found[digest] = Point(
            name=_name(asked, short),
            settings=settings,
            config=config,
            plans=plans,
            config_hash=digest,
            shares=(_base_and_rows(config), workspace_key(config)),
        )
    _check_against(study, found.values())
    return _with_own_names(found.values()), notes


def _check_against(study: Study, points: Iterable[Point]) -> None:
    """What all others are tested against is there."""
    names = dict.fromkeys(without_seed(point.name, point.config.seed) for point in points)
    for name in study.against:
        if name not in names:
            raise ConfigError(
                f"no point has the name that `against` has (in {study.file})",
                given=name,
                expected=f"one of: {'; '.join(names)}",
            )


def _checked(study: Study, precision: str) -> list[tuple[RunConfig, Mapping[str, PrivacyPlan]]]:
    """The configuration and plans of each point, in the order of the study."""
    configs: list[RunConfig] = []
    for asked in study.asked:
        config = load_config(
            study.config, preset=study.preset, presets=PRESETS, layers=study.layers(asked)
        )
        if config.model.precision == "auto":
            model = config.model.model_copy(update={"precision": precision})
            config = config.model_copy(update={"model": model})
        configs.append(_with_baselines(config, study.compared))
    _check_some_compared(study, configs)
    # One table of rows is kept at a time, so that points of equal rows are checked together.
    order = sorted(range(len(configs)), key=lambda at: (_rows(configs[at]), at))
    found: dict[int, tuple[RunConfig, Mapping[str, PrivacyPlan]]] = {}
    for at in order:
        with told_at(study.asked[at].place):
            found[at] = checked(configs[at])
    return [found[at] for at in range(len(configs))]


def _with_baselines(config: RunConfig, compared: Mapping[str, Sequence[Any]] | None) -> RunConfig:
    """The configuration, compared with baselines if it is one of those that are."""
    if compared is None:
        return config
    tree = config.model_dump(mode="json")
    chosen = all(_value(tree, key) in values for key, values in compared.items())
    simulation = config.simulation.model_copy(update={"baselines": chosen})
    return config.model_copy(update={"simulation": simulation})


def _check_some_compared(study: Study, configs: Sequence[RunConfig]) -> None:
    """Each value in [baselines] is one that some point has, and some point has one of each."""
    if study.compared is None:
        return
    trees = [config.model_dump(mode="json") for config in configs]
    none = [
        f"{key} = {json.dumps(value, default=str)}"
        for key, values in study.compared.items()
        for value in values
        if all(_value(tree, key) != value for tree in trees)
    ]
    if none or not any(config.simulation.baselines for config in configs):
        raise ConfigError(
            f"no point has what [baselines] asks for (in {study.file})",
            given=", ".join(none) or "settings that no point has together",
            expected="settings that some point has",
            remedy="correct them, or leave [baselines] out",
        )


def _rows(config: RunConfig) -> str:
    return json.dumps([config.data.model_dump(mode="json"), config.seed], sort_keys=True)


@contextmanager
def told_at(place: str) -> Generator[None]:
    """Say of which point an error is."""
    try:
        yield
    except HushtuneError as error:
        error.message = f"{error.message} (in {place})"
        raise


def _value(tree: Mapping[str, Any], key: str) -> Any:
    """What a setting is in a configuration; None where it, or what it is below, is not there."""
    node: Any = tree
    for part in key.split("."):
        node = node.get(part) if isinstance(node, Mapping) else None
    return node


def _short_names(keys: Iterable[str]) -> dict[str, str]:
    """``epsilon`` for ``privacy.epsilon``, unless another varied key ends in the same word.

    >>> _short_names(["privacy.epsilon", "seed", "train.momentum", "aggregation.momentum"])
    ... # doctest: +NORMALIZE_WHITESPACE
    {'privacy.epsilon': 'epsilon', 'seed': 'seed', 'train.momentum': 'train.momentum',
     'aggregation.momentum': 'aggregation.momentum'}
    """
    ends = {key: key.rpartition(".")[2] for key in keys}
    count = Counter(ends.values())
    return {key: end if count[end] == 1 else key for key, end in ends.items()}


def _name(asked: Asked, short: Mapping[str, str]) -> str:
    """A point's own name stands for what it sets; what the grid sets is always told."""
    shown = asked.varied if asked.label is None else asked.crossed
    told = [f"{short[key]}={_text(value)}" for key, value in shown.items()]
    return " ".join([*([] if asked.label is None else [asked.label]), *told])


def _text(value: object) -> str:
    if isinstance(value, list | tuple):
        return "+".join(map(_text, value)) or "none"
    return value if isinstance(value, str) else json.dumps(value, default=str)


def _with_own_names(points: Iterable[Point]) -> list[Point]:
    """Reports know points by their names, so each has its own."""
    points = list(points)
    names = [point.name for point in points]
    return [
        point if names.count(point.name) == 1 else replace(point, name=f"{point.name} {point.key}")
        for point in points
    ]


def _base_and_rows(config: RunConfig) -> str:
    """What frozen states follow from, whoever the rows are dealt to."""
    data = config.data.model_dump(mode="json", exclude=set(_DEALT))
    return json.dumps([config.model.model_dump(mode="json"), data], sort_keys=True, default=str)
