"""Signed JSON documents in files, and a folder's manifest: the sha256 of all that is in it."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from hushtune.common.errors import SignatureError
from hushtune.common.files import write_text
from hushtune.common.json_text import json_text
from hushtune.common.signing import check, sign

MANIFEST = "manifest.json"
KIND = "hushtune"
"""The key of a document that says what it is, so that none can be taken for another."""


@dataclass(frozen=True)
class Signed:
    """A document and its signature; nothing says yet by whom it is."""

    document: Mapping[str, Any]
    signature: str

    @classmethod
    def by(cls, key: Ed25519PrivateKey, document: Mapping[str, Any]) -> Signed:
        """Sign a document; numbers in it that are not finite become null."""
        plain = json.loads(json_text(document))
        return cls(plain, sign(key, plain))

    @classmethod
    def from_dict(cls, raw: object, *, what: str) -> Signed:
        """Inverse of ``to_dict``; SignatureError for anything else."""
        if isinstance(raw, dict):
            body = cast("dict[str, Any]", raw)
            document, signature = body.get("document"), body.get("signature")
            if isinstance(document, dict) and isinstance(signature, str):
                return cls(cast("dict[str, Any]", document), signature)
        raise SignatureError(
            f"{what} is no signed document",
            given=type(raw).__name__,
            expected="an object with a document and its signature",
        )

    @classmethod
    def read(cls, path: Path) -> Signed:
        """A file of ``write``; SignatureError for anything else, or none."""
        try:
            raw: object = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError, RecursionError) as error:
            raise SignatureError(
                "a signed document cannot be read",
                given=f"{path.name}: {str(error)[:200]}",
                expected="the file as it was written",
            ) from error
        return cls.from_dict(raw, what=path.name)

    def to_dict(self) -> dict[str, Any]:
        """JSON-ready form."""
        return {"document": dict(self.document), "signature": self.signature}

    def write(self, path: Path) -> None:
        """Replace a file atomically."""
        write_text(path, json_text(self.to_dict(), indent=2) + "\n")

    def checked(self, public: str, *, kind: str) -> Mapping[str, Any]:
        """The document; SignatureError unless it is of this kind and signed by this key."""
        if self.document.get(KIND) != kind:
            raise SignatureError(
                "a signed document is of another kind",
                given=str(self.document.get(KIND))[:80],
                expected=kind,
            )
        try:
            check(public, self.document, self.signature, what=f"the {kind}")
        except (TypeError, UnicodeError, RecursionError) as error:
            raise SignatureError(
                f"the {kind} cannot be checked", given=str(error)[:200], expected="plain JSON"
            ) from error
        return self.document


def sha256_of(path: Path) -> str:
    """Of a file's bytes, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def hashes_below(folder: Path, names: Iterable[str] | None = None) -> dict[str, str]:
    """The sha256 of files by their place in a folder, sorted, without its own manifest.

    ``names``: files and folders that count, as far as they are there; None for all. A link is
    followed nowhere: it has no place in such a folder (``strange_below``).
    """
    return {
        path.relative_to(folder).as_posix(): sha256_of(path)
        for path in _below(folder, names)
        if path.is_file() and not path.is_symlink() and path != folder / MANIFEST
    }


def strange_below(folder: Path, names: Iterable[str] | None = None) -> list[str]:
    """What is in a folder and is neither a file nor a folder, such as a link, sorted."""
    return [
        path.relative_to(folder).as_posix()
        for path in _below(folder, names)
        if path.is_symlink() or (path.exists() and not (path.is_file() or path.is_dir()))
    ]


def _below(folder: Path, names: Iterable[str] | None) -> list[Path]:
    roots = [folder] if names is None else [folder / name for name in names]
    found: list[Path] = []
    for root in roots:
        found += root.rglob("*") if root.is_dir() and not root.is_symlink() else [root]
    return sorted(set(found))


def write_manifest(
    folder: Path, key: Ed25519PrivateKey, told: Mapping[str, Any], names: Iterable[str] | None
) -> None:
    """Sign what is in a folder; ``told`` says whose it is. See ``hashes_below`` for ``names``."""
    files = hashes_below(folder, names)
    document = {KIND: "manifest", **told, "files": files}
    Signed.by(key, document).write(folder / MANIFEST)
