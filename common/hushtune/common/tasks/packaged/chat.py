"""Questions with answers, and short conversations: the English part of the ChatterBot Corpus.

YAML files, one a topic, each a list of conversations. In most files the two sides take turns; in
``emotion`` and ``computers`` what follows the first line are different answers to it.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Final

import yaml

from hushtune.common.errors import BadValueError, MissingFileError
from hushtune.common.tasks.rows import RawRow

SITES: Final = (
    *("ai", "coding", "conversations", "emotion", "literature", "psychology", "trivia"),
)
"""Topics that are large enough for a site; those of all others are one, `OTHER`."""

OTHER: Final = "other"
_ONE_QUESTION: Final = frozenset(("emotion", "computers"))


def read_chat(folder: Path) -> Iterator[RawRow]:
    """Every answer, given all that was said before it; equal ones of a site once.

    One topic repeats ten questions a thousand times: a test row that was trained on would tell
    nothing.
    """
    for site, place, said in _answers(folder):
        turns = [
            {"role": "assistant" if turn % 2 else "user", "content": text}
            for turn, text in enumerate(said[:-1])
        ]
        yield RawRow(json.dumps(turns, ensure_ascii=False), said[-1], site, place)


def read_replies(folder: Path) -> Iterator[RawRow]:
    """First lines with the first reply to each, as source and target texts."""
    for site, place, said in _answers(folder):
        if len(said) == 2:
            yield RawRow(said[0], said[1], site, place)


def _answers(folder: Path) -> Iterator[tuple[str, str, Sequence[str]]]:
    """Site, place, and what was said up to and with an answer, from either side in turn."""
    files = sorted(folder.glob("*.yml"))
    if not files:
        raise MissingFileError("there is no conversation file", file=folder / "ai.yml")
    seen: set[tuple[str, ...]] = set()
    for path in files:
        site = path.stem if path.stem in SITES else OTHER
        for number, lines in enumerate(_conversations(path), start=1):
            for said in _split(lines, one_question=path.stem in _ONE_QUESTION):
                if (key := (site, *said)) not in seen:
                    seen.add(key)
                    yield site, f"{path}:{number}", said


def _split(lines: Sequence[str], *, one_question: bool) -> Iterator[Sequence[str]]:
    if one_question:
        yield from ((lines[0], answer) for answer in lines[1:])
    else:
        yield from (lines[:end] for end in range(2, len(lines) + 1, 2))


def _conversations(path: Path) -> Iterator[list[str]]:
    """The conversations of a file; those that are not lists of lines (one is not) are left out."""
    try:
        tree: Any = yaml.safe_load(path.read_text(encoding="utf-8"))
        found = tree["conversations"]
    except (yaml.YAMLError, KeyError, TypeError, UnicodeDecodeError) as error:
        raise BadValueError(f"the file has no list of conversations: {error}", file=path) from None
    for lines in found:
        if isinstance(lines, list) and len(lines) > 1:
            yield [str(line).strip() for line in lines]
