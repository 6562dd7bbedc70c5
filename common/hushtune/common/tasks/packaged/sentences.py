"""Rated sentences: polarity, scores and pairs, from four sites.

Source: Hutto and Gilbert, VADER: A Parsimonious Rule-based Model for Sentiment Analysis of Social
Media Text, ICWSM 2014: each sentence has the mean score of its raters, in -4..4.
"""

from __future__ import annotations

import hashlib
import html
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.errors import BadValueError
from hushtune.common.tasks.rows import RawRow, check_file, decoded_lines

CLEAR: Final = 0.5  # scores, or two scores' difference, from here on count as a choice

FILES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "amazon": "amazonReviewSnippets_GroundTruth.txt",
        "movie": "movieReviewSnippets_GroundTruth.txt",
        "nyt": "nytEditorialSnippets_GroundTruth.txt",
        "tweets": "tweets_GroundTruth.txt",
    }
)


@dataclass(frozen=True, slots=True)
class Rated:
    """One sentence with its mean score in -4..4."""

    site: str
    text: str
    score: float
    place: str


def read_rated(folder: Path) -> Iterator[Rated]:
    """All sentences: lines of id, score and text, split by tabs; a file a site.

    HTML entities of the crawled texts are unescaped, twice, for sixteen rows were escaped twice.
    Raises MissingFileError and BadValueError (with file and row).
    """
    for site, name in FILES.items():
        path = folder / name
        check_file(path)
        for number, line in enumerate(decoded_lines(path), start=1):
            parts = line.rstrip("\r\n").split("\t", 2)
            try:
                _, cell, text = parts
                score = float(cell)
            except ValueError:
                raise BadValueError(
                    "a line is not id, score and text split by tabs", file=path, row=number
                ) from None
            clean = " ".join(html.unescape(html.unescape(text)).split())
            yield Rated(site, clean, score, f"{path}:{number}")


def read_polarity(folder: Path) -> Iterator[RawRow]:
    """Sentences of at least 0.5 as "positive", of at most -0.5 as "negative".

    Rows between, neither, are no part of the task and left out.
    """
    for row in read_rated(folder):
        if abs(row.score) >= CLEAR:
            label = "positive" if row.score > 0 else "negative"
            yield RawRow(row.text or None, label, row.site, row.place)


def read_scores(folder: Path) -> Iterator[RawRow]:
    """Every sentence with its score, neutral ones as well."""
    for row in read_rated(folder):
        yield RawRow(row.text or None, repr(row.score), row.site, row.place)


def read_preferences(folder: Path) -> Iterator[RawRow]:
    """Pairs: which sentence is rated as more positive, the "first" or the "second".

    Pairs whose scores differ by less than 0.5 are left out.
    """
    for first, second in _pairs(folder):
        if abs(first.score - second.score) >= CLEAR:
            label = "first" if first.score > second.score else "second"
            yield _pair_row(first, second, label)


def read_differences(folder: Path) -> Iterator[RawRow]:
    """Pairs with the score of the first less that of the second, in -8..8."""
    for first, second in _pairs(folder):
        yield _pair_row(first, second, repr(round(first.score - second.score, 6)))


def _pairs(folder: Path) -> Iterator[tuple[Rated, Rated]]:
    """Two different sentences of one site, each sentence in one pair only.

    Who meets whom follows from the texts' sha256 alone: it is the same for all, and has nothing to
    do with the scores or with the order of the files.
    """
    for _, rows in groupby(read_rated(folder), key=lambda row: row.site):
        first_of = {row.text: row for row in reversed(list(rows)) if row.text}
        order = sorted(first_of, key=lambda text: hashlib.sha256(text.encode()).digest())
        for one, two in zip(order[::2], order[1::2], strict=False):  # an odd one out has no pair
            yield first_of[one], first_of[two]


def _pair_row(first: Rated, second: Rated, label: str) -> RawRow:
    text = json.dumps([first.text, second.text], ensure_ascii=False)
    return RawRow(text, label, first.site, first.place)
