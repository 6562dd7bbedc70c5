"""Image files as they are met: checked whole, named by their bytes, turned into RGB.

The canonical form of an image is ``"sha256:absolute path"``: two copies of a file are one image,
wherever they lie. A file is read once into memory, so that what is hashed is what is decoded.
"""

from __future__ import annotations

import hashlib
import importlib
import io
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from hushtune.common.errors import (
    BadValueError,
    DataError,
    HushtuneError,
    MissingFileError,
    UnsupportedDataError,
)

if TYPE_CHECKING:
    from PIL.Image import Image

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "WEBP", "TIFF")
"""What is read; of several frames or pages the first."""
SUFFIXES = frozenset((".png", ".jpg", ".jpeg", ".bmp", ".gif", ".webp", ".tif", ".tiff"))
MOST_PIXELS = 2**26
"""67 megapixels, 200 MB as RGB: a small file may claim to be far larger than memory."""
MOST_BYTES = 2**28
MOST_RATIO = 100
"""Of the longer side to the shorter: what is resized by its shorter side stays bounded."""
_WHITE = (255, 255, 255, 255)
_TRANSPARENT = frozenset(("RGBA", "LA", "PA", "RGBa", "La"))


def canonical(path: Path, *, file: str, row: int | None = None) -> str:
    """``"sha256:absolute path"`` of an image that was decoded to its end.

    ``file``, ``row``: where the path stands, for errors. Raises MissingFileError, BadValueError and
    UnsupportedDataError.
    """
    path = path.absolute()
    content = _content(path, file=file, row=row)
    rgb(content, path, file=file, row=row)
    return f"{hashlib.sha256(content).hexdigest()}:{path}"


def opened(text: str) -> Image:
    """The image of a canonical string as RGB; DataError where the file is no longer the same."""
    digest, _, name = text.partition(":")
    path = Path(name)
    content = _content(path, file=name, row=None)
    if hashlib.sha256(content).hexdigest() != digest:
        raise DataError(
            "an image was changed after it was read",
            file=name,
            remedy="start again, and leave the files alone while a run goes on",
        )
    return rgb(content, path, file=name, row=None)


def size_of(text: str) -> tuple[int, int]:
    """Width and height in pixels of the image of a canonical string, as it is shown."""
    return opened(text).size


def rgb(content: bytes, path: Path, *, file: str, row: int | None) -> Image:
    """The first frame, upright as its EXIF says, in 8 bits of red, green and blue.

    What is transparent lies on white. 16 bits of grey become 8; deeper pixels have no known range
    and are refused, BadValueError.
    """
    pillow = _pillow(file)
    what: str
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", pillow.Image.DecompressionBombWarning)
            with pillow.Image.open(io.BytesIO(content), formats=FORMATS) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise pillow.Image.DecompressionBombError(f"{image.width} x {image.height}")
                warnings.simplefilter("ignore")  # of metadata that is not needed
                image.load()
                deep = image.mode in ("I", "F")
                found = image if deep else _rgb(pillow, image)
        if deep:
            what = "the image has pixels of 32 bits, whose range is not known"
            given, expected = f"mode {found.mode}", "8 or 16 bits a channel"
            raise _bad(what, path, file=file, row=row, given=given, expected=expected)
        if max(found.size) <= MOST_RATIO * min(found.size):
            return found
        what = "the image is a strip"
        given, expected = f"{found.width} x {found.height}", f"sides within 1 to {MOST_RATIO}"
    except HushtuneError:
        raise
    except pillow.UnidentifiedImageError:
        what = "the file is no image that is read"
        given, expected = "an unknown kind of file", ", ".join(FORMATS)
    except (pillow.Image.DecompressionBombError, pillow.Image.DecompressionBombWarning) as error:
        what = "the image is larger than is read"
        given, expected = str(error)[:120], f"at most {MOST_PIXELS} pixels"
    except Exception as error:  # of a damaged file the library raises whatever it stumbles over
        what = "the image is damaged or cut off"
        given, expected = f"{type(error).__name__}: {error}"[:120], "a whole file"
    raise _bad(what, path, file=file, row=row, given=given, expected=expected)


def _rgb(pillow: Any, image: Any) -> Image:
    image = pillow.ImageOps.exif_transpose(image)
    if image.mode.startswith("I;16"):
        grey = np.asarray(image).astype(np.uint16) >> 8
        return pillow.Image.fromarray(grey.astype(np.uint8)).convert("RGB")
    if image.mode in _TRANSPARENT or "transparency" in image.info:
        image = image.convert("RGBA")
        ground = pillow.Image.new("RGBA", image.size, _WHITE)
        image = pillow.Image.alpha_composite(ground, image)
    return image.convert("RGB")


def _content(path: Path, *, file: str, row: int | None) -> bytes:
    try:
        if not path.is_file():
            raise MissingFileError(
                "there is no such image",
                file=file,
                row=row,
                given=str(path),
                remedy="paths of images are taken from the folder of the table",
            )
        size = path.stat().st_size
        if not 0 < size <= MOST_BYTES:
            raise _bad(
                "the file is empty" if not size else "the file is larger than is read",
                path,
                file=file,
                row=row,
                given=f"{size} bytes",
                expected=f"1 to {MOST_BYTES} bytes",
            )
        return path.read_bytes()
    except (OSError, ValueError) as error:  # a path may hold a zero byte
        raise _bad(
            "the image cannot be read",
            path,
            file=file,
            row=row,
            given=str(error)[:120],
            expected="a file that this user may read",
        ) from error


def _bad(
    what: str, path: Path, *, file: str, row: int | None, given: str, expected: str
) -> BadValueError:
    where = "" if file == str(path) else f" {path}:"
    return BadValueError(
        what,
        file=file,
        row=row,
        given=f"{where} {given}".strip(),
        expected=expected,
        remedy="mend the file, or take it out of the data",
    )


def _pillow(file: str) -> Any:
    try:
        for name in ("PIL.Image", "PIL.ImageOps"):
            importlib.import_module(name)
        return importlib.import_module("PIL")
    except ImportError as error:
        raise UnsupportedDataError(
            "reading images needs Pillow, which is not installed",
            file=file,
            remedy="pip install 'hushtune[vision]'",
        ) from error
