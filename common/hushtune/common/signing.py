"""Ed25519 signatures of JSON documents, and the files of private keys (RFC 8032).

A document is signed as canonical JSON: sorted keys, no spaces, UTF-8. Keys are 32 bytes, written in
base64; private ones lie in files that their owner alone may read.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import stat
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import (
    Ed25519PrivateKey,
    Ed25519PublicKey,
)

from hushtune.common.errors import KeyFileError, SignatureError
from hushtune.common.files import write_bytes

_KEY_BYTES = 32


def make_signing_key(path: Path) -> Ed25519PrivateKey:
    """A new private key, written to a file that is not there yet, with mode 0600."""
    if path.exists():
        raise KeyFileError(
            "a key is there already",
            given=str(path),
            expected="no file of that name",
            remedy="keep it: what was signed with it is checked by it",
        )
    key = Ed25519PrivateKey.generate()
    write_bytes(path, base64.b64encode(key.private_bytes_raw()) + b"\n", private=True)
    return key


def load_signing_key(path: Path) -> Ed25519PrivateKey:
    """A private key from its file; KeyFileError where others may read it, or it holds no key."""
    try:
        raw = base64.b64decode(read_private(path).strip(), validate=True)
        return Ed25519PrivateKey.from_private_bytes(raw)
    except (ValueError, binascii.Error) as error:
        raise KeyFileError(
            "a key file holds no key",
            given=str(path),
            expected="32 bytes in base64, as it was made",
            remedy="put the file back from a backup, or begin anew with new keys",
        ) from error


def read_private(path: Path) -> bytes:
    """A private file; KeyFileError unless it is there and its owner alone may read it."""
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
        data = path.read_bytes()
    except OSError as error:
        raise KeyFileError(
            "a key file cannot be read",
            given=f"{path}: {error.strerror or error}",
            expected="the file that `init` has made",
            remedy="put it back from a backup, or begin anew with new keys",
        ) from error
    if os.name == "posix" and mode & 0o077:
        raise KeyFileError(
            "a key file can be read by others",
            given=f"{path}, mode {mode:04o}",
            expected="mode 0600",
            remedy=f"chmod 600 {path}",
        )
    return data


def public_text(key: Ed25519PrivateKey) -> str:
    """The public key of a private one, in base64."""
    return base64.b64encode(key.public_key().public_bytes_raw()).decode("ascii")


def read_public(text: str) -> Ed25519PublicKey:
    """Inverse of ``public_text``; SignatureError for anything else."""
    try:
        return Ed25519PublicKey.from_public_bytes(base64.b64decode(text, validate=True))
    except (ValueError, binascii.Error) as error:
        raise SignatureError(
            "this is no public key", given=text[:80], expected="32 bytes in base64"
        ) from error


def sign(key: Ed25519PrivateKey, document: Mapping[str, Any]) -> str:
    """The signature of a document, in base64."""
    return base64.b64encode(key.sign(canonical(document))).decode("ascii")


def check(public: str, document: Mapping[str, Any], signature: str, *, what: str) -> None:
    """Raise SignatureError unless ``signature`` is of this document by the key ``public``.

    ``what``: the document's name in the error.
    """
    try:
        read_public(public).verify(base64.b64decode(signature, validate=True), canonical(document))
    except (ValueError, binascii.Error, InvalidSignature) as error:
        raise SignatureError(
            f"{what} is not signed by the key that it must be signed by",
            given="no signature" if not signature else "a signature that does not fit",
            expected=f"one by {public}",
            remedy="ask whoever sent it; use nothing of it until then",
        ) from error


def canonical(document: Mapping[str, Any]) -> bytes:
    """The bytes of a JSON document that are signed."""
    text = json.dumps(
        document, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    )
    return text.encode("utf-8")
