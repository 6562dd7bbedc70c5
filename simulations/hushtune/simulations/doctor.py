"""What is installed, which accelerator there is, what is missing and how to mend it."""

from __future__ import annotations

import os
import platform
import shutil
from typing import Any

from hushtune.common.packages import CORE, installed
from hushtune.common.tasks.assets import cache_folder

EXTRAS = {
    "matplotlib": ("matplotlib", "curve.png"),
    "pyarrow": ("pyarrow", "Parquet files"),
    "datasets": ("datasets", "the datasets library"),
    "ray": ("'flwr[simulation]'", "Flower's own simulation"),
    "sentence-transformers": (
        "sentence-transformers",
        "loading a merged export; not needed to write one",
    ),
    "onnx": ("onnx", "export --format onnx and int8"),
    "onnxruntime": ("onnxruntime", "export --format onnx and int8"),
    "onnxscript": ("onnxscript", "export --format onnx and int8"),
}


def examine() -> dict[str, Any]:
    """Checks with ``what, found, ok, optional, mend``; ``ok`` if nothing that is needed lacks."""
    checks = [_python(), *map(_package, CORE), _accelerator(), _cores(), _cache()]
    checks += [_extra(name) for name in EXTRAS]
    return {"ok": all(check["ok"] or check["optional"] for check in checks), "checks": checks}


def _check(what: str, found: str, ok: bool, mend: str = "", *, optional: bool = False) -> Any:
    return {
        "what": what,
        "found": found,
        "ok": ok,
        "optional": optional,
        "mend": "" if ok else mend,
    }


def _python() -> Any:
    found = platform.python_version()
    ok = (3, 11) <= tuple(map(int, found.split(".")[:2])) <= (3, 13)
    return _check("Python", found, ok, "install Python 3.11, 3.12 or 3.13 and run make setup")


def _package(name: str, *, use: str = "", package: str = "", optional: bool = False) -> Any:
    """Whether a package is there, in a version that this hushtune is made for."""
    there = installed(name)
    package = package or (f"'{name}{there.allowed}'" if there.allowed else name)
    found = there.words if there.ok else f"{there.words}{use}"
    return _check(name, found, there.ok, f"pip install {package}", optional=optional)


def _extra(name: str) -> Any:
    package, use = EXTRAS[name]
    return _package(name, use=f" ({use})", package=package, optional=True)


def _accelerator() -> Any:
    try:
        import torch
    except ImportError:
        return _check("accelerator", "unknown without torch", False, "install torch", optional=True)

    if torch.cuda.is_available():
        return _check("accelerator", torch.cuda.get_device_name(0), True)
    mend = "rm -rf .venv && make setup TORCH_INDEX=<index with CUDA wheels>"
    has_gpu = shutil.which("nvidia-smi") is not None
    found = "a GPU that this build of torch cannot use" if has_gpu else "none: the CPU is used"
    return _check("accelerator", found, not has_gpu, mend, optional=True)


def _cores() -> Any:
    return _check("CPU cores", str(os.cpu_count()), True)


def _cache() -> Any:
    folder = cache_folder()
    there = [path.name for path in sorted((folder / "assets").glob("*-*"))]
    free = shutil.disk_usage(folder if folder.exists() else folder.anchor).free / 2**30
    found = f"{folder}: {', '.join(there) or 'empty'}; {free:.0f} GiB free"
    return _check("assets", found, free > 1, "free some disk space, or set HUSHTUNE_CACHE")
