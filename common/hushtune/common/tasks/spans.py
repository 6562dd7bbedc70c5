"""Spans of words that tags mark: names of persons, say, as B-PER I-PER.

Read as conlleval does, the script of CoNLL-2000 (Tjong Kim Sang and Buchholz), and seqeval after
it: B and S begin a span, E and S (L and U) end one, I goes on with one of its own type and begins
one where there is none. A span is right if its first and last word and its type are.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

_MARKED = re.compile(r"[BIESLU]-.+")
_OUTSIDE, _BEGINS, _ENDS = "O", "BSU", "ESLU"

Span = tuple[str, int, int]
"""Its type, its first word, and the one after its last."""


def mark_spans(names: Sequence[str]) -> bool:
    """Whether these tags mark spans: all do, but O, and some begin one.

    >>> mark_spans(["B-PER", "I-PER", "O"]), mark_spans(["NOUN", "O"]), mark_spans(["I-am", "B"])
    (True, False, False)
    """
    marked = [name for name in names if name != _OUTSIDE]
    return all(_MARKED.fullmatch(name) for name in marked) and any(
        name[0] in _BEGINS for name in marked
    )


def spans(tags: Sequence[str]) -> set[Span]:
    """The spans of one text.

    >>> sorted(spans(["B-PER", "I-PER", "O", "I-LOC", "B-LOC"]))
    [('LOC', 3, 4), ('LOC', 4, 5), ('PER', 0, 2)]
    """
    found: set[Span] = set()
    begun: int | None = None
    of = ""
    for place, tag in enumerate([*tags, _OUTSIDE]):
        mark, _, kind = tag.partition("-")
        if begun is not None and (mark == _OUTSIDE or mark in _BEGINS or kind != of):
            found.add((of, begun, place))
            begun = None
        if mark != _OUTSIDE and begun is None:
            begun, of = place, kind
        if begun is not None and mark in _ENDS:
            found.add((of, begun, place + 1))
            begun = None
    return found
