"""Noise: the right law at the right scale, and unpredictable whatever seed was set."""

# pyright: reportPrivateUsage=false

import copy
import json
import math
import os
import pickle
import random
import subprocess
import sys
import threading
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from scipy import stats

from hushtune.common.errors import PrivacyError
from hushtune.common.privacy import noise
from hushtune.common.privacy.noise import NoiseSource


def draw(count: int, *, std: float = 1.0, source: NoiseSource | None = None) -> np.ndarray:
    """Noise as it is released: on zeros."""
    return (source or NoiseSource()).noised(torch.zeros(count), std=std).double().numpy()


def all_differ(*drawn: np.ndarray) -> None:
    """No two places hold the same draw. On a grid of millions a few may fall on one point, one in
    a thousand of a thousand values; a stream that is used twice repeats half of them or more."""
    values = np.concatenate(drawn)
    assert np.unique(values).size > 0.97 * values.size


# The statistical tests use a reproducible stream of the very code that the secure source runs, so
# that they cannot fail by chance; the secure source's own entropy is tested by other means.
def accepts_only(values: np.ndarray, std: float) -> None:
    """The values follow N(0, std^2), and the same test tells other scales from it."""

    def p_value(scale: float) -> float:
        return float(stats.kstest(values, stats.norm(scale=scale).cdf).pvalue)

    assert p_value(std) > 1e-3
    assert p_value(std * 2 / 3) < 1e-9
    assert p_value(std * 3 / 2) < 1e-9
    assert p_value(std * 1.1) < 1e-6


def uncorrelated(one: np.ndarray, other: np.ndarray) -> None:
    """Neither values nor their squares go together, by more than five standard errors."""
    assert one.size == other.size > 1000
    for power in (1, 2):
        found = np.corrcoef(one**power, other**power)[0, 1]
        assert abs(found) < 5 / math.sqrt(one.size), power


@pytest.mark.parametrize("std", [1.0, 1.725e-3, 40.0])
def test_the_scale_is_right_and_wrong_ones_are_seen(std: float) -> None:
    accepts_only(draw(100_000, std=std, source=NoiseSource.insecure(1)), std)


