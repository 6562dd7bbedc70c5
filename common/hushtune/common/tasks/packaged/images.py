"""Handwritten digits as image files: scikit-learn's small ones, and 5,000 of MNIST.

Written once into the cache as PNG files in a folder a class, each named by its sha256: equal images
of a class are one file.

Sources: Alpaydin and Kaynak, Cascading Classifiers, Kybernetika, 1998 (UCI's Optical Recognition of
Handwritten Digits, its test set); LeCun, Bottou, Bengio and Haffner, Gradient-based learning
applied to document recognition, Proc. IEEE, 1998.
"""

from __future__ import annotations

import gzip
import hashlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hushtune.common.errors import BadValueError
from hushtune.common.tasks.cache import kept_folder
from hushtune.common.tasks.rows import RawRow, check_file

Pixels = NDArray[np.uint8]

_MNIST = "mnist_5k.csv.gz"
_SIDE = 28


def read_digits() -> Iterator[RawRow]:
    """1,797 digits of 8 by 8 pixels that come with scikit-learn: nothing is downloaded."""
    return _read(_written("digits", "1", _digits))


def read_mnist(folder: Path) -> Iterator[RawRow]:
    """5,000 digits of 28 by 28 pixels, 500 a class."""
    return _read(_written("mnist-5k", "1", lambda: _mnist(folder / _MNIST)))


def png(pixels: Pixels) -> bytes:
    """A grey image (height, width) as a PNG file: the same bytes on every machine.

    It is stored, not compressed, for compressed bytes are another with each release of zlib. See
    the PNG specification, ISO/IEC 15948.
    """
    height, width = pixels.shape
    rows = b"".join(b"\0" + row.tobytes() for row in pixels)  # 0: a row without a filter
    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)  # 8 bits, grey
    parts = ((b"IHDR", header), (b"IDAT", zlib.compress(rows, 0)), (b"IEND", b""))
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        for name, data in parts
    )


def _written(name: str, version: str, images: Any) -> Path:
    """The folder of the cache that holds the images as files."""

    def write(part: Path) -> None:
        for label, pixels in images():
            content = png(pixels)
            path = part / label / f"{hashlib.sha256(content).hexdigest()}.png"
            path.parent.mkdir(exist_ok=True)
            path.write_bytes(content)

    made_of = hashlib.sha256(f"{name} {version}".encode()).hexdigest()
    return kept_folder(Path("built", f"{name}-{version}"), name=name, sha256=made_of, make=write)


def _read(folder: Path) -> Iterator[RawRow]:
    for path in sorted(folder.glob("*/*.png")):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        yield RawRow(f"{digest}:{path}", path.parent.name, None, str(path))


def _digits() -> Iterator[tuple[str, Pixels]]:
    from sklearn.datasets import load_digits

    data: Any = load_digits()
    for pixels, label in zip(data.images, data.target, strict=True):
        yield str(label), np.round(pixels * (255 / 16)).astype(np.uint8)  # 17 shades, 0..16


def _mnist(path: Path) -> Iterator[tuple[str, Pixels]]:
    """Lines of 784 pixels, row by row, and the digit, split by commas."""
    check_file(path)
    with gzip.open(path, "rt", encoding="ascii") as lines:
        for number, line in enumerate(lines, start=1):
            cells = line.rstrip().split(",")
            if len(cells) != _SIDE * _SIDE + 1:
                raise BadValueError(
                    "a line is not 784 pixels and a digit split by commas", file=path, row=number
                )
            # Some releases write whole numbers with a fraction: 0.000e+00.
            pixels = np.array([float(cell) for cell in cells[:-1]]).astype(np.uint8)
            yield str(int(float(cells[-1]))), pixels.reshape(_SIDE, _SIDE)
