"""Documents with one topic each: 20 Newsgroups and Reuters-21578, as Orange's text add-on has them.

In lower case, without punctuation and numbers; both have the training and test part that is in
common use, which are joined here: each run makes its own split. Neither names sites.

Sources: Lang, NewsWeeder: Learning to Filter Netnews, ICML 1995; Lewis, Reuters-21578, 1997. Their
preparation: Cardoso-Cachopo, Improving Methods for Single-label Text Categorization, 2007.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from hushtune.common.errors import BadValueError
from hushtune.common.tasks.rows import RawRow, check_file, decoded_lines

_HEADER_ROWS = 3  # names, types and roles of the columns: Orange's tab format


def read_newsgroups(folder: Path) -> Iterator[RawRow]:
    """Posts with the newsgroup that they were sent to, of 20."""
    return _read(folder, "20newsgroups")


def read_reuters(folder: Path) -> Iterator[RawRow]:
    """News of one topic, of the eight most frequent ones (R8)."""
    return _read(folder, "reuters-r8")


def _read(folder: Path, name: str) -> Iterator[RawRow]:
    for part in ("train", "test"):
        path = folder / f"{name}-{part}.tab"
        check_file(path)
        lines = csv.reader(decoded_lines(path), delimiter="\t")
        for number, cells in enumerate(lines, start=1):
            if number <= _HEADER_ROWS or not cells:  # some lines are blank
                continue
            if len(cells) != 2:
                raise BadValueError(
                    "a line is not topic and text split by a tab", file=path, row=number
                )
            label, text = cells
            yield RawRow(" ".join(text.split()) or None, label or None, None, f"{path}:{number}")