@pytest.mark.parametrize("pairs", [1, 5, 64, 4096, 1 << 15, 1 << 18])
def test_any_block_size_gives_the_same_law(pairs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_PAIRS_AT_A_TIME", pairs)
    size = 50_001
    values = draw(size, std=2.0, source=NoiseSource.insecure(4))
    accepts_only(values, 2.0)
    if pairs > size:  # the halves of a block are cosines and sines
        accepts_only(values[: size // 2], 2.0)
        accepts_only(values[size // 2 :], 2.0)


def test_draws_of_threads_have_the_law_and_are_independent() -> None:
    source = NoiseSource.insecure(5)
    with ThreadPoolExecutor(4) as pool:
        drawn = list(pool.map(lambda _: draw(70_000, source=source), range(8)))
    for index, values in enumerate(drawn):
        accepts_only(values, 1.0)
        uncorrelated(values, drawn[index - 1])
    all_differ(*(values[:100] for values in drawn))


def test_blocks_of_a_draw_are_independent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_PAIRS_AT_A_TIME", 5_000)
    blocks = draw(80_000, source=NoiseSource.insecure(6)).reshape(8, 10_000)
    for index, values in enumerate(blocks):
        for before in blocks[:index]:
            uncorrelated(values, before)
            uncorrelated(values, before[::-1])


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
    all_differ(*(draw(99, source=source) for _ in range(4)))
    drawn: list[np.ndarray] = []
    threads = [
        threading.Thread(target=lambda: drawn.append(draw(99, source=source))) for _ in range(2)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    all_differ(*drawn)


def test_blocks_of_one_draw_have_keys_of_their_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_PAIRS_AT_A_TIME", 4)
    all_differ(draw(801))


def test_no_seed_reproduces_it() -> None:
    def after_seeding() -> np.ndarray:
        torch.manual_seed(7)
        np.random.seed(7)
        random.seed(7)
        return draw(64)

    all_differ(after_seeding(), after_seeding())


def test_it_leaves_the_seeded_generators_alone() -> None:
    torch.manual_seed(7)
    before = torch.get_rng_state()
    draw(64)
    assert torch.equal(before, torch.get_rng_state())


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork on this system")
@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_forks_draw_other_noise() -> None:
    source = NoiseSource()
    size = 8_192
    draw(size, source=source)
    drawn = [_drawn_by_a_fork(source, size) for _ in range(2)]
    drawn.append(draw(size, source=source))
    for index, values in enumerate(drawn):
        assert values.size == size
        all_differ(values[:99], drawn[index - 1][:99])
        uncorrelated(values, drawn[index - 1])


def _drawn_by_a_fork(source: NoiseSource, size: int) -> np.ndarray:
    receiving, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:  # nothing may raise here
            with os.fdopen(sending, "wb") as pipe:
                pipe.write(draw(size, source=source).tobytes())
        finally:
            os._exit(0)
    os.close(sending)
    with os.fdopen(receiving, "rb") as pipe:
        drawn = np.frombuffer(pipe.read(), dtype=np.float64)
    os.waitpid(child, 0)
    return drawn


def test_restarted_processes_never_draw_the_same() -> None:
    """Two fresh processes with equal seeds, environments and arguments."""
    program = (
        "import random, numpy, torch; from hushtune.common.privacy.noise import NoiseSource;"
        "random.seed(7); numpy.random.seed(7); torch.manual_seed(7);"
        "print(NoiseSource().noised(torch.zeros(2048), std=1.0).tolist())"
    )
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "PYTHONHASHSEED": "0"}
    started = [
        subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    answers = [process.communicate()[0] for process in started]
    one, other = (np.array(json.loads(answer)) for answer in answers)
    all_differ(one[:99], other[:99])
    uncorrelated(one, other)


@pytest.mark.parametrize("shape", [(), (1,), (3,), (0,), (2, 0, 3), (5, 7), (3, 1, 11)])
def test_any_shape(shape: tuple[int, ...]) -> None:
    drawn = NoiseSource().noised(torch.zeros(shape), std=1.0)
    assert drawn.shape == shape
    assert drawn.dtype == torch.float32
    assert drawn.device.type == "cpu"
    assert int((drawn == 0).sum()) <= drawn.numel() // 30  # one in millions, by chance
    drawn.add_(1)  # owns its memory, and may be written to


def test_odd_sizes_over_a_block_s_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(noise, "_PAIRS_AT_A_TIME", 4)
    for size in range(7, 27):
        assert np.count_nonzero(draw(size)) >= size - 1


def test_the_keystream_is_chacha20() -> None:
    # RFC 8439, appendix A.1, test vector 1: key, nonce and counter 0.
    words = np.empty(8, dtype=np.uint64)
    noise._fill_keystream(words, bytes(32), np.zeros(8, dtype=np.uint64))
    first = words.tobytes().hex()
    assert first.startswith("76b8e0ada0f13d90405d6ae55386bd28bdd219b8a08ded1aa836efcc8b770dc7")


def normals(words: Sequence[int] | np.ndarray, *, std: float = 1.0) -> np.ndarray:
    out, spare = np.empty(len(words)), np.empty(len(words) // 2)
    noise._box_muller(np.array(words, dtype=np.uint64), std, out=out, spare=spare)
    return out


def test_it_is_box_muller() -> None:
    """The textbook's formula on the same words, with cosine and sine themselves."""
    words = np.random.default_rng(8).integers(2**64, size=20_000, dtype=np.uint64)
    uniforms = ((words >> np.uint64(11)).astype(np.float64) + 1) * 2.0**-53
    radius = 3.0 * np.sqrt(-2 * np.log(uniforms[:10_000]))
    angle = 2 * np.pi * uniforms[10_000:]
    expected = np.concatenate((radius * np.cos(angle), radius * np.sin(angle)))
    np.testing.assert_allclose(normals(words, std=3.0), expected, rtol=0, atol=1e-13)


def test_extreme_words_are_finite_and_next_to_nothing_is_cut_off() -> None:
    least, most = 0, 2**64 - 1
    halves, quarters = 2**63, 2**62  # angles at which the tangent of the half is largest, or 1
    angles = [least, most, halves, halves - 2048, halves - 1, quarters, 3 * quarters]
    for word in (least, most):
        drawn = normals([word] * len(angles) + angles)
        assert np.isfinite(drawn).all()
        lengths = np.hypot(*np.split(drawn, 2))
        assert lengths == pytest.approx(0 if word == most else math.sqrt(106 * math.log(2)))
    assert 2 * stats.norm.sf(math.sqrt(106 * math.log(2))) < 1e-15


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
        NoiseSource().noised(torch.ones(3), std=std)


@pytest.mark.parametrize("std", [1e-30, 1.725e-3, 1.0, 40.0, 1e36])
def test_a_noised_sum_is_the_sum_plus_noise_of_the_scale(std: float) -> None:
    total = std * torch.linspace(-3, 3, 100_000)
    found = NoiseSource.insecure(9).noised(total, std=std)
    assert found.dtype == torch.float32
    assert found.shape == total.shape
    # In units of std: scipy's own tables do not reach the extremes.
    accepts_only((found.double() - total.double()).numpy() / std, 1.0)


@pytest.mark.parametrize("std", [1e-30, 1.725e-3, 1.0, 1.999, 40.0])
def test_no_bit_below_a_public_grid_is_released(std: float) -> None:
    """Whatever the sum, zero or with low-order bits of its own, the same grid holds the result."""
    grid = 2.0 ** (math.floor(math.log2(std)) - 20)
    assert std * 2**-21 < grid <= std * 2**-20
    for total in (torch.zeros(4000), std * torch.rand(4000), torch.full((4000,), std * 1e3 / 7)):
        found = NoiseSource().noised(total, std=std).double() / grid
        assert torch.equal(found, found.round())
        if total.max() <= std:  # of larger numbers float32 itself keeps fewer bits
            assert bool((found % 2 == 1).any())
            plain = (total + std * torch.randn(4000)).double() / grid
            assert not torch.equal(plain, plain.round())


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
