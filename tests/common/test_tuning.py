"""What is given back to the system is not missed."""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from hushtune.common.rounded_weights import keep_rounded
from hushtune.common.tuning import give_back_freed_memory, page_out

linux = pytest.mark.skipif(not sys.platform.startswith("linux"), reason="Linux alone has smaps")
packs = pytest.mark.skipif(
    not torch.ops.mkldnn._is_mkldnn_bf16_supported(), reason="this CPU packs no bfloat16"
)
SIDE = 1024


def in_memory(name: str) -> int:
    """Bytes of a mapped file that are in this process's memory."""
    found, ours = 0, False
    for line in Path("/proc/self/smaps").read_text(encoding="utf-8").splitlines():
        if not line.split(" ")[0].endswith(":"):
            ours = line.endswith(name)
        elif ours and line.startswith("Rss:"):
            found += 1024 * int(line.split()[1])
    return found


@pytest.fixture
def mapped(tmp_path: Path) -> tuple[Path, torch.Tensor]:
    """A matrix of 4 MiB that lies in a file."""
    path = tmp_path / "weights.bin"
    torch.randn(SIDE, SIDE).numpy().tofile(path)
    weight = torch.from_file(str(path), shared=False, size=SIDE * SIDE).view(SIDE, SIDE)
    weight.sum()  # reads it
    return path, weight


@pytest.fixture
def gives_back(mapped: tuple[Path, torch.Tensor]) -> None:
    """Skips where the system keeps such pages whatever it is told, as of files in memory."""
    path, weight = mapped
    page_out(weight)
    if in_memory(path.name) >= SIDE**2:
        pytest.skip("this system does not page out on request")
    weight.sum()


@linux
@pytest.mark.usefixtures("gives_back")
def test_a_weight_in_a_file_leaves_memory_and_keeps_its_values(
    mapped: tuple[Path, torch.Tensor],
) -> None:
    path, weight = mapped
    before = weight.clone()
    assert in_memory(path.name) > 3 * SIDE**2
    page_out(weight)
    assert in_memory(path.name) < SIDE**2
    assert torch.equal(weight, before)


def test_values_that_were_changed_stay_changed(mapped: tuple[Path, torch.Tensor]) -> None:
    _, weight = mapped
    weight[3, 5], before = 7.0, weight.clone()
    page_out(weight)
    assert weight[3, 5] == 7.0
    assert torch.equal(weight[:3], before[:3])
    small = torch.ones(3)
    page_out(small)
    assert torch.equal(small, torch.ones(3))


@linux
@packs
@pytest.mark.usefixtures("gives_back")
def test_what_lies_packed_in_bfloat16_is_not_in_memory_twice(
    mapped: tuple[Path, torch.Tensor],
) -> None:
    path, weight = mapped
    layer = nn.Linear(SIDE, SIDE)
    layer.weight = nn.Parameter(weight, requires_grad=False)
    layer.requires_grad_(False)
    model = nn.Sequential(layer)
    inputs = torch.randn(4, SIDE)
    expected = inputs @ weight.T + layer.bias
    keep_rounded(model, but=())
    with torch.autocast("cpu", torch.bfloat16):
        found = model(inputs)
    torch.testing.assert_close(found.float(), expected, rtol=0.05, atol=0.5)
    assert in_memory(path.name) < SIDE**2
    torch.testing.assert_close(inputs @ layer.weight.T + layer.bias, expected)


def test_freed_memory_may_be_given_back_at_any_time() -> None:
    kept = torch.arange(1000)
    give_back_freed_memory()
    assert torch.equal(kept, torch.arange(1000))


_ASKED_OF_GLIBC = """
import ctypes, resource, sys, threading
from hushtune.common.tuning import keep_freed_memory

if sys.argv[1] == "kept":
    keep_freed_memory()
libc = ctypes.CDLL(None)
libc.fopen.restype = ctypes.c_void_p

def in_memory():
    with open("/proc/self/statm") as file:
        return int(file.read().split()[1]) * resource.getpagesize()

together = threading.Barrier(4)

def allocate():
    together.wait()
    for size in range(1000, 50_000, 1000):
        bytearray(size)

threads = [threading.Thread(target=allocate) for _ in range(4)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
large = bytearray(64 * 2**20)
before = in_memory()
del large
stream = ctypes.c_void_p(libc.fopen(sys.argv[2].encode(), b"w"))
libc.malloc_info(0, stream)
libc.fclose(stream)
print(before - in_memory())
"""


@linux
def test_freed_memory_is_kept_by_all_threads_together(tmp_path: Path) -> None:
    if not hasattr(ctypes.CDLL(None), "malloc_info"):
        pytest.skip("glibc alone tells its arenas")
    told: dict[str, tuple[int, int]] = {}
    for how in ("kept", "as it is"):
        command = [sys.executable, "-c", _ASKED_OF_GLIBC, how, str(tmp_path / how)]
        own = {
            k: v for k, v in os.environ.items() if k not in ("MALLOC_ARENA_MAX", "GLIBC_TUNABLES")
        }
        done = subprocess.run(command, capture_output=True, check=True, text=True, env=own)
        arenas = (tmp_path / how).read_text(encoding="utf-8").count("<heap nr=")
        told[how] = arenas, int(done.stdout)
    assert told["as it is"][0] > 1
    assert told["as it is"][1] > 60 * 2**20
    assert told["kept"] == (1, pytest.approx(0, abs=2**20))
