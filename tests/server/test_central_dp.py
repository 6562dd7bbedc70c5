"""Clipping, summing and noising of whole clients; adaptive clipping; correlated noise."""

from __future__ import annotations

import itertools
import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import FederationError, PrivacyError
from hushtune.common.messages import ClientUpdate
from hushtune.common.privacy import correlated
from hushtune.common.privacy.noise import NoiseSource, on_grid
from hushtune.server.aggregation.central_dp import (
    Mechanism,
    Memory,
    adapted,
    clipped_sum,
    private_mean,
    scaled_for_rounding,
    split,
)

from .fake_grid import SPEC, state

KEYS = ("head.bias", "head.weight", "layer.q.lora_B")
LIKE = state(0, KEYS)
ALMOST_NONE = 1e-9


def update(site: str, delta: AdapterState, *, num_examples: int = 10) -> ClientUpdate:
    return ClientUpdate(
        run="run",
        round=1,
        site=site,
        delta=delta,
        num_examples=num_examples,
        charge=None,
        noise="none",
    )


def of_norm(norm: float, seed: int = 1) -> AdapterState:
    drawn = state(seed, KEYS)
    return (norm / drawn.norm()) * drawn


def joint(total: dict[str, torch.Tensor]) -> torch.Tensor:
    return torch.cat([total[key].flatten() for key in KEYS])


def summed(*updates: ClientUpdate, clip_norm: float = 1.0) -> torch.Tensor:
    return joint(dict(clipped_sum(updates, like=LIKE, clip_norm=clip_norm).total))


@pytest.fixture
def source() -> NoiseSource:
    """The same noise for a test each time: what it says of a distribution does not flicker."""
    return NoiseSource.insecure(11)


def mean(
    *updates: ClientUpdate, mechanism: Mechanism, noise: NoiseSource, clip_norm: float = 1.0
) -> tuple[torch.Tensor, Memory]:
    released, memory = private_mean(
        updates,
        like=LIKE,
        memory=Memory(clip_norm=clip_norm),
        mechanism=mechanism,
        noise=noise,
    )
    return joint(dict(released.tensors)), memory


# ------------------------------------------------------------------------- clip and sum ----


@pytest.mark.parametrize("norm", [1e-4, 0.5, 0.999, 1.001, 3.0, 1e6])
def test_a_client_moves_the_sum_by_at_most_the_clip_norm(norm: float) -> None:
    others = [update(f"s{place}", of_norm(2.0 + place, place)) for place in range(5)]
    added = update("t", of_norm(norm, 9))
    for clip_norm in (0.1, 1.0, 7.0):
        moved = summed(*others, added, clip_norm=clip_norm) - summed(*others, clip_norm=clip_norm)
        assert moved.norm() <= clip_norm * (1 + 1e-9)
        assert moved.norm() == pytest.approx(min(norm, clip_norm), rel=1e-5)


def test_the_norm_is_over_all_tensors_together() -> None:
    """Each tensor by itself would let a client move the sum by sqrt(3) C."""
    delta = of_norm(1.0)
    pieces = {key: tensor / tensor.norm() for key, tensor in delta.tensors.items()}
    moved = summed(update("a", AdapterState(SPEC, pieces)))
    assert moved.norm() == pytest.approx(1.0, rel=1e-6)


def test_weights_are_equal_whatever_the_declared_sizes() -> None:
    one, other = of_norm(0.5, 1), of_norm(0.5, 2)
    small = summed(update("a", one, num_examples=1), update("b", other, num_examples=10**9))
    assert torch.allclose(small, joint(dict((one + other).tensors)).double(), atol=1e-7)
    assert torch.equal(small, summed(update("a", one), update("b", other)))


def test_the_order_of_arrival_changes_no_bit() -> None:
    updates = [update(f"s{place}", of_norm(0.9, place)) for place in range(7)]
    assert torch.equal(summed(*updates), summed(*updates[::-1]))


@pytest.mark.parametrize(
    "bad",
    [
        of_norm(1.0).map(lambda tensor: tensor * math.nan),
        of_norm(1.0).map(lambda tensor: tensor * math.inf),
        of_norm(1.0).select(KEYS[:2]),
        AdapterState(SPEC, {**of_norm(1.0).tensors, "head.bias": torch.ones(4)}),
        AdapterState(replace(SPEC, alpha=9.0), of_norm(1.0).tensors),
    ],
    ids=["nan", "inf", "missing tensor", "wrong shape", "another adapter"],
)
def test_a_bad_update_counts_as_none(bad: AdapterState) -> None:
    good = update("a", of_norm(0.5))
    found = clipped_sum([good, update("b", bad)], like=LIKE, clip_norm=1.0)
    assert torch.equal(joint(dict(found.total)), summed(good))
    assert (found.left_out, found.centred) == (("b",), 0.5)


def test_a_zero_update_is_one_and_nobody_is_a_sum_too() -> None:
    zero = clipped_sum([update("a", 0.0 * of_norm(1.0))], like=LIKE, clip_norm=1.0)
    assert (float(joint(dict(zero.total)).norm()), zero.centred, zero.left_out) == (0.0, 0.5, ())
    assert float(summed().norm()) == 0.0


