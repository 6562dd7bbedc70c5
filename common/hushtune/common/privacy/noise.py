"""Gaussian noise from the operating system's entropy, which no seed can reproduce.

ChaCha20 (RFC 8439) -> float64 uniforms -> Box-Muller and the sum in float64 -> a grid -> float32.
Ten million values take 1.4 to 1.5 times as long as `torch.randn`
(docs/decisions/0008-noise-source.md).

Claimed:

- The keystream cannot be told from uniform bits without the key, and every block of a draw has
  its own 256-bit key from `os.urandom`: no state exists that a fork, thread, copy, checkpoint or
  restart could repeat.
- The density is that of a Gaussian to float64's accuracy, cut off at 8.57 standard deviations (mass
  beyond: 1e-17 a value).
- `noised` adds in float64 and gives multiples of a grid that depends on `std` alone, so bits below
  about 2^-20 standard deviations are not released at all.

Not claimed:

- That the released floats have the accountant's epsilon exactly. It is proved for real numbers. Of
  floating-point noise Mironov (CCS 2012) and Haney et al. (2112.05307) show that which numbers two
  neighbouring sums can reach, and how often, differs, and that low-order bits tell the sums apart.
  The grid withholds those bits. It is no proof: rounding afterwards does not repair noise that was
  not drawn on a grid, as the chances of the grid's points still differ from a Gaussian's by
  float64's errors, which nobody has bounded here over all coordinates and steps. That needs noise
  that is sampled exactly on a grid, such as the discrete Gaussian (Canonne et al. 2004.00010).
- That the running time is constant.
"""

import hashlib
import math
import os
import threading
from collections.abc import Iterator
from typing import NoReturn, final

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms

from hushtune.common.errors import PrivacyError

_PAIRS_AT_A_TIME = 1 << 15  # what is worked on stays in a core's cache
_GRID_BITS = 20  # fine enough to add nothing to the error, coarse against float64's noise
INSECURE = "INSECURE"
"""How the description of a source begins whose noise can be reproduced."""
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
                "Box-Muller in float64, noised sums on a public grid, released as float32"
            )
        return f"{INSECURE}: reproducible from seed {self._seed}; gives no privacy"

    def noised(self, total: torch.Tensor, *, std: float) -> torch.Tensor:
        """`total` plus independent N(0, std^2) draws: a CPU float32 tensor of its shape.

        Added in float64 and rounded to a multiple of the power of two in (2^-21, 2^-20] std, which
        no data can move. Raises PrivacyError unless 1e-30 <= std <= 1e37: silently adding no noise,
        or infinite noise, is worse than stopping.
        """
        exact = total.detach().cpu().numpy().reshape(-1)
        grid = _grid(std)
        values = np.empty(exact.size, dtype=np.float32)
        for part, sums in self._blocks(values.size, std):
            np.add(sums, exact[part], out=sums)
            np.divide(sums, grid, out=sums)
            np.rint(sums, out=sums)
            np.multiply(sums, grid, out=values[part], casting="same_kind")
        return torch.from_numpy(values).reshape(total.shape)

    def words(self, size: int) -> np.ndarray:
        """Independent uniform 64-bit words, uint64."""
        words = np.empty(size, np.uint64)
        _fill_keystream(words, self._next_key(), np.zeros(size, np.uint64))
        return words

    def _blocks(self, size: int, std: float) -> Iterator[tuple[slice, np.ndarray]]:
        """Float64 draws for the places 0 to `size`, in memory that the next block is drawn into."""
        if not _LEAST_STD <= std <= _MOST_STD:
            raise PrivacyError(
                "the noise has no usable scale",
                given=f"std = {std}",
                expected=f"{_LEAST_STD:g} to {_MOST_STD:g}",
                remedy="check noise_multiplier and clip_norm of the plan",
            )
        # Memory is taken once a draw: fresh pages for each block would cost more than the numbers.
        most = min(size + size % 2, 2 * _PAIRS_AT_A_TIME)
        words, normals, spare = np.empty(most, np.uint64), np.empty(most), np.empty(most // 2)
        zeros = np.zeros(most, np.uint64)
        for start in range(0, size, 2 * _PAIRS_AT_A_TIME):
            count = min(size - start, most)
            pairs = (count + 1) // 2
            _fill_keystream(words[: 2 * pairs], self._next_key(), zeros[: 2 * pairs])
            _box_muller(words[: 2 * pairs], std, out=normals[: 2 * pairs], spare=spare[:pairs])
            yield slice(start, start + count), normals[:count]

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


def on_grid(values: torch.Tensor, *, std: float) -> torch.Tensor:
    """Float64 `values` on the grid of `NoiseSource.noised`, as float32: of a sum whose noise was
    drawn apart, no bits are released that noise of that `std` does not cover."""
    grid = _grid(std)
    return values.double().div(grid).round_().mul_(grid).float()


def _grid(std: float) -> float:
    """The power of two in (2^-21, 2^-20] std."""
    return 2.0 ** (math.frexp(std)[1] - 1 - _GRID_BITS)


def _fill_keystream(words: np.ndarray, key: bytes, zeros: np.ndarray) -> None:
    """Fill uint64 `words` with the ChaCha20 keystream of `key`, from its first block on."""
    # Counter and nonce may be 0 as no key is used twice.
    encryptor = Cipher(algorithms.ChaCha20(key, bytes(16)), mode=None).encryptor()
    encryptor.update_into(zeros.data.cast("B"), words.data.cast("B"))


def _box_muller(words: np.ndarray, std: float, *, out: np.ndarray, spare: np.ndarray) -> None:
    """Fill float64 `out` with N(0, std^2) from as many uniform uint64 `words`, which are used up.

    Box and Muller, Annals of Mathematical Statistics 29 (1958), with cosine and sine of the angle
    by the tangent t of its half: (1 - t^2) / (1 + t^2) and 2 t / (1 + t^2). A word becomes a
    uniform in (0, 1]: 0 is left out as its logarithm is infinite. `spare`: half as many places.
    """
    # In numpy and in place: numpy has a fast tangent and no threads of its own, whereas torch's
    # hang after a fork and wait for one another on a busy machine.
    words >>= np.uint64(11)
    np.multiply(words.view(np.int64), 2.0**-53, out=out)
    out += 2.0**-53
    radius, tangent = np.split(out, 2)
    np.log(radius, out=radius)
    radius *= -2.0
    np.sqrt(radius, out=radius)
    radius *= std
    tangent *= np.pi
    np.tan(tangent, out=tangent)
    square = np.multiply(tangent, tangent, out=spare)
    square += 1.0
    radius /= square  # std r / (1 + t^2)
    tangent *= 2.0
    tangent *= radius
    np.subtract(2.0, square, out=square)  # 1 - t^2
    radius *= square
