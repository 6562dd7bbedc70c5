"""What is checked of a folder with results, and what came of it."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from hushtune.common.errors import HushtuneError
from hushtune.common.signed_files import MANIFEST, Signed, hashes_below, strange_below

_MOST_NAMED = 5


@dataclass(frozen=True)
class Check:
    """One thing that was checked: ``ok`` is None where there was nothing to check it by."""

    what: str
    ok: bool | None
    told: str


def checked(what: str, look: Callable[[], str]) -> Check:
    """Whether ``look`` raises a HushtuneError, else what it tells."""
    try:
        return Check(what, True, look())
    except HushtuneError as error:
        given = f": {error.given}" if error.given is not None else ""
        return Check(what, False, f"{error.code} {error.message}{given}")


def equal(what: str, given: object, expected: object, *, told: str) -> Check:
    """Whether two things are the same; ``told``: of what is the same."""
    if given == expected:
        return Check(what, True, told)
    return Check(what, False, f"{_short(given)} in place of {_short(expected)}")


def check_folder(folder: Path, public: str, names: Iterable[str] | None) -> list[Check]:
    """Whether a folder's manifest is signed by a key, and is of just what is there.

    ``names``: see ``signed_files.hashes_below``.
    """

    def signed() -> str:
        Signed.read(folder / MANIFEST).checked(public, kind="manifest")
        return f"signed by {public}"

    signature = checked("manifest", signed)
    if not signature.ok:
        return [signature]
    noted: Any = Signed.read(folder / MANIFEST).document.get("files")
    found = hashes_below(folder, names)
    expected = cast("dict[str, Any]", noted) if isinstance(noted, dict) else {}
    bad = [
        *(f"{name} was changed" for name, sha in expected.items() if found.get(name, sha) != sha),
        *(f"{name} is missing" for name in expected if name not in found),
        *(f"{name} was added" for name in found if name not in expected),
        *(f"{name}, which is no file, was added" for name in strange_below(folder, names)),
    ]
    if bad:
        more = "" if len(bad) <= _MOST_NAMED else f"; and {len(bad) - _MOST_NAMED} more"
        return [signature, Check("files", False, "; ".join(bad[:_MOST_NAMED]) + more)]
    return [signature, Check("files", True, f"{len(found)}, each with the sha256 that was signed")]


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