def test_a_site_that_comes_twice_is_refused() -> None:
    with pytest.raises(FederationError, match="twice"):
        clipped_sum([update("a", LIKE), update("a", LIKE)], like=LIKE, clip_norm=1.0)


# ------------------------------------------------------------------- noise, denominator ----


@pytest.mark.parametrize("clip_norm", [0.03, 1.0, 40.0])
def test_the_noise_has_the_promised_scale_in_every_tensor(
    clip_norm: float, source: NoiseSource
) -> None:
    mechanism = Mechanism(noise_multiplier=3.0, denominator=20.0)
    drawn = torch.stack(
        [mean(mechanism=mechanism, noise=source, clip_norm=clip_norm)[0] for _ in range(150)]
    )
    std = 3.0 * clip_norm / 20.0
    places = np.cumsum([0, 3, 15, 14])
    for start, end in itertools.pairwise(places):
        values = drawn[:, start:end].flatten().double().numpy() / std
        assert kstest(values, "norm").pvalue > 1e-4
        assert kstest(values / 1.5, "norm").pvalue < 1e-4
        assert kstest(values * 1.5, "norm").pvalue < 1e-4


def test_the_denominator_is_public_whoever_answers(source: NoiseSource) -> None:
    mechanism = Mechanism(noise_multiplier=ALMOST_NONE, denominator=8.0)
    delta = of_norm(0.5)
    few = mean(update("a", delta), mechanism=mechanism, noise=source)[0]
    assert torch.allclose(few, joint(dict(delta.tensors)) / 8.0, atol=1e-6)
    more = mean(
        *(update(f"s{place}", delta) for place in range(4)), mechanism=mechanism, noise=source
    )[0]
    assert torch.allclose(more, 4 * few, atol=1e-6)


def test_the_noise_is_in_units_of_the_clip_norm_that_clipped(source: NoiseSource) -> None:
    """The next one may be many times smaller, and so may not cover what was clipped with this."""
    mechanism = Mechanism(noise_multiplier=3.0, denominator=2.0, quantile=0.01, rate=20.0)
    updates = [update("a", of_norm(0.001)), update("b", of_norm(0.001, 2))]
    found = [mean(*updates, mechanism=mechanism, noise=source, clip_norm=10.0) for _ in range(60)]
    spread = float(torch.stack([values for values, _ in found]).std())
    assert spread == pytest.approx(split(mechanism)[0] * 10.0 / 2.0, rel=0.1)
    assert any(abs(math.log(memory.clip_norm / 10.0)) > 1.0 for _, memory in found)


# ------------------------------------------------------------------- adaptive clipping ----


@pytest.mark.parametrize("noise_multiplier", [0.3, 1.0, 8.0, 100.0])
@pytest.mark.parametrize("denominator", [1.0, 50.0, 2000.0])
def test_sum_and_count_together_cost_one_event(noise_multiplier: float, denominator: float) -> None:
    mechanism = Mechanism(noise_multiplier=noise_multiplier, denominator=denominator, quantile=0.5)
    of_sum, of_count = split(mechanism)
    assert of_sum**-2 + of_count**-2 == pytest.approx(noise_multiplier**-2)
    assert noise_multiplier < of_sum < 1.06 * noise_multiplier
    # One client at the clip norm and its bit, in units of their noise: the event's sensitivity.
    assert math.hypot(1 / of_sum, 0.5 / (of_count / 2)) == pytest.approx(1 / noise_multiplier)


def test_the_count_is_noised_at_its_own_scale(source: NoiseSource) -> None:
    mechanism = Mechanism(noise_multiplier=2.0, denominator=40.0, quantile=0.5, rate=1.0)
    steps = [math.log(mean(mechanism=mechanism, noise=source)[1].clip_norm) for _ in range(400)]
    assert float(np.mean(steps)) == pytest.approx(0.0, abs=0.02)
    assert float(np.std(steps)) == pytest.approx(split(mechanism)[1] / 2 / 40.0, rel=0.15)


@pytest.mark.parametrize("start", [0.01, 1.0, 100.0])
@pytest.mark.parametrize("quantile", [0.5, 0.9])
def test_the_clip_norm_converges_to_the_quantile(
    start: float, quantile: float, source: NoiseSource
) -> None:
    """From 100 times above and below; with the bit the other way round it runs away."""
    norms = np.exp(np.random.default_rng(3).normal(size=200) * 0.5)
    updates = [update(f"s{place}", of_norm(norm)) for place, norm in enumerate(norms)]
    mechanism = Mechanism(noise_multiplier=2.0, denominator=200.0, quantile=quantile)
    memory, seen = Memory(clip_norm=start), list[float]()
    for _ in range(120 if quantile == 0.5 else 300):
        _, memory = private_mean(
            updates, like=LIKE, memory=memory, mechanism=mechanism, noise=source
        )
        seen.append(memory.clip_norm)
    wanted = float(np.quantile(norms, quantile))
    assert float(np.exp(np.mean(np.log(seen[-20:])))) == pytest.approx(wanted, rel=0.12)


