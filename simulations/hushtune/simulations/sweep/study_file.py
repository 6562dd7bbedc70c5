"""STUDY.toml: what all runs of a study share, and what they vary."""

from __future__ import annotations

import itertools
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, cast

import tomli_w
from pydantic import BeforeValidator, Field, ValidationError

from hushtune.common.config_base import FilePath, Name, Section, tuple_from_list
from hushtune.common.config_io import Layer, merged, nested, parse_file, read_tree
from hushtune.common.config_problems import Origins, as_config_error, known_keys, nearest_key
from hushtune.common.errors import ConfigError, MissingFileError, UnknownKeyError
from hushtune.simulations.reporting.points import BASE

MOST_POINTS = 10_000
_KEYS = frozenset(known_keys())
_NAME = "name"
_BASELINES = "simulation.baselines"


def check_jobs(jobs: int | None) -> None:
    """ConfigError for a number of processes that is none."""
    if jobs is not None and jobs < 1:
        raise ConfigError("--jobs is a number of processes", given=jobs, expected="1 or more")


class StudyFile(Section):
    """A study as it is written: ``preset`` or ``config``, [set], [grid], [[point]], [baselines]."""

    preset: Name | None = Field(default=None, description="a ready configuration to begin with")
    config: FilePath | None = Field(default=None, description="a TOML file to begin with")
    set: Mapping[str, Any] = Field(default_factory=dict, description="settings of all points")
    grid: Mapping[str, Any] = Field(
        default_factory=dict, description="lists of values; all their combinations are run"
    )
    point: Annotated[tuple[Mapping[str, Any], ...], BeforeValidator(tuple_from_list)] = Field(
        default=(), description="settings that go together, each combined with the whole grid"
    )
    against: Annotated[tuple[Name, ...], BeforeValidator(tuple_from_list)] = Field(
        default=(),
        description="names of points, without their seeds, that the report tests all others "
        "against",
    )
    baselines: Mapping[str, Any] | None = Field(
        default=None,
        description="settings, each with one value or a list, of the points that are compared with "
        "baselines; the others are not",
    )


@dataclass(frozen=True, kw_only=True)
class Asked:
    """One point as it was asked for. ``label``: its own name, if it was given one; ``varied``: by
    dotted key what it sets, ``crossed`` of the grid alone; ``place``: where it stands, for errors.
    """

    label: str | None
    varied: Mapping[str, Any]
    crossed: Mapping[str, Any]
    place: str


@dataclass(frozen=True, kw_only=True)
class Study:
    """A study that was read. ``fixed``: what all points share, over ``preset`` or ``config``, of
    which ``base`` is the text, its paths absolute; ``keys``: the dotted keys that vary, in the
    order of the file."""

    file: Path
    text: str
    preset: str | None
    config: Path | None
    base: str | None
    fixed: Layer
    keys: tuple[str, ...]
    asked: tuple[Asked, ...]
    compared: Mapping[str, Sequence[Any]] | None = None
    """Which points are compared with baselines, values by dotted key; None: as settings say."""
    against: tuple[str, ...] = ()
    """Names of points, without their seeds, that the report tests all others against."""

    def layers(self, point: Asked) -> tuple[Layer, Layer]:
        """The settings of a point, over what the study begins with."""
        tree: Mapping[str, Any] = {}
        for key, value in point.varied.items():
            tree = merged(tree, nested(key.split("."), value))
        return self.fixed, Layer(place=point.place, tree=tree, folder=self.fixed.folder)


