"""What every picture needs: names that are drawn as they are, and files that are whole."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path
from typing import TYPE_CHECKING

from hushtune.common.files import write_bytes

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_MOST_CHARACTERS = 32


def drawn_name(name: str) -> str:
    r"""Somebody's name for a picture: short, and nothing in it read as mathematics or as hidden.

    >>> drawn_name("a $5 shop"), drawn_name("n" * 300)
    ('a \\$5 shop', 'nnnnnnnnnnnnnnnnnnnnnnnnnnnnnnn…')
    """
    line = " ".join(name.split())
    if len(line) > _MOST_CHARACTERS:
        line = f"{line[: _MOST_CHARACTERS - 1]}…"
    if line.startswith("_"):  # matplotlib leaves such names out of legends
        line = f"\u200a{line}"
    return line.replace("$", r"\$")


def save_picture(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a PNG, there whole or not at all, and close the figure.

    Letters that the font lacks are drawn as boxes, unsaid: the figures beside them count.
    """
    from matplotlib import pyplot

    picture = BytesIO()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", r"Glyph \d+ .*missing from", UserWarning)
        figure.savefig(picture, format="png", dpi=dpi)
    pyplot.close(figure)
    write_bytes(path, picture.getvalue())
