"""Turns what pydantic reports into an error that names the key, the place and the remedy."""

from __future__ import annotations

import difflib
import json
import types
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal, Union, cast, get_args, get_origin

from pydantic import BaseModel, ValidationError

from hushtune.common.config import REFUSED, RunConfig
from hushtune.common.errors import ConfigError, UnknownKeyError

_EXPECTED = "Input should be "
_WORDS: Mapping[str, str] = {
    "bool_type": "true or false",
    "finite_number": "a finite number",
    "float_type": "a number",
    "int_type": "a whole number",
    "is_instance_of": "a path in quotes",
    "path_type": "a path in quotes",
    "string_too_short": "text that is not empty",
    "string_type": "text in quotes",
    "tuple_type": 'a list, such as ["a", "b"] or [1, 5]',
}
"""What was expected, in TOML's words where pydantic's are Python's."""


@dataclass(frozen=True)
class Origins:
    """Where each setting stood: dotted key -> "preset demo", a file's path, "--set".

    ``model`` is what the settings are checked as, ``listing`` the command that lists its keys.
    """

    keys: Mapping[str, str]
    layers: Sequence[str]
    model: type[BaseModel] = RunConfig
    listing: str = "hushtune config new"

    def of(self, dotted: str) -> str:
        """The place of a key, or of what is below it; else all places that were read."""
        if dotted in self.keys:
            return self.keys[dotted]
        holder = dotted.rpartition(".")[0]
        if holder.count(".") and holder in self.keys:  # an item of a list
            return self.keys[holder]
        below = [place for key, place in self.keys.items() if key.startswith(f"{dotted}.")]
        return below[-1] if below else " and ".join(self.layers) or "the settings"


def as_config_error(error: ValidationError, origins: Origins) -> ConfigError:
    """The most telling of the problems, as a ConfigError (UnknownKeyError for an unknown key)."""
    problems = error.errors(include_url=False)
    # An unknown key often explains the other complaints, so it comes first.
    problems.sort(key=lambda problem: problem["type"] != "extra_forbidden")
    return _translate(cast("dict[str, Any]", problems[0]), origins)


def _translate(problem: Mapping[str, Any], origins: Origins) -> ConfigError:
    path = [str(part) for part in problem["loc"]]
    dotted = ".".join(path)
    if problem["type"] == "extra_forbidden":
        return _unknown_key(path, origins)
    if problem["type"] == REFUSED:
        context = cast("dict[str, str]", problem["ctx"])
        dotted = ".".join([*path, *filter(None, [context["key"]])])
        return ConfigError(
            f"{context['message']} ({dotted}, in {origins.of(dotted)})",
            given=context["given"] or None,
            expected=context["expected"] or None,
            remedy=context["remedy"] or None,
        )
    if problem["type"] == "missing":
        if dotted != "data":
            return ConfigError(
                f"{dotted} is missing in {origins.of(dotted)}",
                given="nothing",
                expected=f"{dotted} = a value",
                remedy=f"`{origins.listing}` prints every key with its meaning",
            )
        return ConfigError(
            f"{dotted} is missing in {origins.of(dotted)}",
            given="no [data]",
            expected="a table [data]",
            remedy='set data.source = "demo", or data.file and data.site, or data.files',
        )
    return ConfigError(
        f"{dotted} has a value that cannot be used, in {origins.of(dotted)}",
        given=_as_toml(problem["input"]),
        expected=_allowed(path, problem, origins.model),
        remedy=f"`{origins.listing}` prints every key with its meaning",
    )


def _as_toml(value: object) -> str:
    """A value as the user wrote it: true, not True."""
    try:
        return json.dumps(value, ensure_ascii=False)
    except TypeError:
        return str(value)


