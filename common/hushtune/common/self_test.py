"""What a machine computes fastest: tested once, then kept in the cache (``machine.json``).

A processor's name tells nothing of that, and a busy machine may be timed otherwise from one run to
the next. So what was found is kept by what it follows from: torch's version, what the processor can
do and how many threads share the work. Delete the file to have it tested again.
"""

from __future__ import annotations

import hashlib
import json
import platform
import re
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from hushtune.common.errors import DiskFullError, RunError
from hushtune.common.files import write_text
from hushtune.common.tasks.cache import cache_folder
from hushtune.common.tuning import measured_precision

FILE = "machine.json"
_CPUINFO = Path("/proc/cpuinfo")
_PRECISIONS = ("float32", "bfloat16")


def kept_precision() -> str:
    """The precision of the frozen base's products that is fastest here without a loss of note.

    Tested where nothing is kept of this machine; a cache that cannot be read or written only means
    that it is tested again.
    """
    if torch.cuda.is_available():
        return measured_precision()
    path, machine = cache_folder() / FILE, machine_key(_cpuinfo())
    known = _read(path)
    if known.get(machine) in _PRECISIONS:
        return known[machine]
    found = measured_precision()
    with suppress(RunError, DiskFullError):
        write_text(path, json.dumps({**known, machine: found}, indent=1, sort_keys=True) + "\n")
    return found


def machine_key(cpuinfo: str) -> str:
    """What the choice follows from: torch, threads, and the flags in ``cpuinfo``, as Linux has it.

    >>> one, two = "model name: A\\nflags: avx2 amx_bf16", "model name: B\\nflags: avx2 amx_bf16"
    >>> machine_key(one) == machine_key(two) != machine_key("model name: A\\nflags: avx2")
    True
    """
    found = re.search(r"^(?:flags|Features)\s*:(.*)$", cpuinfo, re.MULTILINE)
    told = found[1].split() if found else [platform.machine()]
    basis = [torch.backends.cpu.get_cpu_capability(), *sorted(told)]
    digest = hashlib.sha256(" ".join(basis).encode()).hexdigest()[:16]
    return f"torch-{torch.__version__}-threads-{torch.get_num_threads()}-cpu-{digest}"


def _cpuinfo() -> str:
    try:
        return _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:  # not Linux
        return ""


def _read(path: Path) -> dict[str, Any]:
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}
