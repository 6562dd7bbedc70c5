"""Images in folders that are called by their class, and those by their site."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from hushtune.common.errors import EmptyDataError, MissingFileError, UnsupportedDataError
from hushtune.common.tasks.image_files import SUFFIXES, canonical
from hushtune.common.tasks.rows import RawRow

_REMEDY = (
    "move it away; where folders are sites leave data.partition out, where they are classes set it "
    "and data.sites"
)


def read_image_folder(folder: Path, *, sites: bool) -> Iterator[RawRow]:
    """Rows of ``SITE/CLASS/FILE`` where ``sites``, else of ``CLASS/FILE``, in order of the names.

    Names that begin with a dot are passed over. Raises MissingFileError, EmptyDataError,
    UnsupportedDataError for what lies where nothing is expected, and what ``canonical`` does.
    """
    if not folder.is_dir():
        raise MissingFileError(
            "there is no such folder of images",
            file=folder,
            expected=_layout(sites=sites),
            remedy="check the path",
        )
    count = 0
    for place in _folders(folder, sites=sites) if sites else [folder]:
        for named in _folders(place, sites=sites):
            for path in _visible(named):
                if path.is_dir() or path.suffix.lower() not in SUFFIXES:
                    raise UnsupportedDataError(
                        "a folder of images holds something else",
                        file=path,
                        expected=f"{_layout(sites=sites)}, with FILE one of "
                        + ", ".join(sorted(SUFFIXES)),
                        remedy=_REMEDY,
                    )
                count += 1
                text = canonical(path, file=str(path))
                yield RawRow(text, named.name, place.name if sites else None, str(path))
    if not count:
        raise EmptyDataError(
            "the folder holds no images",
            file=folder,
            expected=_layout(sites=sites),
            remedy="put each image into a folder that is called as its class",
        )


def _folders(folder: Path, *, sites: bool) -> list[Path]:
    found = _visible(folder)
    for path in found:
        if not path.is_dir():
            raise UnsupportedDataError(
                "a file lies where only folders are expected",
                file=path,
                expected=_layout(sites=sites),
                remedy=_REMEDY,
            )
    return found


def _visible(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if not path.name.startswith("."))


def _layout(*, sites: bool) -> str:
    return "SITE/CLASS/FILE" if sites else "CLASS/FILE"
