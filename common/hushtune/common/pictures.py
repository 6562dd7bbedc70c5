"""What every picture needs: names that are drawn as they are, and files that are whole."""

from __future__ import annotations

from collections import Counter
from collections.abc import Generator, Iterable
from contextlib import contextmanager
from functools import cache
from io import BytesIO
from pathlib import Path

from matplotlib import font_manager, rc_context
from matplotlib.figure import Figure

from hushtune.common.files import write_bytes

NUMBERED = "#: a name that no font here can draw, by its place among all names, sorted"
SQUARES = "\N{WHITE SQUARE}: a letter that no font here can draw"

_MOST_CHARACTERS = 32

# By script, in what systems come with; matplotlib cannot draw bitmap fonts such as colour emoji.
_FONTS = (
    "DejaVu Sans",
    *("Noto Sans CJK SC", "Noto Sans CJK JP", "Noto Sans CJK KR", "Source Han Sans SC"),
    *("WenQuanYi Micro Hei", "WenQuanYi Zen Hei", "Droid Sans Fallback"),
    *("PingFang SC", "Hiragino Sans", "Apple SD Gothic Neo", "Arial Unicode MS"),
    *("Microsoft YaHei", "Yu Gothic", "Malgun Gothic"),
    *("Noto Sans Arabic", "Noto Sans Hebrew", "Noto Sans Devanagari", "Noto Sans Thai"),
    *("Noto Emoji", "Segoe UI Emoji", "Segoe UI Symbol", "Symbola"),
)


@contextmanager
def fonts() -> Generator[None]:
    """Draw with each of the fonts that are here, the next where one lacks a character."""
    with rc_context({"font.family": list(_here())}):
        yield


def legible(names: Iterable[str], *, most: int = _MOST_CHARACTERS) -> dict[str, str]:
    """How to write each name in a picture that is drawn with ``fonts``.

    A name of which no font has a letter becomes its number, from 1, among all names in their order;
    where fonts lack some letters alone, these become squares. The picture should then have
    ``explain``. Long names are cut in the middle, with that number where two would become one, and
    dollar signs escaped, which matplotlib would read as mathematics.
    """
    numbers = {name: number for number, name in enumerate(sorted(names), 1)}
    cut = {name: _literal(name, most) for name in numbers}
    often = Counter(cut.values())
    return {
        name: (
            f"#{number}"
            if _is_lost(name)
            else cut[name]
            if often[cut[name]] == 1
            else f"{cut[name]} #{number}"
        )
        for name, number in numbers.items()
    }


def explain(figure: Figure, names: Iterable[str]) -> None:
    """Say the ``explanation`` below a picture, if it needs one."""
    told = explanation(names)
    if told:
        figure.supxlabel(told, fontsize=8, color="#666666")


def explanation(names: Iterable[str]) -> str:
    """What a number in place of a name is, or a square in it, where ``legible`` gives one."""
    names = list(names)
    one = len({squared(name) for name in names}) < len({*names})
    told = [NUMBERED] if one or any(map(_is_lost, names)) else []
    told += [SQUARES] if any(squared(name) != name and not _is_lost(name) for name in names) else []
    return "; ".join(told)


def squared(text: str) -> str:
    """A text with a square in place of each character that no font has."""
    return "".join(letter if _has(letter) else "\N{WHITE SQUARE}" for letter in text)


def save_picture(figure: Figure, path: Path, *, dpi: int) -> None:
    """Write a PNG, there whole or not at all."""
    picture = BytesIO()
    figure.savefig(picture, format="png", dpi=dpi)
    write_bytes(path, picture.getvalue())


def _literal(name: str, most: int) -> str:
    name = " ".join(squared(name).split())
    if len(name) > most:
        half = most // 2  # both ends: names often differ in the last characters alone
        name = f"{name[:half]}…{name[1 - half :]}"
    # A legend leaves out what begins with an underscore.
    return (" " if name.startswith("_") else "") + name.replace("$", r"\$")


def _is_lost(name: str) -> bool:
    """Whether nothing of a name would be left to read."""
    return squared(name) != name and not any(_has(c) for c in name if c.isalnum())


def _has(letter: str) -> bool:
    return letter.isspace() or ord(letter) in _characters()


@cache
def _here() -> tuple[str, ...]:
    installed = {entry.name for entry in font_manager.fontManager.ttflist}
    return tuple(name for name in _FONTS if name in installed)


@cache
def _characters() -> frozenset[int]:
    """The code points for which one of the fonts has a glyph."""
    found: set[int] = set()
    for name in _here():
        path = font_manager.findfont(name, fallback_to_default=False)
        found.update(font_manager.get_font(path).get_charmap())
    return frozenset(found)
