"""What the messages of a secure sum are read from: names, tables and bytes, each checked."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

from flwr.app import RecordDict

from hushtune.common.errors import HushtuneError, MessageError
from hushtune.common.messages import unpack_body
from hushtune.common.wire_values import read_text

_HEX = re.compile(r"(?:[0-9a-f]{2})*")
MOST_SITES = 10_000
_SESSION = re.compile(r"[0-9a-f]{32}")
_T = TypeVar("_T")


def read_message(content: RecordDict, read: Callable[[dict[str, Any]], _T]) -> _T:
    body = unpack_body(content)
    try:
        return read(body)
    except HushtuneError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise MessageError(
            "a message of a secure sum is damaged", given=ascii(str(error))[:200]
        ) from error


def read_session(body: Mapping[str, Any]) -> str:
    session = read_text(body, "session")
    if not _SESSION.fullmatch(session):
        raise MessageError("a session's name is 32 hexadecimal digits", given=ascii(session)[:80])
    return session


def read_table(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise MessageError("a message of a secure sum lacks a table", given=type(value).__name__)
    return {str(key): item for key, item in value.items()}  # pyright: ignore[reportUnknownVariableType, reportUnknownArgumentType]


def read_bytes(value: object) -> bytes:
    if not isinstance(value, str) or not _HEX.fullmatch(value):
        raise MessageError("a value of a secure sum is not hexadecimal")
    return bytes.fromhex(value)


def read_names(value: object) -> tuple[str, ...]:
    """Names of sites; MessageError for anything else."""
    if not isinstance(value, list) or len(value) > MOST_SITES:  # pyright: ignore[reportUnknownArgumentType]
        raise MessageError("the sites of a secure sum are no list of names")
    return tuple(read_text({"site": name}, "site") for name in value)  # pyright: ignore[reportUnknownVariableType]


def hexed(values: Mapping[str, bytes]) -> dict[str, str]:
    return {name: value.hex() for name, value in values.items()}


def unhexed(value: object) -> dict[str, bytes]:
    return {name: read_bytes(text) for name, text in read_table(value).items()}
