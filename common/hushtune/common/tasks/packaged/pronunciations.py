"""Words and how they are said: the CMU Pronouncing Dictionary, American English.

Source: Carnegie Mellon University, the CMU Pronouncing Dictionary, 1993-2015. A line is a word and
its sounds in ARPAbet, split by blanks; ``#`` begins a remark.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hushtune.common.errors import BadValueError
from hushtune.common.tasks.rows import RawRow, check_file, decoded_lines


def read_pronunciations(folder: Path) -> Iterator[RawRow]:
    """Each word with its first way of being said; further ones, as in ``read(2)``, are left out."""
    path = folder / "cmudict.dict"
    check_file(path)
    for number, line in enumerate(decoded_lines(path), start=1):
        word, *sounds = line.split("#")[0].split() or [""]
        if word.endswith(")"):
            continue
        if not sounds:
            raise BadValueError("a line is not a word and its sounds", file=path, row=number)
        yield RawRow(word, " ".join(sounds), None, f"{path}:{number}")
