"""Gaussian noise from the operating system's entropy, which no seed can reproduce.

ChaCha20 (RFC 8439) keystream -> float64 uniforms -> Box-Muller -> scaled in float64 -> float32.

Claimed: the keystream cannot be told from uniform bits without the key; every draw has its own
256-bit key from `os.urandom`, so no state exists that a fork, thread, copy, checkpoint or restart
could repeat; the density is that of a Gaussian cut off at 8.57 standard deviations (mass beyond:
1e-17), on a grid much finer than float32 everywhere that a draw of practical size can reach.

Not claimed: safety against an attacker who reads the low bits of the released floats. Mironov (CCS
2012) and Haney et al. (2112.05307) show that the sets of floating-point numbers reachable from two
neighbouring sums differ slightly, which the accountant's real-number analysis does not cover. Nor
is the running time constant.
"""

import hashlib
import math
import os
import threading
from collections.abc import Sequence
from typing import NoReturn, final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from hushtune.common.errors import PrivacyError

_PAIRS_AT_A_TIME = 1 << 19  # 8 MiB of keystream: bounds memory, and lies far below ChaCha20's limit
_LEAST_STD, _MOST_STD = 1e-30, 1e37  # outside, float32 would flush noise to 0 or overflow


@final
class NoiseSource:
    """Draws independent Gaussian noise. `NoiseSource()` is secure; `insecure(seed)` is for tests.

    Use `secure` and `description` to say in a report where a run's noise came from.
    """

    __slots__ = ("_counter", "_lock", "_seed")

    def __init__(self) -> None:
        self._seed: int | None = None
        self._counter = 0
        self._lock = threading.Lock()

    @classmethod
    def insecure(cls, seed: int) -> "NoiseSource":
        """A reproducible source. Whoever knows the seed can subtract the noise: no privacy."""
        source = cls()
        source._seed = int(seed)
        return source

    @property
    def secure(self) -> bool:
        """Whether the noise is unpredictable."""
        return self._seed is None

    @property
    def description(self) -> str:
        """One line for the privacy statement."""
        if self._seed is None:
            return (
                "ChaCha20 keystream, a fresh 256-bit key from the operating system for each draw; "
                "Box-Muller in float64, released as float32"
            )
        return f"INSECURE: reproducible from seed {self._seed}; gives no privacy"

    def gaussian(self, shape: Sequence[int], *, std: float) -> torch.Tensor:
        """Independent N(0, std^2) draws: a CPU float32 tensor of `shape`.

        Raises PrivacyError unless 1e-30 <= std <= 1e37: silently adding no noise, or infinite
        noise, is worse than stopping.
        """
        if not _LEAST_STD <= std <= _MOST_STD:
            raise PrivacyError(
                "the noise has no usable scale",
                given=f"std = {std}",
                expected=f"{_LEAST_STD:g} to {_MOST_STD:g}",
                remedy="check noise_multiplier and clip_norm of the plan",
            )
        size = math.prod(shape)
        values = np.empty(size, dtype=np.float32)
        for start in range(0, size, 2 * _PAIRS_AT_A_TIME):
            stop = min(size, start + 2 * _PAIRS_AT_A_TIME)
            pairs = (stop - start + 1) // 2
            normals = _box_muller(_keystream(self._next_key(), 2 * pairs))
            values[start:stop] = std * normals[: stop - start]
        return torch.from_numpy(values).reshape(tuple(shape))

    def _next_key(self) -> bytes:
        if self._seed is None:
            return os.urandom(32)
        with self._lock:
            self._counter += 1
            label = f"hushtune insecure noise {self._seed} {self._counter}"
        return hashlib.sha256(label.encode()).digest()

    def __reduce__(self) -> NoReturn:
        """Refuse copies and pickles: a copied seeded source would draw the same noise twice."""
        raise TypeError("a NoiseSource cannot be copied or pickled: make a new one")


def _keystream(key: bytes, count: int) -> np.ndarray:
    """`count` uint64 words of the ChaCha20 keystream of `key`, from its first block on."""
    # Counter and nonce may be 0 as no key is used twice.
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    return np.frombuffer(encryptor.update(bytes(8 * count)), dtype="<u8")


def _box_muller(words: np.ndarray) -> np.ndarray:
    """float64 standard normals from an even number of uniform uint64 `words`, as many.

    Box and Muller, Annals of Mathematical Statistics 29 (1958). A word becomes a uniform in
    (0, 1]: 0 is left out as its logarithm is infinite.
    """
    uniforms = ((words >> np.uint64(11)).astype(np.float64) + 1.0) * 2.0**-53
    half = uniforms.size // 2
    radius = np.sqrt(-2.0 * np.log(uniforms[:half]))
    angle = 2.0 * np.pi * uniforms[half:]
    return np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
