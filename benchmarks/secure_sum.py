"""The overhead of a secure sum: seconds a step in one process, against a plain sum of the same.

    python benchmarks/secure_sum.py [--sites 10] [--values 100000] [--steps 5]

Keys, shares, noise, masks and their removal for all sites and the server, without any training and
without ledgers. Medians; each step's two ways are timed one after the other.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Sequence

import numpy as np

from hushtune.common.privacy.discrete import discrete_gaussian
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.secagg import keys as crypto
from hushtune.common.secagg.cohort import Cohort
from hushtune.common.secagg.ring import mask, to_ring

SESSION = "benchmark"


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sites", type=int, default=10)
    parser.add_argument("--values", type=int, default=100_000)
    parser.add_argument("--steps", type=int, default=5)
    options = parser.parse_args()
    names = tuple(f"site {place:04d}" for place in range(options.sites))
    cohort = Cohort(sites=names, min_survivors=options.sites, colluding=1)
    drawn = np.random.default_rng(0)
    vectors = [drawn.normal(size=options.values) * 1e-3 for _ in names]
    secure, processor, plain = [], [], []
    for step in range(options.steps):
        began, spent = time.perf_counter(), time.process_time()
        total = secure_step(cohort, vectors, step)
        secure.append(time.perf_counter() - began)
        processor.append(time.process_time() - spent)
        began = time.perf_counter()
        expected = plain_step(cohort, vectors)
        plain.append(time.perf_counter() - began)
        assert total.size == expected.size
    print(
        f"{options.sites} sites, {options.values} values: "
        f"{statistics.median(secure):.3f} s a step ({statistics.median(processor):.3f} s of "
        f"processor), {statistics.median(secure) / statistics.median(plain):.1f} times a sum with "
        "the same noise and no masks"
    )


def plain_step(cohort: Cohort, vectors: Sequence[np.ndarray]) -> np.ndarray:
    """Rounded vectors with their noise, added up."""
    total = np.zeros(vectors[0].size, np.uint64)
    std = cohort.share_std(1.0, total.size)
    for values in vectors:
        total += to_ring(values, clip_norm=1.0)
        total += discrete_gaussian(NoiseSource(), total.size, std=std).view(np.uint64)
    return total


def secure_step(cohort: Cohort, vectors: Sequence[np.ndarray], step: int) -> np.ndarray:
    """The same, masked, with a session of its own for this one step: its keys are not shared out
    over several steps."""
    names, holders = cohort.sites, list(cohort.sites)
    pair = {name: os.urandom(16) for name in names}
    own = {name: os.urandom(16) for name in names}
    private = {n: crypto.private_key(pair[n], "pair", SESSION, step) for n in names}
    sealing = {n: crypto.private_key(os.urandom(16), "seal", SESSION) for n in names}
    public = {n: crypto.public_bytes(private[n]) for n in names}
    seal = {n: crypto.public_bytes(sealing[n]) for n in names}
    threshold = cohort.share_threshold
    shares: dict[str, dict[str, bytes]] = {}
    for name in names:
        split = crypto.split(own[name], threshold=threshold, holders=holders)
        hidden = crypto.split(pair[name], threshold=threshold, holders=holders)
        shares[name] = split
        for other in names:
            if other != name:
                text = split[other] + hidden[other]
                sealed = crypto.seal(text, sealing[name], seal[other], SESSION, name, other)
                crypto.unseal(sealed, sealing[other], seal[name], SESSION, name, other)
    size = vectors[0].size
    std = cohort.share_std(1.0, size)
    total = np.zeros(size, np.uint64)
    for name, values in zip(names, vectors, strict=True):
        masked = to_ring(values, clip_norm=1.0)
        masked += discrete_gaussian(NoiseSource(), size, std=std).view(np.uint64)
        masked += mask(crypto.own_seed(own[name], SESSION, step), size)
        for other in names:
            if other != name:
                seed = crypto.pair_seed(private[name], public[other], name, other, SESSION, step)
                masked = masked + mask(seed, size) if name < other else masked - mask(seed, size)
        total += masked
    for name in names:
        seed = crypto.combine(shares[name], threshold=threshold, holders=holders)
        total -= mask(crypto.own_seed(seed, SESSION, step), size)
    return total


if __name__ == "__main__":
    main()
