"""One cell as canonical text: of a name, a text or a number, of several labels, of words."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Mapping
from typing import Any, cast

from hushtune.common.kinds import Targets

_INTEGRAL = re.compile(r"[+-]?\d+\.0*")
_BLANKS = re.compile(r"[ \t\r\n]+")
_ENTITY = re.compile(r"&(?:#\d{2,7}|#x[0-9a-fA-F]{2,6}|[a-zA-Z]{2,8}[0-9]{0,2});")
NONE_OF_THEM = "|"


def cell_text(value: object) -> str | None:
    """A cell as text; None if it is missing; ValueError if it can be neither."""
    if isinstance(value, str):
        text = value.strip()
        # JSON can escape such halves
        if not text.isascii() and any("\ud800" <= letter <= "\udfff" for letter in text):
            raise ValueError("the text holds half a character, which is not Unicode")
        return text or None
    if value is None or is_nan(value):
        return None
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int):
        return str(value)
    if isinstance(value, float):
        if math.isinf(value):
            raise ValueError("the value is infinite")
        return str(int(value)) if value.is_integer() else repr(value)
    raise ValueError(f"the value is a {type(value).__name__}, not text or a number")


def is_nan(value: object) -> bool:
    """Whether a cell holds the number NaN."""
    return isinstance(value, float) and math.isnan(value)


def target_text(value: object, targets: Targets) -> str | None:
    """The canonical target of a cell, but for answers; ValueError for what can be none."""
    if targets is Targets.CLASSES:
        return _several(value)
    if targets is Targets.TAGS:
        return words_text(value, "tag")
    label = cell_text(value)
    if label is not None and _INTEGRAL.fullmatch(label):
        return whole(label)
    return label


def whole(label: str) -> str:
    """A whole number without its point, as tools write it out beside NaNs.

    >>> whole("1.0")
    '1'
    """
    return str(int(label.split(".", maxsplit=1)[0]))


def _several(value: object) -> str | None:
    """Labels from a list, or from a text with bars, each once and sorted.

    >>> _several("b | a"), _several(["b"]), _several([]), _several("|"), _several("")
    ('a|b', 'b', '|', '|', None)
    """
    listed = as_list(value)
    if listed is None:
        text = cell_text(value)
        if text is None:
            return None
        names = [name.strip() for name in text.split("|")]
    else:
        names = [name for item in listed if (name := target_text(item, Targets.CLASS)) is not None]
        if any("|" in name for name in names):
            raise ValueError("a label of a list holds a bar, which parts labels")
    return "|".join(sorted({name for name in names if name})) or NONE_OF_THEM


def words_text(value: object, what: str) -> str | None:
    """Words or tags joined by single spaces, from a list or from a text.

    >>> words_text(["a", "b"], "word"), words_text(" a  b", "word"), words_text([], "word")
    ('a b', 'a b', None)
    """
    listed = as_list(value)
    if listed is None:
        text = cell_text(value)
        return None if text is None else _BLANKS.sub(" ", text)
    words = [cell_text(item) or "" for item in listed]
    for word in words:
        if not word or _BLANKS.search(word):
            raise ValueError(f"a {what} of the list is empty or holds white space")
    return " ".join(words) or None


def as_list(value: object) -> list[Any] | None:
    """A cell that is a list, or whose text is one in JSON; None for any other.

    >>> as_list('["a"]'), as_list("[sic]"), as_list(("a",))
    (['a'], None, ['a'])
    """
    if isinstance(value, list | tuple):
        return list(cast("list[Any]", value))
    if isinstance(value, str) and value.lstrip()[:1] == "[" and value.rstrip()[-1:] == "]":
        try:
            found: object = json.loads(value)
        except (ValueError, RecursionError):
            return None
        return cast("list[Any]", found) if isinstance(found, list) else None
    return None


def unescaped(value: object) -> object:
    """A cell whose HTML entities are characters, in lists and tables as well.

    >>> unescaped(["a &amp; b"])
    ['a & b']
    """
    if isinstance(value, str):
        return html.unescape(value) if "&" in value else value
    if isinstance(value, list):
        return [unescaped(item) for item in cast("list[object]", value)]
    if isinstance(value, Mapping):
        return {
            key: unescaped(item) for key, item in cast("Mapping[object, object]", value).items()
        }
    return value


def holds_entities(text: str) -> bool:
    """Whether a text holds HTML entities, such as ``&amp;``.

    >>> holds_entities("AT&amp;T"), holds_entities("R&D; more")
    (True, False)
    """
    return "&" in text and _ENTITY.search(text) is not None
