"""Unpacking of wheels and source archives that trusts nothing inside them.

Only regular files below one named folder are written. A member whose name is absolute, climbs with
``..``, or that is a link or a device, is an error: a pinned archive has none of them, so one that
has is not the archive we know.
"""

from __future__ import annotations

import fnmatch
import shutil
import tarfile
import zipfile
from collections.abc import Generator, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO

from hushtune.common.errors import AssetError


@dataclass(frozen=True, slots=True)
class Member:
    """One file inside an archive: its name and how to open it."""

    name: str
    archive: zipfile.ZipFile | tarfile.TarFile

    def open(self) -> IO[bytes]:
        """Open the member for reading bytes."""
        if isinstance(self.archive, zipfile.ZipFile):
            return self.archive.open(self.name)
        stream = self.archive.extractfile(self.name)
        if stream is None:  # a folder; never listed as a member
            raise AssetError(f"{self.name} in the archive is not a file")
        return stream


def unpack(
    archive: Path,
    destination: Path,
    *,
    inside: Sequence[str],
    keep: Sequence[str] = ("*",),
) -> dict[str, int]:
    """Write the files of one folder of ``archive`` below ``destination``.

    Args:
        archive: a wheel or zip, or a tar with any compression.
        destination: an existing folder.
        inside: path of the wanted folder; all entries but the last name an archive inside the
            archive before it, e.g. ``("pkg-1.0/data.tar.gz", "data")``.
        keep: glob patterns over the path below the wanted folder.

    Returns:
        Path below ``destination`` (with ``/``) and size in bytes of every file written.

    Raises:
        AssetError: broken archive, unsafe member, folder not there or empty.
    """
    try:
        with archive.open("rb") as stream:
            written = _unpack_stream(stream, destination, inside=inside, keep=keep)
    except (tarfile.TarError, zipfile.BadZipFile, EOFError) as error:
        raise AssetError(f"{archive.name} is not a whole archive: {error}") from error
    if not written:
        raise AssetError(
            f"{archive.name} has no files in {' > '.join(inside)}",
            expected=f"files that match {', '.join(keep)}",
        )
    return written


def _unpack_stream(
    stream: IO[bytes], destination: Path, *, inside: Sequence[str], keep: Sequence[str]
) -> dict[str, int]:
    with _open_archive(stream) as archive:
        if len(inside) > 1:
            for member in _members(archive):
                if member.name == inside[0]:
                    with member.open() as inner:
                        return _unpack_stream(inner, destination, inside=inside[1:], keep=keep)
            return {}
        written: dict[str, int] = {}
        folder = PurePosixPath(inside[0])
        for member in _members(archive):
            path = PurePosixPath(member.name)
            if folder not in path.parents:
                continue
            relative = path.relative_to(folder)
            if not any(fnmatch.fnmatchcase(str(relative), pattern) for pattern in keep):
                continue
            target = destination.joinpath(*relative.parts)
            target.parent.mkdir(parents=True, exist_ok=True)
            with member.open() as source, target.open("wb") as sink:
                shutil.copyfileobj(source, sink, 1 << 20)
            written[str(relative)] = target.stat().st_size
        return written


@contextmanager
def _open_archive(
    stream: IO[bytes],
) -> Generator[zipfile.ZipFile | tarfile.TarFile, None, None]:
    if zipfile.is_zipfile(stream):
        with zipfile.ZipFile(stream) as archive:
            yield archive
    else:
        stream.seek(0)
        with tarfile.open(fileobj=stream, mode="r:*") as archive:
            yield archive


def _members(archive: zipfile.ZipFile | tarfile.TarFile) -> Iterator[Member]:
    """The regular files of the archive; every name is checked before it is handed out."""
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            if (info.external_attr >> 16) & 0o170000 == 0o120000:
                raise AssetError(f"{info.filename} in the archive is a link")
            _check_name(info.filename)
            if not info.is_dir():
                yield Member(info.filename, archive)
        return
    for entry in archive:
        _check_name(entry.name)
        if not (entry.isfile() or entry.isdir()):
            raise AssetError(f"{entry.name} in the archive is a link or a device")
        if entry.isfile():
            yield Member(entry.name, archive)


def _check_name(name: str) -> None:
    path = PurePosixPath(name.replace("\\", "/"))
    if path.is_absolute() or ".." in path.parts or ":" in name:
        raise AssetError(f"{name!r} in the archive points outside of its folder")
