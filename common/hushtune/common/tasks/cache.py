"""The cache: folders that are there complete or not at all, made once, by one process at a time.

Layout (``HUSHTUNE_CACHE``, or the user's cache folder):

    downloads/<file of the package>      put a file here by hand on a machine without an index
    assets/<name>-<version>/             unpacked from it
    built/<name>-<version>/              made from that: converted weights, images as files
    locks/<name>.lock                    held while one of them is made
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final, cast

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from hushtune.common.errors import AssetError, DiskFullError
from hushtune.common.tasks.downloads import remove_leftovers

_MANIFEST: Final = ".hushtune-asset.json"
_LOCK_SECONDS: Final = 3600.0


def cache_folder() -> Path:
    """``HUSHTUNE_CACHE`` if it is set, else the user's cache folder for hushtune."""
    given = os.environ.get("HUSHTUNE_CACHE", "").strip()
    return (Path(given).expanduser() if given else Path(user_cache_dir("hushtune"))).absolute()


def kept_folder(
    place: Path,
    *,
    name: str,
    sha256: str,
    make: Callable[[Path], None],
    about: Mapping[str, str] | None = None,
) -> Path:
    """The folder ``place`` of the cache, made by ``make`` if it is not there as it was made.

    Args:
        place: below the cache.
        name: what the lock, and messages, call it.
        sha256: of what it is made from; another one has it made anew.
        make: writes the files into an empty folder, which then is renamed: others see all of them
            or none.
        about: what else its manifest tells.

    Raises:
        AssetError: the cache cannot be written, or another process holds the lock for an hour.
        DiskFullError: no room in the cache.
    """
    cache = cache_folder()
    folder = cache / place
    if _is_complete(folder, sha256):
        return folder
    try:
        for parent in (folder.parent, cache / "locks"):
            parent.mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "locks" / f"{name}.lock", timeout=_LOCK_SECONDS):
            if not _is_complete(folder, sha256):  # another process may have made it meanwhile
                _make(folder, {"name": name, **(about or {}), "sha256": sha256}, make)
    except Timeout as error:
        raise AssetError(
            f"another process has been fetching {name} for {_LOCK_SECONDS / 60:.0f} minutes",
            remedy=f"end that process and try again (lock: {error.lock_file})",
        ) from error
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DiskFullError(
                f"no room left in the cache {cache}",
                remedy="free some space, or set HUSHTUNE_CACHE to a folder on another disk",
            ) from error
        raise AssetError(
            f"cannot write the cache {cache}: {error}",
            remedy="set HUSHTUNE_CACHE to a folder that you may write to",
        ) from error
    return folder


def _is_complete(folder: Path, sha256: str) -> bool:
    """Whether the folder was made from this and every file has its recorded size."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes = cast("dict[str, int]", manifest["sizes"])
        return manifest["sha256"] == sha256 and all(
            (folder / path).stat().st_size == size for path, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _make(folder: Path, about: Mapping[str, str], make: Callable[[Path], None]) -> None:
    """Make beside ``folder``, then rename: the folder is there complete or not at all."""
    prefix = f".part-{about['name']}-"
    remove_leftovers(folder.parent, prefix)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        make(part)
        files = sorted(path for path in part.rglob("*") if path.is_file())
        for path in files:
            path.chmod(0o644)  # some libraries write files that are their owner's alone
        sizes = {path.relative_to(part).as_posix(): path.stat().st_size for path in files}
        manifest = json.dumps({**about, "sizes": sizes}, indent=1)
        (part / _MANIFEST).write_text(manifest + "\n", encoding="utf-8")
        part.chmod(0o755)  # so does mkdtemp; a shared cache must be readable
        if folder.exists():  # incomplete: altered by hand, or of another build
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
