"""The lines of a text file, decoded: UTF-8, or UTF-16 where it begins with its mark; plain or gzip.

A wrong guess of an encoding changes texts and labels silently, so nothing is guessed. A file whose
lines end with a carriage return alone, as old spreadsheets write them, is told by its beginning.
"""

from __future__ import annotations

import codecs
import gzip
import re
import zlib
from collections.abc import Generator, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import IO, Final, cast

from hushtune.common.errors import BadValueError, DataError, EncodingError, UnsupportedDataError

_PIECE: Final = 1 << 16
LONGEST_LINE: Final = 1 << 26
"""Bytes of a line, or letters of a record: beyond it something else than a line was met."""
_LINE_END: Final = re.compile(r"\r\n|\r|\n")
_UTF16: Final = (codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)


@contextmanager
def opened(path: Path) -> Generator[IO[bytes]]:
    """The bytes of a file, unpacked if its name ends with .gz; UnsupportedDataError for what is
    no gzip, or cut off."""
    if path.suffix.lower() != ".gz":
        with path.open("rb") as stream:
            yield stream
        return
    try:
        with gzip.open(path, "rb") as unpacked:
            yield cast("IO[bytes]", unpacked)
    except (EOFError, gzip.BadGzipFile, zlib.error) as error:
        raise UnsupportedDataError(
            "the file cannot be unpacked",
            file=path,
            given=str(error),
            expected="gzip, as its name says",
            remedy="write it anew, or take .gz off its name if it is not packed",
        ) from error


def decoded_lines(path: Path) -> Iterator[str]:
    """The lines of a text file with their line ends, without a byte order mark.

    Raises:
        EncodingError: names the row and, of UTF-8, the byte (both from 1) of the first bad one.
        BadValueError: a line of more than ``LONGEST_LINE`` bytes.
        UnsupportedDataError: see ``opened``.
    """
    with opened(path) as stream:
        head = stream.read(_PIECE)
        stream.seek(0)
        codec, mark = _codec(head[:3])
        stream.seek(mark)
        if codec != "utf-8":
            yield from _utf16_lines(stream, codec, path)
            return
        only_returns = b"\r" in head[:-1] and b"\n" not in head
        raws = _parted(stream, path) if only_returns else _byte_lines(stream)
        for number, raw in enumerate(raws, start=1):
            if len(raw) >= LONGEST_LINE:
                raise _too_long(path, number)
            if b"\x00" in raw:
                what = f"a zero byte at byte {raw.index(0) + 1} of the row"
                raise _encoding_error(path, number, what, "UTF-16")
            try:
                yield raw.decode("utf-8")
            except UnicodeDecodeError as error:
                what = f"byte 0x{raw[error.start]:02x} at byte {error.start + 1} of the row"
                raise _encoding_error(path, number, what, "WINDOWS-1252") from None


def decoded_pieces(path: Path) -> Iterator[str]:
    """The text of a file in pieces of any length, for what has no lines; raises as
    ``decoded_lines`` does, but for long lines."""
    with opened(path) as stream:
        head = stream.read(3)
        codec, mark = _codec(head)
        stream.seek(mark)
        rows, done = 1, mark
        for text, _, wrong in _decoded(stream, codec):
            if wrong is None and "\x00" not in text:
                yield text
                rows, done = rows + text.count("\n"), done + len(text.encode(codec))
                continue
            good = text.partition("\x00")[0]
            row = rows + good.count("\n")
            place = f"byte {done + len(good.encode(codec)) + 1} of the file"
            raise _encoding_error(path, row, f"{wrong or 'a zero byte'} at {place}", "WINDOWS-1252")


def _codec(head: bytes) -> tuple[str, int]:
    """The codec of a file by its first three bytes, and how many of them are its mark."""
    if head[:2] in _UTF16:
        return ("utf-16-le" if head[:2] == codecs.BOM_UTF16_LE else "utf-16-be"), 2
    return "utf-8", 3 if head == codecs.BOM_UTF8 else 0


def _byte_lines(stream: IO[bytes]) -> Iterator[bytes]:
    return iter(partial(stream.readline, LONGEST_LINE), b"")


def _parted(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """The lines of a file whose lines end with a carriage return."""
    rest, number = b"", 1
    for piece in iter(partial(stream.read, _PIECE), b""):
        *lines, rest = (rest + piece).split(b"\r")
        for line in lines:
            yield line + b"\r"
        number += len(lines)
        if len(rest) >= LONGEST_LINE:
            raise _too_long(path, number)
    if rest:
        yield rest


def _utf16_lines(stream: IO[bytes], codec: str, path: Path) -> Iterator[str]:
    rest, number = "", 0
    for text, last, wrong in _decoded(stream, codec):
        *lines, rest = _parts(rest + text, last=last)
        for line in lines:
            number += 1
            if "\x00" in line:
                raise _encoding_error(path, number, "a zero character", "UTF-32")
            yield line
        if wrong is not None:
            raise EncodingError(
                "the file is not UTF-16 throughout, which its first bytes say it is",
                file=path,
                row=number + 1,
                given=wrong,
                remedy="write it again as UTF-8, and look at this row",
            )
        if len(rest) >= LONGEST_LINE:
            raise _too_long(path, number + 1)
    if rest:
        yield rest


def _decoded(stream: IO[bytes], codec: str) -> Iterator[tuple[str, bool, str | None]]:
    """Pieces of text, whether each is the last one, and what is wrong after it."""
    decoder = codecs.getincrementaldecoder(codec)()
    raw = b"more"
    while raw:
        raw = stream.read(_PIECE)
        try:
            yield decoder.decode(raw, final=not raw), not raw, None
        except UnicodeDecodeError as error:
            yield error.object[: error.start].decode(codec), True, error.reason
            return


def _parts(text: str, *, last: bool) -> list[str]:
    """Lines with their ends, and what follows the last one; ``last``: no more is to come."""
    parts: list[str] = []
    start = 0
    for end in _LINE_END.finditer(text):
        if end.end() == len(text) and end.group() == "\r" and not last:
            break  # perhaps a line feed comes next
        parts.append(text[start : end.end()])
        start = end.end()
    return [*parts, text[start:]]


def _too_long(path: Path, row: int) -> DataError:
    return BadValueError(
        f"a line is longer than {LONGEST_LINE >> 20} MiB",
        file=path,
        row=row,
        remedy="see whether this is a text file with a record a line; one list of JSON objects "
        "is read from a file that ends with .json",
    )


def _encoding_error(path: Path, row: int, what: str, guess: str) -> DataError:
    return EncodingError(
        "the file is not UTF-8 throughout",
        file=path,
        row=row,
        given=what,
        remedy=f"find out its encoding and convert it, e.g. "
        f"iconv -f {guess} -t UTF-8 {path.name} > utf8-{path.name}; if only some rows differ, "
        "mend those rows",
    )
