"""Images as they are met: every format and colour, and all that is wrong with a file, by name."""

from __future__ import annotations

import hashlib
import io
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hushtune.common.errors import BadValueError, DataError, MissingFileError
from hushtune.common.tasks import image_files
from hushtune.common.tasks.image_files import canonical, opened, size_of


def saved(path: Path, image: Image.Image, **how: object) -> Path:
    image.save(path, **how)  # pyright: ignore[reportArgumentType]
    return path


def pixel(path: Path, at: tuple[int, int] = (0, 0)) -> tuple[int, int, int]:
    found = opened(canonical(path, file=str(path)))
    assert found.mode == "RGB"
    return found.getpixel(at)  # pyright: ignore[reportReturnType]


def test_an_image_is_named_by_its_bytes_and_its_absolute_path(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "a.png", Image.new("RGB", (5, 3), (1, 2, 3)))
    monkeypatch.chdir(tmp_path)
    digest = hashlib.sha256(path.read_bytes()).hexdigest()
    assert canonical(Path("a.png"), file="a.png") == f"{digest}:{path}"
    assert size_of(f"{digest}:{path}") == (5, 3)


@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "gif", "webp", "tiff"])
def test_every_format_is_read(suffix: str, tmp_path: Path) -> None:
    path = saved(tmp_path / f"a.{suffix}", Image.new("RGB", (16, 16), (200, 30, 90)))
    assert np.abs(np.array(pixel(path)) - (200, 30, 90)).max() <= 4  # some formats lose a little


def test_of_several_frames_the_first_is_read(tmp_path: Path) -> None:
    first, second = Image.new("RGB", (8, 8), "red"), Image.new("RGB", (8, 8), "blue")
    for suffix in ("gif", "tiff", "webp"):
        path = tmp_path / f"a.{suffix}"
        first.save(path, save_all=True, append_images=[second])
        assert pixel(path)[0] > 200


def test_an_image_lies_as_its_exif_says(tmp_path: Path) -> None:
    image = Image.new("RGB", (6, 4), "black")
    image.putpixel((0, 0), (255, 255, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter: the first row is the right side
    path = saved(tmp_path / "a.png", image, exif=exif)
    assert size_of(canonical(path, file="a")) == (4, 6)
    assert pixel(path, (3, 0)) == (255, 255, 255)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 77, (77, 77, 77)),
        ("1", 1, (255, 255, 255)),
        ("LA", (10, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 0), (255, 255, 255)),
        ("RGBA", (10, 20, 30, 255), (10, 20, 30)),
        ("I;16", 256 * 99 + 200, (99, 99, 99)),
    ],
)
def test_colours_become_rgb_on_white(
    mode: str, colour: object, expected: tuple[int, int, int], tmp_path: Path
) -> None:
    path = saved(tmp_path / "a.png", Image.new(mode, (4, 4), colour))  # pyright: ignore
    assert pixel(path) == expected


def test_cmyk_and_a_transparent_palette_become_rgb(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.jpg", Image.new("CMYK", (16, 16), (0, 255, 255, 0)), quality=95)
    red, green, blue = pixel(path)
    assert red > 200
    assert max(green, blue) < 60
    gif = Image.new("P", (4, 4), 0)
    gif.putpalette([9, 9, 9, 200, 0, 0])
    assert pixel(saved(tmp_path / "b.gif", gif, transparency=0)) == (255, 255, 255)


def chunk(name: bytes, data: bytes) -> bytes:
    return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))


def bomb(width: int, height: int) -> bytes:
    """A few bytes that claim to be an image of this size."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", b"") + chunk(b"IEND", b"")


def png(image: Image.Image, kind: str = "PNG") -> bytes:
    content = io.BytesIO()
    image.save(content, kind)
    return content.getvalue()


NOISY = png(Image.fromarray(np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)))


@pytest.mark.parametrize(
    ("content", "what"),
    [
        (b"", "empty"),
        (b"no image at all", "no image"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "no image"),
        (NOISY[: len(NOISY) // 2], "damaged or cut off"),
        (NOISY[:-200], "damaged or cut off"),
        (NOISY[:60] + b"\0" * 50 + NOISY[110:], "damaged or cut off"),
        (bomb(0, 0), "no image|damaged"),
        (bomb(60_000, 60_000), "larger than is read"),
        (bomb(9_000, 9_000), "larger than is read"),
        (png(Image.new("I", (4, 4), 7_000_000), "TIFF"), "32 bits"),
        (png(Image.new("F", (4, 4), 0.5), "TIFF"), "32 bits"),
        (png(Image.new("RGB", (1, 300))), "strip"),
    ],
)
def test_what_is_wrong_is_told_with_file_and_row(content: bytes, what: str, tmp_path: Path) -> None:
    path = tmp_path / "bad.png"
    path.write_bytes(content)
    with pytest.raises(BadValueError, match=f"(?s)({what}).*table.csv.*row 7.*bad.png") as caught:
        canonical(path, file="table.csv", row=7)
    assert caught.value.remedy


def test_a_truncated_jpeg_is_not_read_half_grey(tmp_path: Path) -> None:
    whole = tmp_path / "a.jpg"
    Image.open(io.BytesIO(NOISY)).save(whole)
    cut = tmp_path / "b.jpg"
    cut.write_bytes(whole.read_bytes()[:-400])
    with pytest.raises(BadValueError, match="cut off"):
        canonical(cut, file="b")


def test_a_missing_file_a_folder_and_a_huge_file_are_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for path in (tmp_path, tmp_path / "none.png", tmp_path / "zero\0byte.png"):
        with pytest.raises((MissingFileError, BadValueError), match=r"(?s)t\.csv.*row 2"):
            canonical(path, file="t.csv", row=2)
    path = saved(tmp_path / "a.png", Image.new("L", (5, 5)))
    monkeypatch.setattr(image_files, "MOST_BYTES", 10)
    with pytest.raises(BadValueError, match="larger than is read"):
        canonical(path, file="t.csv", row=2)


def test_a_file_that_changes_during_a_run_is_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "a.png", Image.new("L", (5, 5)))
    text = canonical(path, file="a")
    saved(path, Image.new("L", (5, 5), 9))
    with pytest.raises(DataError, match="changed after it was read"):
        opened(text)