def test_the_clip_norm_stays_where_it_can_be_used() -> None:
    mechanism = Mechanism(noise_multiplier=1.0, denominator=1.0, quantile=0.5, rate=5.0)
    assert adapted(1.0, -1e9, mechanism) == 1e6
    assert adapted(1.0, 1e9, mechanism) == 1e-6


# -------------------------------------------------------------------- correlated noise ----


def test_correlated_noise_is_the_inverse_of_the_factors_times_independent_noise(
    source: NoiseSource,
) -> None:
    """Round by round, with a tensor that is trained from the third round on only."""
    rounds, band = 9, 4
    mechanism = Mechanism(
        noise_multiplier=2.0,
        denominator=1.0,
        coefficients=tuple(correlated.coefficients(band).tolist()),
        sensitivity=correlated.sensitivity(band, rounds=rounds, every=4),
    )
    std = scaled_for_rounding(2.0 * 0.5 * mechanism.sensitivity, mechanism, num_values=18)
    factors = np.zeros((rounds, rounds))
    for shift, factor in enumerate(mechanism.coefficients):
        factors += np.diag([factor] * (rounds - shift), -shift)
    back: dict[str, list[np.ndarray]] = {key: [] for key in KEYS}
    for _ in range(120):
        memory, drawn = Memory(clip_norm=0.5), dict[str, list[np.ndarray]]()
        for number in range(rounds):
            keys = KEYS if number >= 2 else KEYS[:2]
            released, memory = private_mean(
                [],
                like=LIKE.select(keys),
                memory=memory,
                mechanism=mechanism,
                noise=source,
            )
            assert len(memory.noises) == min(number + 1, band - 1)
            for key in keys:
                drawn.setdefault(key, []).append(released.tensors[key].flatten().numpy())
        for key, values in drawn.items():
            of_rounds = np.stack(values)  # (rounds in which it was trained, values)
            size = len(of_rounds)
            back[key].append(factors[:size, :size] @ of_rounds)
    for key, tables in back.items():
        independent = np.concatenate(tables, axis=1)
        assert kstest(independent.flatten() / std, "norm").pvalue > 1e-4
        links = np.corrcoef(independent) - np.eye(len(independent))
        assert np.abs(links).max() < 6 / math.sqrt(independent.shape[1]), key


def test_where_only_the_sum_is_rounded_its_noise_is_scaled_for_that() -> None:
    """A sum on the grid's worst places moves by more than the clip norm, and no more than that."""
    size, grid, z = 100_000, 2.0**-18, 4.0
    one = torch.full((size,), 829.02 * grid, dtype=torch.float64)
    clip = float(one.norm())
    mechanism = Mechanism(noise_multiplier=z, denominator=1.0, coefficients=(1.0, 0.5))
    scale = scaled_for_rounding(z * clip, mechanism, num_values=size)
    without = torch.full_like(one, 0.49 * grid)  # rounded down, and with the client up
    moved = on_grid(without + one, std=scale).double() - on_grid(without, std=scale).double()
    assert torch.allclose(moved, torch.full_like(one, 830 * grid), rtol=1e-9)
    assert float(moved.norm()) > clip * (1 + 1e-3)
    assert z * float(moved.norm()) <= scale
    with pytest.raises(PrivacyError, match="as much as a client"):
        scaled_for_rounding(z * clip, mechanism, num_values=10**11)


def test_sums_over_rounds_have_less_noise_than_independent_rounds(source: NoiseSource) -> None:
    rounds = every = 12
    ends: dict[int, list[float]] = {}
    for band in (1, 12):
        mechanism = Mechanism(
            noise_multiplier=1.0,
            denominator=1.0,
            coefficients=tuple(correlated.coefficients(band).tolist()),
            sensitivity=correlated.sensitivity(band, rounds=rounds, every=every),
        )
        for _ in range(40):
            memory, total = Memory(clip_norm=1.0), 0.0 * LIKE
            for _ in range(rounds):
                mean, memory = private_mean(
                    [], like=LIKE, memory=memory, mechanism=mechanism, noise=source
                )
                total = total + mean
            ends.setdefault(band, []).append(total.norm() / math.sqrt(LIKE.num_values()))
    for band, found in ends.items():
        wanted = correlated.prefix_error(band, rounds=rounds, every=every)[-1]
        assert float(np.sqrt(np.mean(np.square(found)))) == pytest.approx(wanted, rel=0.1)
    assert np.mean(ends[12]) < 0.75 * np.mean(ends[1])


def test_what_is_released_is_on_the_grid_of_its_noise(source: NoiseSource) -> None:
    mechanism = Mechanism(noise_multiplier=2.0, denominator=1.0)
    values = mean(update("a", of_norm(0.7)), mechanism=mechanism, noise=source)[0].double()
    grid = 2.0**-19  # of a standard deviation of 2
    assert torch.equal(values, (values / grid).round() * grid)
