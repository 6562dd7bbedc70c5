"""One root seed, folded by label into independent streams.

Everything that may be repeated (splits, partitions, sampling of sites, dropout, initial factors)
draws from a stream of its own, so that one more draw in one place changes nothing elsewhere.
Privacy noise never comes from here: see ``hushtune.common.privacy.noise``.
"""

from __future__ import annotations

import hashlib
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def fold(root: int, *labels: str | int) -> int:
    """A 63-bit seed for one purpose, from the root seed and the purpose's labels (sha256).

    The same on every machine and in every process; 1 and "1" are different labels.

    >>> fold(0, "split", "north")
    5483460552173692478
    """
    text = json.dumps([root, *labels], separators=(",", ":"))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(root: int, *labels: str | int) -> torch.Generator:
    """A torch CPU generator on the folded seed."""
    import torch

    return torch.Generator().manual_seed(fold(root, *labels))


def rng(root: int, *labels: str | int) -> np.random.Generator:
    """A numpy generator on the folded seed."""
    import numpy as np

    return np.random.default_rng(fold(root, *labels))
