"""Conversations as canonical messages: what stands before the last answer, and that answer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Final, cast

from hushtune.common.tasks.cells import as_list, cell_text

Message = Mapping[str, str]
LATER: Final = "turns after the last answer are left out"

_ROLES: Final[Mapping[str, str]] = MappingProxyType(
    {
        **{"system": "system", "developer": "system"},
        **{"user": "user", "human": "user"},
        **{"assistant": "assistant", "gpt": "assistant", "chatgpt": "assistant"},
        **{"model": "assistant", "bot": "assistant"},
        **{"tool": "tool", "function": "tool", "observation": "tool"},
    }
)
_KEYS: Final = (("role", "content"), ("from", "value"))
"""Who speaks and what is said, of OpenAI's messages and of ShareGPT's conversations."""


@dataclass(frozen=True, slots=True)
class Exchange:
    """What a row of instructions is: ``messages`` before the answer, none for a text alone;
    ``answer``: None where there is none. ``remarks``: what was left out."""

    messages: tuple[Message, ...] | None
    answer: str | None
    remarks: tuple[str, ...] = ()


def message(role: str, content: str) -> Message:
    """One message."""
    return {"role": role, "content": content}


def is_conversation(value: object) -> bool:
    """Whether a cell is a list of messages, or a text that is one in JSON."""
    listed = as_list(value)
    return bool(listed) and all(isinstance(item, Mapping) for item in listed or ())


def messages_of(value: object) -> tuple[Message, ...]:
    """The messages of a cell, their roles by the names that chat templates use.

    Args:
        value: a list of ``{"role", "content"}`` or ``{"from", "value"}``, or a text that is one in
            JSON, or, as the `datasets` library keeps some, a table of lists.

    Raises:
        ValueError: it is none, or holds a role or content that cannot be read; tells which turn.
    """
    listed = as_list(value)
    if listed is None and isinstance(value, Mapping):
        listed = _transposed(cast("Mapping[str, object]", value))
    if listed is None:
        raise ValueError("the conversation is not a list of messages")
    return tuple(_message(item, place) for place, item in enumerate(listed, start=1))


def exchange(messages: Sequence[Message]) -> Exchange:
    """The last answer of a conversation, and what stands before it; later turns are left out.

    >>> exchange([message("user", "a"), message("assistant", "b"), message("user", "c")]).answer
    'b'
    """
    places = [i for i, turn in enumerate(messages) if turn["role"] == "assistant"]
    if not places:
        return Exchange(tuple(messages) or None, None)
    last = places[-1]
    remarks = (LATER,) if last + 1 < len(messages) else ()
    return Exchange(tuple(messages[:last]), messages[last]["content"] or None, remarks)


def _message(item: object, place: int) -> Message:
    if not isinstance(item, Mapping):
        raise ValueError(f"turn {place} of the conversation is no message")
    turn = cast("Mapping[str, object]", item)
    for speaker, said in _KEYS:
        if turn.get(speaker) is not None:
            return message(_role(str(turn[speaker]), place), _content(turn.get(said), place))
    raise ValueError(
        f"turn {place} of the conversation has no role; it has {', '.join(map(str, turn))[:80]}, "
        "and role and content, or from and value, are read"
    )


def _role(given: str, place: int) -> str:
    name = given.strip().casefold()
    if name in _ROLES:
        return _ROLES[name]
    near = difflib.get_close_matches(name, _ROLES, n=1)
    raise ValueError(
        f"turn {place} of the conversation has the role {given[:40]!r}, which is not one of "
        + ", ".join(_ROLES)
        + (f"; did you mean {near[0]!r}?" if near else "")
    )


def _content(value: object, place: int) -> str:
    """What is said; of a list of parts, those that are text. Calls of tools say nothing."""
    if isinstance(value, Sequence) and not isinstance(value, str):
        parts: list[str] = []
        for part in cast("Sequence[object]", value):
            text = cast("Mapping[str, object]", part).get("text") if _is_text(part) else part
            if not isinstance(text, str):
                raise ValueError(f"turn {place} of the conversation holds more than text")
            parts.append(text)
        value = "\n".join(parts)
    try:
        return cell_text(value) or ""
    except ValueError as error:
        raise ValueError(f"in turn {place} of the conversation, {error}") from None


def _is_text(part: object) -> bool:
    return isinstance(part, Mapping) and cast("Mapping[str, object]", part).get("type") == "text"


def _transposed(table: Mapping[str, object]) -> list[dict[str, object]] | None:
    columns = {name: as_list(cells) for name, cells in table.items()}
    sizes = {None if cells is None else len(cells) for cells in columns.values()}
    if len(sizes) != 1 or None in sizes:
        return None
    lists = cast("dict[str, list[object]]", columns)
    return [dict(zip(lists, row, strict=True)) for row in zip(*lists.values(), strict=True)]
