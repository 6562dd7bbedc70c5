"""Records of JSON: an object a line, or one list of objects, read a piece at a time."""

from __future__ import annotations

import json
from collections.abc import Collection, Iterator
from itertools import chain
from pathlib import Path
from typing import Final, NoReturn, cast

from hushtune.common.errors import BadValueError, EmptyDataError
from hushtune.common.tasks.lines import LONGEST_LINE, decoded_lines, decoded_pieces
from hushtune.common.tasks.records import Cells, Records

_BLANKS: Final = " \t\r\n"
_NEAR: Final = 32
"""A fault this close to the end of what was read may be that more is to come."""


def json_line_records(path: Path, wanted: Collection[str]) -> Records:
    """An object a line; blank lines are none. Raises EmptyDataError, and BadValueError for a line
    that is no object."""
    return _records(path, _line_objects(path, wanted))


def json_records(path: Path, wanted: Collection[str]) -> Records:
    """One list of objects, which count from 1; or, as some tools name them, JSON lines.

    Raises what ``json_line_records`` does, and BadValueError for one object that is no line.
    """
    head = next((piece.lstrip() for piece in decoded_pieces(path) if piece.strip()), "")
    if head.startswith("["):
        return _records(path, _listed_objects(path))
    try:
        first = next((line for line in decoded_lines(path) if line.strip()), "{}")
        json.loads(first)
    except (ValueError, RecursionError):
        raise BadValueError(
            "the file is not a list of JSON objects",
            file=path,
            row=1,
            expected='[{"text": "..."}, {"text": "..."}], or an object on each line',
            remedy="write the list alone, without an object around it",
        ) from None
    return json_line_records(path, wanted)


def _records(path: Path, objects: Iterator[tuple[int, Cells]]) -> Records:
    first = next(objects, None)
    if first is None:
        raise EmptyDataError("the file has no rows", file=path, remedy="name a file with rows")
    return Records(str(path), tuple(first[1]), lambda _: chain([first], objects))


def _line_objects(path: Path, wanted: Collection[str]) -> Iterator[tuple[int, Cells]]:
    for number, line in enumerate(decoded_lines(path), start=1):
        if not line.strip():
            continue
        try:
            value: object = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise BadValueError(
                f"the line is not JSON: {error}",
                file=path,
                row=number,
                given=line.strip()[:80],
                remedy="a file that is one list of objects ends with .json"
                if number == 1 and line.lstrip().startswith("[")
                else None,
            ) from None
        if not isinstance(value, dict):
            raise BadValueError(
                "the line is not a JSON object",
                file=path,
                row=number,
                given=line.strip()[:80],
                expected="{" + ", ".join(f'"{name}": "..."' for name in list(wanted)[:2]) + "}",
                remedy="a file that is one list of objects ends with .json"
                if isinstance(value, list)
                else None,
            )
        yield number, cast("Cells", value)


def _listed_objects(path: Path) -> Iterator[tuple[int, Cells]]:
    """The objects of one list, with no more than a piece of it in memory.

    What begins with a brace ends with one, so an object that was cut off is never taken for whole.
    """
    decoder, pieces = json.JSONDecoder(), decoded_pieces(path)
    text, place = _skip("", 0, pieces, _BLANKS)
    place += 1  # the bracket
    number = 0
    while True:
        text, place = _skip(text, place, pieces, _BLANKS)
        if place == len(text):
            _broken(path, number, "the list does not end")
        if text[place] == "]":
            break
        if number:
            if text[place] != ",":
                _broken(path, number, "no comma follows an object")
            text, place = _skip(text, place + 1, pieces, _BLANKS)
        number += 1
        if text[place : place + 1] != "{":
            _broken(path, number, "an item of the list is not an object")
        value, text, place = _object(path, decoder, text, place, pieces, number)
        yield number, value
    if text[place + 1 :].strip() or any(piece.strip() for piece in pieces):
        _broken(path, number, "something follows the list")


def _object(
    path: Path,
    decoder: json.JSONDecoder,
    text: str,
    place: int,
    pieces: Iterator[str],
    number: int,
) -> tuple[Cells, str, int]:
    """An object, the text that is left and where it goes on; reads on until the object is whole."""
    while True:
        try:
            value, end = decoder.raw_decode(text, place)
        except RecursionError:
            _broken(path, number, "it is nested too deeply")
        except json.JSONDecodeError as error:
            known = len(text) - error.pos > _NEAR and not error.msg.startswith("Unterminated")
            if known or len(text) - place > LONGEST_LINE:
                _broken(path, number, error.msg)
            more = _as_much_again(text, place, pieces)
            if more is None:
                _broken(path, number, error.msg)
            text, place = more, 0
        except ValueError as error:  # a whole number of thousands of digits
            _broken(path, number, str(error))
        else:
            return cast("Cells", value), text, end


def _as_much_again(text: str, place: int, pieces: Iterator[str]) -> str | None:
    """The text from a place on, at least twice as long, so that all tries take linear time."""
    rest = text[place:]
    size = 0
    more: list[str] = []
    for piece in pieces:
        more.append(piece)
        size += len(piece)
        if size >= len(rest):
            break
    return "".join([rest, *more]) if more else None


def _skip(text: str, place: int, pieces: Iterator[str], blanks: str) -> tuple[str, int]:
    while True:
        while place < len(text) and text[place] in blanks:
            place += 1
        if place < len(text):
            return text, place
        piece = next(pieces, None)
        if piece is None:
            return text, place
        text, place = piece, 0


def _broken(path: Path, number: int, why: str) -> NoReturn:
    raise BadValueError(
        f"the file is not a list of JSON objects: {why}",
        file=path,
        row=max(1, number),
        expected="objects between [ and ], parted by commas; rows count the objects from 1",
        remedy="mend the file, or write an object a line and call it .jsonl",
    )