def _allowed(path: Sequence[str], problem: Mapping[str, Any], model: type[BaseModel]) -> str:
    if path[-1:] == ["point"] and path[0] in model.model_fields:  # of a study
        return "tables, each below [[point]], with two brackets"
    if problem["type"] in ("model_type", "mapping_type", "dict_type"):
        return f"a table [{'.'.join(path)}]"
    return _WORDS.get(problem["type"]) or str(problem["msg"]).removeprefix(_EXPECTED)


def _unknown_key(path: Sequence[str], origins: Origins) -> UnknownKeyError:
    given = ".".join(path)
    near = nearest_key(given, origins.model)
    many = origins.model is RunConfig and not path[1:]  # its tables are what a command lists
    siblings = {} if many else _names(origins.model, ".".join(path[:-1]))
    listed = f"a key that `{origins.listing}` lists"
    if siblings:
        listed = f"one of {', '.join(siblings.values())}"
    return UnknownKeyError(
        f"there is no setting {given} (in {origins.of(given)})",
        given=given,
        expected=f"perhaps {near}" if near else listed,
        remedy=f"write {near}" if near else f"remove it; `{origins.listing}` says what each means",
    )


def nearest_key(given: str, model: type[BaseModel] = RunConfig) -> str | None:
    """The dotted key that was probably meant: by place, then by name alone, then by spelling.

    >>> nearest_key("train.lerning_rate"), nearest_key("epsilon"), nearest_key("n_rounds")
    ('train.learning_rate', 'privacy.epsilon', 'train.rounds')
    >>> nearest_key("privacy.sigma") is nearest_key("zzzz") is None
    True
    """
    section, _, name = given.rpartition(".")
    siblings = _names(model, section)
    anywhere = {key.rpartition(".")[2]: key for key in reversed(known_keys(model))}
    anywhere |= {table: table for table in model.model_fields}
    return (
        _closest(name, siblings, 0.7)
        or next((key for each, key in siblings.items() if each.startswith(f"{name}_")), None)
        or anywhere.get(name)
        or _closest(name, anywhere, 0.8)
        or _closest(given, {key: key for key in anywhere.values()}, 0.85)
    )


def _names(model: type[BaseModel], section: str) -> dict[str, str]:
    """The keys right below a section, by their last part."""
    parts = (key.rpartition(".") for key in known_keys(model))
    return {name: f"{place}{dot}{name}" for place, dot, name in parts if place == section}


def _closest(name: str, keys: Mapping[str, str], cutoff: float) -> str | None:
    near = difflib.get_close_matches(name, keys, n=1, cutoff=cutoff)
    return keys[near[0]] if near else None


def known_keys(model: type[BaseModel] = RunConfig, prefix: str = "") -> list[str]:
    """All dotted keys of a configuration, in the order of the template."""
    keys: list[str] = []
    for name, field in model.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            keys += known_keys(inner, f"{prefix}{name}.")
        else:
            keys.append(prefix + name)
    return keys


def takes_text(path: Sequence[str]) -> bool:
    """Whether a setting is text, so that a column called 2024 needs no quotes in --set, and the
    word nan is no number where it is one of a few words.

    >>> takes_text(["data", "text"]), takes_text(["train", "rounds"])
    (True, False)
    """
    annotation: Any = RunConfig
    for part in path:
        if isinstance(annotation, type) and issubclass(annotation, BaseModel):
            field = annotation.model_fields.get(part)
            annotation = None if field is None else field.annotation
        else:  # below a table that is itself a value, such as data.files
            annotation = next(
                (get_args(option)[1] for option in _options(annotation) if _is_table(option)), None
            )
    return any(
        option in (str, Path) or get_origin(option) is Literal for option in _options(annotation)
    )


def _is_table(annotation: Any) -> bool:
    return get_origin(annotation) is Mapping


def _options(annotation: Any) -> list[Any]:
    """The alternatives of a type, without their constraints."""
    if get_origin(annotation) is Annotated:
        return _options(get_args(annotation)[0])
    if get_origin(annotation) in (Union, types.UnionType):
        return [option for part in get_args(annotation) for option in _options(part)]
    return [annotation]
