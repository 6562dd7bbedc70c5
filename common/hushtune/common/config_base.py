"""What every table of settings is made of: strictness, refusals that explain, shared types."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, NoReturn

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field
from pydantic_core import PydanticCustomError

from hushtune.common.privacy.delta import DELTA_TOO_SMALL, LEAST_DELTA

REFUSED = "refused"
"""The type of the pydantic errors whose context holds `key`, `given`, `expected`, `remedy`."""


def refuse(
    message: str, *, key: str, given: object = "", expected: str = "", remedy: str = ""
) -> NoReturn:
    """Refuse a value, with all that an error message must say.

    Args:
        key: the key's place below the model that refuses, dotted; "" for the value itself.
    """
    context: dict[str, Any] = {
        "message": message,
        "key": key,
        "given": given if isinstance(given, str) else repr(given),
        "expected": expected,
        "remedy": remedy,
    }
    raise PydanticCustomError(REFUSED, "{message}", context)


def refuse_idle(section: BaseModel, *keys: str, table: str, needed: str, expected: str) -> None:
    """Refuse settings that have another value than their default and would change nothing.

    Args:
        keys: the settings, of which the first that is at fault is named.
        table: the section's name, for the remedy.
        needed: what they are for, as the end of a sentence.
        expected: the setting under which they have an effect.
    """
    for key in keys:
        given = getattr(section, key)
        if given != type(section).model_fields[key].default:
            refuse(
                f"{table}.{key} is for {needed}, and changes nothing here",
                key=key,
                given=json.dumps(given),
                expected=f"{expected}, or no such key",
                remedy=f"leave {table}.{key} out, or set {expected}",
            )


_BALANCED = frozenset(
    {"balance", "balanced", "balanced_sampling", "class_sampling", "oversample", "oversampling"}
    | {"sampler", "sampling", "undersample", "undersampling"}
)


def refuse_balanced(tree: Any) -> Any:
    """Settings as they were read; refuses those by which other tools draw rare classes more."""
    for key in sorted(_BALANCED.intersection(tree if isinstance(tree, Mapping) else ())):
        refuse(
            "each row is drawn at one public rate, whatever its class: the accounting of epsilon "
            "rests on it, and rates by class would follow from how many rows of each there are, "
            "which is private",
            key=key,
            given=json.dumps(tree[key], default=str),
            expected="no such setting: rows are drawn by Poisson sampling alone",
            remedy="weigh the classes instead, by public numbers: data.class_weights = "
            "{rare = 5.0, common = 0.6}",
        )
    return tree


def _path_from_text(value: object) -> object:
    """Strict validation takes no text for a path; TOML has nothing else."""
    return Path(value) if isinstance(value, str) and value else value


def tuple_from_list(value: object) -> object:
    """Strict validation takes no list for a tuple; TOML has nothing else."""
    return tuple(value) if isinstance(value, list) else value


def _accountable(delta: float) -> float:
    if delta < LEAST_DELTA:
        refuse(
            DELTA_TOO_SMALL,
            key="",
            given=f"{delta:g}",
            expected=f"{LEAST_DELTA:g} or more, and below 1 / (rows of the smallest site)",
            remedy="a delta well below 1 / rows is enough, such as 1e-6 for a thousand rows",
        )
    return delta


MOST_STEPS = 10**6
"""Optimiser steps of a whole run that a simulated site takes part in."""

FilePath = Annotated[Path, BeforeValidator(_path_from_text)]
Names = Annotated[tuple[str, ...], BeforeValidator(tuple_from_list)]
Name = Annotated[str, Field(min_length=1)]
# Upper limits are far beyond any use: what is refused by them is a slip, found before it costs.
Count = Annotated[int, Field(ge=1, le=10**9)]
CountOrNone = Annotated[int, Field(ge=0, le=10**9)]
Positive = Annotated[float, Field(gt=0, le=1e6)]
LearningRate = Annotated[float, Field(gt=0, le=100)]
Delta = Annotated[float, Field(gt=0, lt=1), AfterValidator(_accountable)]
Number = Annotated[float, Field(ge=-1e12, le=1e12)]
Range = Annotated[tuple[Number, Number], BeforeValidator(tuple_from_list)]
Probability = Annotated[float, Field(gt=0, le=1)]


class Section(BaseModel):
    """A frozen table of settings that refuses keys it does not know and values of another type."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True, allow_inf_nan=False)
