"""Images are written once, the same bytes everywhere, and named by their sha256."""

from __future__ import annotations

import gzip
import hashlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hushtune.common.errors import BadValueError, MissingFileError
from hushtune.common.tasks.packaged.images import png, read_digits, read_mnist


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HUSHTUNE_CACHE", str(folder))
    return folder


def test_a_png_file_has_the_pixels_that_went_in(tmp_path: Path) -> None:
    image: Any = pytest.importorskip("PIL.Image")
    pixels = np.random.default_rng(0).integers(0, 256, (5, 7), dtype=np.uint8)
    (tmp_path / "x.png").write_bytes(png(pixels))
    with image.open(tmp_path / "x.png") as opened:
        assert (opened.mode, opened.size) == ("L", (7, 5))
        assert np.array_equal(np.asarray(opened), pixels)


def test_a_png_file_is_the_same_on_every_machine() -> None:
    content = png(np.arange(6, dtype=np.uint8).reshape(2, 3))
    assert content.hex() == (
        "89504e470d0a1a0a0000000d4948445200000003000000020800000000b81f39c6"
        "00000013494441547801010800f7ff0000010200030405002e00105dd9c116"
        "0000000049454e44ae426082"
    )


def lines(*rows: tuple[int, int]) -> bytes:
    """Images of one shade each, with their digit."""
    return "".join(
        ",".join([str(shade)] * 784 + [str(digit)]) + "\n" for shade, digit in rows
    ).encode()


def test_mnist_is_written_as_a_file_an_image(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(lines((0, 3), (255, 3), (9, 1))))
    rows = list(read_mnist(tmp_path))
    assert [row.label for row in rows] == ["1", "3", "3"]
    for row in rows:
        digest, path = str(row.text).split(":", 1)
        assert Path(path).is_relative_to(cache / "built")
        assert Path(path).parent.name == row.label
        assert hashlib.sha256(Path(path).read_bytes()).hexdigest() == digest == Path(path).stem
    (tmp_path / "mnist_5k.csv.gz").unlink()
    assert len(list(read_mnist(tmp_path))) == 3
    (cache / "built" / "mnist-5k-1" / "1").rename(cache / "moved")  # to be made anew
    with pytest.raises(MissingFileError):
        list(read_mnist(tmp_path))


def test_a_line_of_another_length_leaves_nothing_half(tmp_path: Path, cache: Path) -> None:
    (tmp_path / "mnist_5k.csv.gz").write_bytes(gzip.compress(lines((0, 3)) + b"1,2\n"))
    with pytest.raises(BadValueError, match="784 pixels"):
        list(read_mnist(tmp_path))
    assert not any((cache / "built").iterdir())


def test_digits_come_with_scikit_learn(cache: Path) -> None:
    rows = list(read_digits())
    assert len(rows) == 1797
    assert {row.label for row in rows} == set("0123456789")
    assert rows == list(read_digits())
    assert len(list((cache / "built" / "digits-1").glob("*/*.png"))) == 1797
