"""A configuration as documentation: a commented TOML file, and a JSON schema for editors."""

from __future__ import annotations

import textwrap
from collections.abc import Mapping
from pathlib import PurePath
from typing import Any, cast

import tomli_w
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from hushtune.common.config import RunConfig

_WIDTH = 98
_FOLLOWING = frozenset({"warmup_rounds"})
"""Keys whose value, left out, follows from another key's: a file that has them would fix them."""


def json_schema() -> dict[str, Any]:
    """The JSON schema (draft 2020-12) of a configuration; editors check and complete TOML by it."""
    return {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **RunConfig.model_json_schema(),
    }


def template() -> str:
    """A commented TOML file with every key, what it means and its default.

    Keys without a default stand commented out with an example. Only [data] has to be filled in.
    """
    return commented(
        RunConfig,
        "# The settings of a hushtune run. A key that is left out has the value shown here;",
        "# one behind a # has no value, or one that follows from others. Only [data] has to be",
        "# filled in: give it one source.",
    )


def commented(
    model: type[BaseModel], *heading: str, values: Mapping[str, Any] | None = None
) -> str:
    """A commented TOML file with every key of a model, below some heading.

    ``values``: of keys, or of tables of keys, in place of their defaults.
    """
    values = values or {}
    lines = [*heading, ""]
    for name, field in model.model_fields.items():
        section = field.annotation
        if isinstance(section, type) and issubclass(section, BaseModel):
            lines += ["", *_comment(section.__doc__), f"[{name}]"]
            given = values.get(name, {})
            for key, inner in section.model_fields.items():
                lines += [*_comment(inner.description), _assignment(key, inner, given)]
        else:
            lines += [*_comment(field.description), _assignment(name, field, values)]
    return "\n".join(lines) + "\n"


def _comment(text: str | None) -> list[str]:
    words = " ".join((text or "").split())
    return [f"# {line}" for line in textwrap.wrap(words, _WIDTH, break_on_hyphens=False)]


def _assignment(key: str, field: FieldInfo, values: Mapping[str, Any]) -> str:
    if values.get(key) is not None:
        return _toml(key, values[key])
    if field.is_required():
        return _toml(key, (field.examples or ["..."])[0])
    default: Any = field.get_default(call_default_factory=True)
    if default is None:
        return f"# {_toml(key, (field.examples or ['...'])[0])}"
    return f"# {_toml(key, default)}" if key in _FOLLOWING else _toml(key, default)


def _toml(key: str, value: Any) -> str:
    """One line of TOML; a table is written inline, so that it can stay among its section's keys."""
    if isinstance(value, list | tuple):
        items = [_toml("item", item).removeprefix("item = ") for item in cast("list[Any]", value)]
        return f"{key} = [{', '.join(items)}]"
    if isinstance(value, Mapping):
        pairs = cast("Mapping[str, Any]", value).items()
        return f"{key} = {{{', '.join(_toml(name, inner) for name, inner in pairs)}}}"
    value = str(value) if isinstance(value, PurePath) else value
    return tomli_w.dumps({key: value}).strip()
