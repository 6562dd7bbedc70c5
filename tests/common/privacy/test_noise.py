"""Noise: the right law at the right scale, and unpredictable whatever seed was set."""

# pyright: reportPrivateUsage=false

import copy
import math
import os
import pickle
import random
import threading

import numpy as np
import pytest
import torch
from scipy import stats

from hushtune.common.errors import PrivacyError
from hushtune.common.privacy import noise
from hushtune.common.privacy.noise import NoiseSource


def draw(count: int, *, std: float = 1.0, source: NoiseSource | None = None) -> np.ndarray:
    return (source or NoiseSource()).gaussian((count,), std=std).double().numpy()


# The statistical tests use a reproducible stream of the very code that the secure source runs, so
# that they cannot fail by chance; the secure source's own entropy is tested by other means.
@pytest.mark.parametrize("std", [1.0, 1.725e-3, 40.0])
def test_the_scale_is_right_and_wrong_ones_are_seen(std: float) -> None:
    values = draw(100_000, std=std, source=NoiseSource.insecure(1))

    def p_value(scale: float) -> float:
        return float(stats.kstest(values, stats.norm(scale=scale).cdf).pvalue)

    assert p_value(std) > 1e-3
    assert p_value(std * 2 / 3) < 1e-9
    assert p_value(std * 3 / 2) < 1e-9
    assert p_value(std * 1.05) < 1e-6


def test_the_secure_source_has_the_same_law() -> None:
    values = draw(100_000, std=2.0)
    assert stats.kstest(values, stats.norm(scale=2.0).cdf).pvalue > 1e-7
    assert stats.kstest(values, stats.norm(scale=3.0).cdf).pvalue < 1e-9


def test_draws_are_independent_of_one_another() -> None:
    values = draw(200_000, source=NoiseSource.insecure(2))
    bound = 5 / math.sqrt(values.size)
    # The second half of a block comes from the same radii as the first: that lag is tested too.
    for lag in (1, 2, 3, 7, 64, 1000, values.size // 2):
        one, other = values[:-lag], values[lag:]
        limit = max(bound, 5 / math.sqrt(one.size))
        assert abs(np.corrcoef(one, other)[0, 1]) < limit, lag
        assert abs(np.corrcoef(one**2, other**2)[0, 1]) < limit, lag


def test_successive_and_simultaneous_draws_differ() -> None:
    source = NoiseSource()
    assert np.unique([draw(8, source=source) for _ in range(4)]).size == 32
    drawn: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: drawn.append(draw(8, source=source))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert np.unique(drawn).size == 16


def test_blocks_of_one_draw_have_keys_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_PAIRS_AT_A_TIME", 4)
    values = draw(801)
    assert np.unique(values).size == 801


def test_no_seed_reproduces_it() -> None:
    def after_seeding() -> np.ndarray:
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        return draw(64)

    one, other = after_seeding(), after_seeding()
    assert np.intersect1d(one, other).size == 0


def test_it_leaves_the_seeded_generators_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    draw(64)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_a_fork_draws_other_noise() -> None:
    source = NoiseSource()
    draw(8, source=source)
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        # numpy only: torch's thread pool does not survive a fork, and nothing may raise here.
        try:
            os.write(sending, noise._box_muller(noise._keystream(source._next_key(), 64)).tobytes())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        theirs = np.frombuffer(pipe.read())
    os.waitpid(child, 0)
    ours = noise._box_muller(noise._keystream(source._next_key(), 64))
    assert theirs.size == ours.size == 64
    assert np.intersect1d(ours, theirs).size == 0


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0, 3), (5, 7), (3, 1, 11)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    drawn = NoiseSource().gaussian(shape, std=1.0)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float32
    assert drawn.device.type == "cpu"
    assert bool((drawn != 0).all())
    drawn.add_(1)  # owns its memory, and may be written to


def test_odd_sizes_over_a_block_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_PAIRS_AT_A_TIME", 4)
    for size in range(7, 27):
        assert np.count_nonzero(draw(size)) == size


def test_the_keystream_is_chacha20() -> None:
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter 0.
    first = noise._keystream(bytes(32), 8).tobytes().hex()
    assert first.startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")


def test_extreme_words_are_finite() -> None:
    least, most = np.uint64(0), np.uint64(2**64 - 1)
    words = np.array([least, least, most, most, least, most, least, most], dtype=np.uint64)
    normals = noise._box_muller(words)
    assert np.isfinite(normals).all()
    assert np.abs(normals).max() == pytest.approx(math.sqrt(2 * 53 * math.log(2)))


def test_the_tails_are_there() -> None:
    values = np.abs(draw(1_000_000, source=NoiseSource.insecure(3)))
    assert 4.5 < values.max() < 6.2
    beyond = [np.count_nonzero(values > limit) / values.size for limit in (1, 2, 3, 4)]
    expected = [2 * stats.norm.sf(limit) for limit in (1, 2, 3, 4)]
    for seen, chance in zip(beyond, expected, strict=True):
        assert abs(seen - chance) < 5 * math.sqrt(chance / values.size)


@pytest.mark.parametrize("std", [0.0, -1.0, math.nan, math.inf, 1e-40, 1e38])
def test_a_scale_that_would_be_no_noise_is_refused(std: float) -> None:
    with pytest.raises(PrivacyError, match="scale"):
        NoiseSource().gaussian((3,), std=std)


def test_insecure_is_reproducible_and_says_so() -> None:
    one, other = NoiseSource.insecure(5), NoiseSource.insecure(5)
    for _ in range(2):
        assert np.array_equal(draw(9, source=one), draw(9, source=other))
    assert not np.array_equal(draw(9, source=one), draw(9, source=one))
    assert not np.array_equal(draw(9, source=NoiseSource.insecure(6)), draw(9, source=one))
    assert one.secure is False
    assert "INSECURE" in one.description
    assert "no privacy" in one.description


def test_secure_is_the_default_and_says_so() -> None:
    assert NoiseSource().secure is True
    assert "ChaCha20" in NoiseSource().description
    with pytest.raises(AttributeError):
        NoiseSource().secure = False  # pyright: ignore[reportAttributeAccessIssue]


@pytest.mark.parametrize("copier", [copy.copy, copy.deepcopy, pickle.dumps])
def test_it_cannot_be_copied(copier: object) -> None:
    with pytest.raises(TypeError, match="make a new one"):
        copier(NoiseSource.insecure(1))  # pyright: ignore[reportCallIssue]
