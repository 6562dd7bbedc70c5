"""How near answers that were written are to those that the rows hold, in words.

Perplexity judges the rows' own answers token by token; these figures judge what a model writes by
itself. They are of the sampled test rows alone, so they are as coarse as these are few.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

_WORD = re.compile(r"\w+")


def words(text: str) -> list[str]:
    """The words of a text, whatever their case and punctuation."""
    return _WORD.findall(text.casefold())


def word_f1(reference: str, answer: str) -> float:
    """F1 over the words of both, each counted as often as it is there, as SQuAD has it
    (1606.05250); 1 where both have none.

    >>> word_f1("It is red.", "it is blue"), word_f1("yes", "no"), word_f1("Yes!", "yes")
    (0.6666666666666666, 0.0, 1.0)
    """
    wanted, told = Counter(words(reference)), Counter(words(answer))
    if not wanted and not told:
        return 1.0
    return 2 * (wanted & told).total() / (wanted.total() + told.total())


def written(samples: Sequence[Mapping[str, str]]) -> dict[str, Any] | None:
    """Of the untrained and of the trained model ``word_f1``, its mean over the samples, and
    ``exact_match``, the share whose words are the reference's; None without samples."""
    if not samples:
        return None
    found: dict[str, Any] = {"rows": len(samples)}
    for model in ("untrained", "trained"):
        pairs = [(sample["reference"], sample[model]) for sample in samples]
        found[model] = {
            "word_f1": fmean(word_f1(*pair) for pair in pairs),
            "exact_match": fmean(words(wanted) == words(told) for wanted, told in pairs),
        }
    return found


def written_line(found: Mapping[str, Any]) -> str:
    """The same in a sentence."""
    before, after, rows = found["untrained"], found["trained"], found["rows"]
    return (
        f"On {'this row' if rows == 1 else f'these {rows} rows'}: F1 of the words "
        f"written {before['word_f1']:.3f} untrained, {after['word_f1']:.3f} trained; word for word "
        f"{before['exact_match']:.0%} untrained, {after['exact_match']:.0%} trained."
    )
