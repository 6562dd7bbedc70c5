"""Which code this is, as exactly as can be said: for statements that others check."""

from __future__ import annotations

import json
import subprocess
from functools import cache
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path


@cache
def source_commit() -> str | None:
    """The commit of a checkout, or of an install from one; None where it was a release.

    A checkout with changes of its own says so: "..., with local changes".
    """
    return _of_checkout() or _of_install()


def _of_checkout() -> str | None:
    """Only of a checkout of this project: the package may lie inside of another one's."""
    root = Path(__file__).resolve().parents[3]
    if not (root / ".git").exists():
        return None
    try:
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
    except (OSError, subprocess.SubprocessError):
        return None
    return f"{commit}, with local changes" if changed else commit


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(
        ["git", "-C", str(root), *arguments], capture_output=True, check=True, text=True, timeout=10
    )
    return done.stdout.strip()


def _of_install() -> str | None:
    try:
        told = distribution("hushtune").read_text("direct_url.json")
    except PackageNotFoundError:
        return None
    commit = json.loads(told or "{}").get("vcs_info", {}).get("commit_id")
    return commit if isinstance(commit, str) else None
