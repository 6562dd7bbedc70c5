"""Texts that are nearly equal, found by min-hashing (Broder, On the resemblance and containment of
documents, SEQUENCES 1997), in time that grows with the number of texts alone."""

from __future__ import annotations

import re
import zlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

ALIKE = 0.8
"""Share of the three-word sequences of two texts that both have, from which on they are nearly
equal."""
MOST_ROWS = 20_000
_WORDS, _BANDS, _ROWS_OF_BAND, _BUCKET = 3, 8, 4, 8
_WORD = re.compile(r"\w+")
_MIX = np.random.default_rng(0).integers(
    1, 2**63, size=(2, _BANDS * _ROWS_OF_BAND), dtype=np.uint64
)


def near_pairs(texts: Sequence[str]) -> Iterator[tuple[int, int]]:
    """Pairs of texts of which at least ``ALIKE`` is common: a later one, and one before it.

    Two at ``ALIKE`` are found with probability 0.98, more alike ones nearly always; each is
    compared with at most ``_BUCKET`` others in each of ``_BANDS`` buckets.
    """
    buckets: dict[tuple[int, bytes], list[int]] = {}
    shingled: list[frozenset[int]] = []
    for place, text in enumerate(texts):
        own = shingles(text)
        shingled.append(own)
        if not own:
            continue
        tried: set[int] = set()
        for band, key in enumerate(_keys(own)):
            bucket = buckets.setdefault((band, key), [])
            tried.update(bucket)
            if len(bucket) < _BUCKET:
                bucket.append(place)
        for other in sorted(tried):
            if resemblance(own, shingled[other]) >= ALIKE:
                yield place, other


def shingles(text: str) -> frozenset[int]:
    """Hashes of all sequences of three words, whatever their case and punctuation; of a shorter
    text, of all of it."""
    words = _WORD.findall(text.casefold())
    count = max(1, len(words) - _WORDS + 1) if words else 0
    parts = (" ".join(words[i : i + _WORDS]) for i in range(count))
    return frozenset(zlib.crc32(part.encode()) for part in parts)


def resemblance(first: frozenset[int], second: frozenset[int]) -> float:
    """Common elements over all of two sets (Jaccard).

    >>> resemblance(frozenset({1, 2, 3}), frozenset({2, 3, 4}))
    0.5
    """
    both = len(first & second)
    return both / (len(first) + len(second) - both)


def _keys(own: frozenset[int]) -> Iterator[bytes]:
    hashes = np.fromiter(own, dtype=np.uint64, count=len(own))[:, None]
    mixed: NDArray[np.uint64] = (hashes * (_MIX[0] | np.uint64(1)) + _MIX[1]) >> np.uint64(32)
    least = mixed.min(axis=0).astype(np.uint32)
    for band in range(_BANDS):
        yield least[band * _ROWS_OF_BAND : (band + 1) * _ROWS_OF_BAND].tobytes()


def sampled(count: int, most: int) -> list[int]:
    """At most so many places, evenly spread.

    >>> sampled(3, 5), sampled(10, 5)
    ([0, 1, 2], [0, 2, 4, 6, 8])
    """
    return list(range(count)) if count <= most else [i * count // most for i in range(most)]