def read_study(file: Path | str) -> Study:
    """Read a study; relative paths in it are from its folder.

    Raises MissingFileError, and ConfigErrors that name the key and the remedy.
    """
    file = Path(file)
    if not file.exists():
        raise MissingFileError(
            "there is no such study",
            file=file,
            remedy="docs/laboratory.md shows one to begin with",
        )
    tree = parse_file(file)
    try:
        table = StudyFile.model_validate(tree)
    except ValidationError as error:
        origins = Origins({}, [str(file)], model=StudyFile, listing="hushtune sweep --help")
        raise as_config_error(error, origins) from None
    if (table.preset is None) == (table.config is None):
        raise ConfigError(
            f"a study begins with either a preset or a configuration file (in {file})",
            given="both" if table.preset is not None else "neither",
            expected='preset = "demo", or config = "run.toml"',
        )
    folder = file.absolute().parent
    fixed = _by_key(table.set, f"{file}, [set]")
    grid = _by_key(table.grid, f"{file}, [grid]")
    for key, values in grid.items():
        if not isinstance(values, list) or not values:
            raise ConfigError(
                f"{key} has no list of values (in {file}, [grid])",
                given=json.dumps(values, default=str),
                expected="a list of one value or more"
                if values == [] or isinstance(values, Mapping)
                else f"a list, such as {key} = [{json.dumps(values, default=str)}]",
                remedy="what does not vary belongs in [set]",
            )
    tables = [_point(table, number, file) for number, table in enumerate(table.point, 1)]
    keys = tuple(dict.fromkeys([key for _, varied in tables for key in varied] + [*grid]))
    _check_apart(file, fixed, grid, [varied for _, varied in tables])
    count = math.prod(len(values) for values in grid.values()) * max(1, len(tables))
    if not keys or count > MOST_POINTS:
        raise ConfigError(
            f"a study has settings that vary (in {file})",
            given=f"{count} points" if keys else "no [grid] and no [[point]]",
            expected=f"2 to {MOST_POINTS} points",
            remedy="one run is `hushtune simulate`" if not keys else "leave some values out",
        )
    compared = None
    if table.baselines is not None:
        by_key = _by_key(table.baselines, f"{file}, [baselines]")
        compared = {key: v if isinstance(v, list) else [v] for key, v in by_key.items()}
        if _BASELINES in by_key:
            raise ConfigError(
                f"[baselines] says which points are compared, by their other settings (in {file})",
                given=_BASELINES,
                expected="settings that some points have, such as seed = 0",
                remedy=f"leave {_BASELINES} out of it",
            )
        if _BASELINES in (*fixed, *keys):
            raise ConfigError(
                f"{_BASELINES} and [baselines] say the same (in {file})",
                given="both",
                expected="one of them",
                remedy=f"leave {_BASELINES} out",
            )
    begins = None if table.config is None else folder / table.config.expanduser()
    if begins is not None and not begins.exists() and (folder / BASE).is_file():
        raise MissingFileError(
            "the configuration that the study begins with does not exist",
            file=begins,
            remedy=f'write config = "{BASE}": a sweep left it there as {BASE}',
        )
    tree_of_all: Mapping[str, Any] = {}
    for key, value in fixed.items():
        tree_of_all = merged(tree_of_all, nested(key.split("."), value))
    return Study(
        file=file,
        text=file.read_text(encoding="utf-8"),
        preset=table.preset,
        config=begins,
        base=None if begins is None else tomli_w.dumps(read_tree(begins)),
        fixed=Layer(place=f"{file}, [set]", tree=tree_of_all, folder=folder),
        keys=keys,
        asked=tuple(_combined(tables, grid, file)),
        compared=compared,
        against=table.against,
    )


def _by_key(tree: Mapping[str, Any], place: str, prefix: str = "") -> dict[str, Any]:
    """Settings by dotted key, whether they stand in tables or under ``"section.key"``."""
    found: dict[str, Any] = {}
    for name, value in tree.items():
        key = prefix + name
        below = any(key.startswith(f"{known}.") for known in _KEYS)
        if isinstance(value, Mapping) and key not in _KEYS and not below:
            found |= _by_key(cast("Mapping[str, Any]", value), place, f"{key}.")
        elif key in _KEYS or below:
            found[key] = value
        else:
            near = nearest_key(key)
            raise UnknownKeyError(
                f"there is no setting {key} (in {place})",
                given=key,
                expected=f"perhaps {near}" if near else "a key that `hushtune config new` lists",
                remedy=f"write {near}" if near else "remove it",
            )
    return found


def _point(table: Mapping[str, Any], number: int, file: Path) -> tuple[str | None, dict[str, Any]]:
    """The name of a [[point]], if it has one, and what it sets."""
    place = f"{file}, [[point]] {number}"
    label = table.get(_NAME)
    if label is not None and not (isinstance(label, str) and label.strip() and label.isprintable()):
        raise ConfigError(
            f"a point's name is text in one line (in {place})",
            given=ascii(label),
            expected="letters and signs, without control characters",
        )
    varied = _by_key({key: value for key, value in table.items() if key != _NAME}, place)
    return label, varied


def _check_apart(
    file: Path,
    fixed: Mapping[str, Any],
    grid: Mapping[str, Any],
    tables: Sequence[Mapping[str, Any]],
) -> None:
    """A setting stands in one place: what would count otherwise could only be guessed."""
    points = {key for varied in tables for key in varied}
    for first, one, second, other in (
        ("[set]", fixed, "[grid]", grid),
        ("[set]", fixed, "a [[point]]", dict.fromkeys(points)),
        ("[grid]", grid, "a [[point]]", dict.fromkeys(points)),
    ):
        for key in sorted(one.keys() & other.keys()):
            raise ConfigError(
                f"{key} stands in {first} and in {second} (in {file})",
                given="two places",
                expected="one of them",
                remedy=f"leave it out of {first}, or of {second}",
            )


def _combined(
    tables: Sequence[tuple[str | None, Mapping[str, Any]]], grid: Mapping[str, Any], file: Path
) -> Iterator[Asked]:
    number = 0
    for label, varied in tables or [(None, {})]:
        for values in itertools.product(*grid.values()):
            number += 1
            crossed = dict(zip(grid, values, strict=True))
            both = {**varied, **crossed}
            told = ", ".join(f"{key} = {json.dumps(v, default=str)}" for key, v in both.items())
            place = f"{file}, point {number}: {told}"
            yield Asked(label=label, varied=both, crossed=crossed, place=place)
