"""Words with their parts of speech: the Brown Corpus, 500 texts in 15 genres.

Source: Francis and Kucera, A Standard Corpus of Present-Day Edited American English, for use with
Digital Computers, Brown University, 1964, revised 1971 and 1979.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.errors import BadValueError, MissingFileError
from hushtune.common.tasks.packaged.brown_tags import universal
from hushtune.common.tasks.rows import RawRow, decoded_lines

GENRES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "a": "news",
        "b": "editorial",
        "c": "reviews",
        "d": "religion",
        "e": "hobbies",
        "f": "lore",
        "g": "belles-lettres",
        "h": "government",
        "j": "learned",
        "k": "fiction",
        "l": "mystery",
        "m": "science-fiction",
        "n": "adventure",
        "p": "romance",
        "r": "humor",
    }
)
"""Site by the letter in the name of a text: the corpus' own fifteen genres."""


def read_brown(folder: Path) -> Iterator[RawRow]:
    """Sentences, one a line of ``word/tag`` split by blanks; the group is the text it is from."""
    texts = sorted(folder.glob("c[a-r][0-9][0-9]"))
    if not texts:
        raise MissingFileError("there is no text of the Brown Corpus", file=folder / "ca01")
    for path in texts:
        site = GENRES[path.name[1]]
        for number, line in enumerate(decoded_lines(path), start=1):
            if not line.strip():
                continue
            words: list[str] = []
            tags: list[str] = []
            for pair in line.split():
                word, _, tag = pair.rpartition("/")
                try:
                    tags.append(universal(tag))
                except KeyError:
                    raise BadValueError(
                        "a word has no tag that is known", file=path, row=number, given=pair
                    ) from None
                words.append(word)
            yield RawRow(" ".join(words), " ".join(tags), site, f"{path}:{number}", path.name)
