"""That all sites of a secure sum were told the same: who takes part, and whose sums arrived.

The consistency check of Bonawitz et al. (CCS 2017, section 6.2) and Bell et al. (CCS 2020): each
site signs (Ed25519, RFC 8032) what it was told, the server passes the signatures on, and a site
goes on only where ``min_survivors`` (m) sites of n have signed the very same. Any two sets of m
sites have ``2 m - n > t`` in common, so one at least that is honest, and signs one list alone: all
honest sites that go on have the same list. It is asked for twice:

- before the first masked sum, *who has shared* its secrets, under which keys. So all honest sites
  put on masks for the same others, and none can be left with masks that its own few share;
- before each opening, *whose sums arrived*. So no site gives out a share that unmasks a survivor
  for one list and a share that unmasks it as dropped for another.

Where all sites must stay (m = n) neither is asked for: one list of each kind alone has n sites, and
no site goes on with fewer.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey

from hushtune.common.secagg.keys import derive

if TYPE_CHECKING:
    from hushtune.common.secagg.wire import SiteKeys

SIGNATURE_BYTES = 64


def signing_key(seed: bytes, *labels: str | int) -> Ed25519PrivateKey:
    """The private key with which a site signs what it was told in one session."""
    return Ed25519PrivateKey.from_private_bytes(derive(seed, "signing key", *labels))


def keys_digest(keys: Mapping[str, SiteKeys]) -> str:
    """Of all that the sites of a session have published, by name."""
    return hashlib.sha256(
        _text(
            "keys",
            [
                [
                    name,
                    own.seal.hex(),
                    own.sign.hex(),
                    [key.hex() for key in own.pair],
                    [value.hex() for value in own.own],
                ]
                for name, own in sorted(keys.items())
            ],
        )
    ).hexdigest()


def shared_text(session: str, keys: str, sharing: Sequence[str]) -> bytes:
    """What a site signs of who has shared secrets, under the keys of a digest."""
    return _text("who has shared", session, keys, list(sharing))


def arrived_text(
    session: str, keys: str, sharing: Sequence[str], *, step: int, survivors: Sequence[str]
) -> bytes:
    """What a site signs of whose sums of a step arrived, of those who have shared."""
    return _text("whose sums arrived", session, keys, list(sharing), step, list(survivors))


def agreeing(
    signatures: Mapping[str, bytes], text: bytes, *, keys: Mapping[str, bytes]
) -> tuple[str, ...]:
    """The sites, of those whose public key is known, that have signed a text; sorted."""
    return tuple(
        name
        for name in sorted(signatures)
        if name in keys and _is_signed(signatures[name], text, keys[name])
    )


def _is_signed(signature: bytes, text: bytes, key: bytes) -> bool:
    try:
        Ed25519PublicKey.from_public_bytes(key).verify(signature, text)
    except (InvalidSignature, ValueError):
        return False
    return True


def _text(*parts: object) -> bytes:
    """The same bytes for the same parts alone."""
    return json.dumps(["hushtune secure sum", *parts], separators=(",", ":")).encode()
