"""What may stand in the JSON body of a message: texts, counts and numbers, each checked."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hushtune.common.errors import MessageError

_LARGEST = 2**53
"""Numbers in messages stay below what JSON's numbers hold exactly."""


def refuse_unknown(body: Mapping[str, Any], known: frozenset[str]) -> None:
    """What a site does not know it cannot agree to."""
    unknown = sorted(set(body) - known)
    if unknown:
        raise MessageError("an order asks for what is not known here", given=unknown[0][:100])


def read_text(body: Mapping[str, Any], key: str) -> str:
    """A text of a message's body; MessageError for anything that is none."""
    value = body[key]
    if not isinstance(value, str) or any("\ud800" <= mark <= "\udfff" for mark in value):
        raise MessageError(f"{key} of a message must be a text", given=ascii(value)[:100])
    return value


def read_truth(body: Mapping[str, Any], key: str) -> bool:
    """True or false of a message's body; MessageError for anything else."""
    value = body[key]
    if not isinstance(value, bool):
        raise MessageError(f"{key} of a message must be true or false", given=repr(value)[:100])
    return value


def is_number(value: object) -> bool:
    """Whether a value is a finite number that JSON holds exactly enough."""
    if not isinstance(value, int | float) or isinstance(value, bool):
        return False
    return abs(value) < _LARGEST  # NaN is not below anything


def is_count(value: object, least: int) -> bool:
    """Whether a value is a whole number, ``least`` or more."""
    return isinstance(value, int) and not isinstance(value, bool) and least <= value < _LARGEST


def read_count(body: Mapping[str, Any], key: str) -> int:
    """A count of a message's body; MessageError for anything that is none."""
    value = body[key]
    if not isinstance(value, int) or not is_count(value, 0):
        raise MessageError(f"{key} of a message must be a count", given=repr(value)[:100])
    return value
