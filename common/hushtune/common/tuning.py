"""What makes the frozen base's arithmetic cheap on the machine at hand; results stay the same.

Clipping, sums and noise are float32 whatever is chosen here.
"""

from __future__ import annotations

import ctypes
import mmap
import sys
import time
from collections.abc import Callable
from enum import StrEnum
from functools import cache

import torch


class GradientMethod(StrEnum):
    """How each example's gradient is taken; both give the same numbers."""

    FUSED = "fused"  # by the layers' own backward pass, which then adds up nothing else
    HOOKS = "hooks"  # by Opacus, beside autograd's sums over the batch


_WORTH_IT = 2.0
_MADV_PAGEOUT = 21  # of Linux 5.4; others refuse it, which changes nothing
_M_TRIM_THRESHOLD, _M_TOP_PAD, _M_MMAP_MAX, _M_ARENA_MAX = -1, -2, -4, -8


@cache
def keep_freed_memory() -> None:
    """Let glibc keep what is freed: small steps may spend half their time in page faults. Threads
    that begin later share it, or each would keep its own."""
    mallopt = _of_glibc("mallopt")
    if mallopt is None:
        return
    options = {_M_MMAP_MAX: 0, _M_TRIM_THRESHOLD: 2**31 - 1, _M_TOP_PAD: 2**26, _M_ARENA_MAX: 1}
    for option, value in options.items():
        mallopt(option, value)


def give_back_freed_memory() -> None:
    """Hand to the system what glibc has kept of what was freed."""
    malloc_trim = _of_glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim(0)


def page_out(tensor: torch.Tensor) -> None:
    """Let the system take a tensor that is hardly needed any more out of memory, whole pages of it.

    Its values stay: weights lie in a file that is mapped into memory, and what reads them yet reads
    the file. Where there is no such file and no swap space nothing happens.
    """
    madvise = _of_glibc("madvise")
    if madvise is None or tensor.device.type != "cpu":
        return
    start = -(-tensor.data_ptr() // mmap.PAGESIZE) * mmap.PAGESIZE
    size = tensor.data_ptr() + tensor.nbytes - start
    madvise(ctypes.c_void_p(start), ctypes.c_size_t(max(0, size)), _MADV_PAGEOUT)


def _of_glibc(name: str) -> Callable[..., int] | None:
    """A function of the GNU C library; None on another system or with another C library."""
    if not sys.platform.startswith("linux"):
        return None
    try:
        return getattr(ctypes.CDLL("libc.so.6"), name)
    except (OSError, AttributeError):
        return None


def measured_precision() -> str:
    """``bfloat16`` where this CPU multiplies it at twice the speed of float32, else ``float32``."""
    if torch.cuda.is_available():
        return "float32"
    left, right = torch.randn(2048, 384), torch.randn(384, 1536)
    plain = _seconds(left, right)
    short = _seconds(left.bfloat16(), right.bfloat16())
    return "bfloat16" if plain > _WORTH_IT * short else "float32"


def _seconds(left: torch.Tensor, right: torch.Tensor) -> float:
    times: list[float] = []
    for _ in range(7):
        began = time.process_time()  # what others do on the machine says nothing of it
        torch.matmul(left, right)
        times.append(time.process_time() - began)
    return min(times)
