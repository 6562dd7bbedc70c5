"""Keys of a secure sum: agreement, sealed shares, and the seeds of masks.

X25519 (RFC 7748), HKDF-SHA256 (RFC 5869), ChaCha20-Poly1305 (RFC 8439) and Shamir's secret sharing
over GF(2^128). Every derived key names its session, its step and who it is between.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

from Crypto.Protocol.SecretSharing import Shamir
from cryptography.exceptions import InvalidTag
from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey, X25519PublicKey
from cryptography.hazmat.primitives.ciphers.aead import ChaCha20Poly1305
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from hushtune.common.errors import MessageError

SEED_BYTES = 16
KEY_BYTES = 32
_NONCE = bytes(12)  # each key seals one text


def derive(secret: bytes, *labels: str | int) -> bytes:
    """32 bytes from a secret, for the purpose that the labels name; no two lists are alike."""
    parts = [str(label).encode() for label in labels]
    info = b"hushtune secure sum" + b"".join(len(p).to_bytes(4, "big") + p for p in parts)
    return HKDF(algorithm=SHA256(), length=KEY_BYTES, salt=None, info=info).derive(secret)


def private_key(seed: bytes, *labels: str | int) -> X25519PrivateKey:
    """The private key of a seed."""
    return X25519PrivateKey.from_private_bytes(derive(seed, "private key", *labels))


def public_bytes(key: X25519PrivateKey) -> bytes:
    """The public half of a key, 32 bytes."""
    return key.public_key().public_bytes_raw()


def agreed(mine: X25519PrivateKey, theirs: bytes) -> bytes:
    """The secret that two keys share; MessageError for a public key that is none."""
    try:
        return mine.exchange(X25519PublicKey.from_public_bytes(theirs))
    except ValueError as error:
        raise MessageError(
            "a public key of a secure sum cannot be used", given=theirs.hex()[:80]
        ) from error


def pair_seed(
    mine: X25519PrivateKey, theirs: bytes, one: str, other: str, *labels: str | int
) -> bytes:
    """The seed of the mask that two sites share; the same whichever of the two derives it."""
    first, second = sorted((one, other))
    return derive(agreed(mine, theirs), "pair", first, second, *labels)


def own_seed(seed: bytes, *labels: str | int) -> bytes:
    """The seed of a site's mask of its own."""
    return derive(seed, "own", *labels)


def commitment(seed: bytes, *labels: str | int) -> bytes:
    """What a site publishes of its own seed: it binds, and tells nothing of 128 random bits."""
    return hashlib.sha256(derive(seed, "commitment", *labels)).digest()


def seal(text: bytes, mine: X25519PrivateKey, theirs: bytes, *labels: str | int) -> bytes:
    """Encrypt for whoever holds the other key; ``labels`` name the session, sender and receiver."""
    key = derive(agreed(mine, theirs), "seal", *labels)
    return ChaCha20Poly1305(key).encrypt(_NONCE, text, None)


def unseal(sealed: bytes, mine: X25519PrivateKey, theirs: bytes, *labels: str | int) -> bytes:
    """Inverse of ``seal``; MessageError for what was altered or is for somebody else."""
    key = derive(agreed(mine, theirs), "seal", *labels)
    try:
        return ChaCha20Poly1305(key).decrypt(_NONCE, sealed, None)
    except InvalidTag as error:
        raise MessageError(
            "a sealed share of a secure sum was altered, or is for somebody else"
        ) from error


def split(seed: bytes, *, threshold: int, holders: Sequence[str]) -> dict[str, bytes]:
    """A 16-byte seed in as many shares as there are holders, any ``threshold`` of which open it."""
    shares = Shamir.split(threshold, len(holders), seed, ssss=False)
    return {name: share for name, (_, share) in zip(holders, shares, strict=True)}


def combine(shares: Mapping[str, bytes], *, threshold: int, holders: Sequence[str]) -> bytes:
    """The seed of ``threshold`` of its shares, by holder; wrong shares give a wrong seed."""
    places = {name: place for place, name in enumerate(holders, start=1)}
    chosen = [(places[name], shares[name]) for name in sorted(shares)[:threshold]]
    return bytes(Shamir.combine(chosen, ssss=False))
