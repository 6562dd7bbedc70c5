"""Privacy of whole clients at a trusted server: clip, sum with equal weights, noise, divide.

One client's update, whatever it is, adds to the sum a vector of norm at most the clip norm C, and
the noise on the sum has a standard deviation in units of that same C. The denominator is a public
number, the clients that are expected in a round: it is the same whoever drops out. What follows,
such as a server optimiser, is post-processing.

With adaptive clipping (Andrew et al. 1905.03871) each client also adds a bit, whether its norm was
at most C, centred to +-1/2. C of the next round follows from the noisy count. Sum and count are
one Gaussian release: with noise ``z_d C`` on the sum and ``z_b / 2`` on the count of centred bits,
``z_d^-2 + z_b^-2 = z^-2`` makes the pair cost what one release at noise multiplier z costs.

With correlated noise the noise of a round is ``C^-1 z`` (see :mod:`..common.privacy.correlated`).
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hushtune.common.adapter import AdapterState
from hushtune.common.errors import FederationError, PrivacyError
from hushtune.common.messages import ClientUpdate
from hushtune.common.privacy.noise import NoiseSource, on_grid
from hushtune.common.privacy.plan import CLIP_NORMS

COUNT_NOISE = 1 / 20
"""Standard deviation of the count's noise for each client expected, as in the paper ..."""
COUNT_SHARE = 0.1
"""... or more, where the count would else take a larger share of the round's precision."""


@dataclass(frozen=True, kw_only=True)
class Mechanism:
    """What the server does in each round; all of it public.

    ``noise_multiplier``: z of one event. ``denominator``: clients expected in a round. ``quantile``
    and ``rate``: of adaptive clipping, None for a clip norm that stays. ``coefficients`` and
    ``sensitivity``: of correlated noise, `correlated.coefficients` and `correlated.sensitivity`.
    """

    noise_multiplier: float
    denominator: float
    quantile: float | None = None
    rate: float = 0.2
    coefficients: tuple[float, ...] = (1.0,)
    sensitivity: float = 1.0


@dataclass(frozen=True, kw_only=True)
class Memory:
    """Between rounds: the clip norm, which is public, and the noise of the last rounds, which is
    SECRET (whoever has it can take it off what was released); the newest first."""

    clip_norm: float
    noises: tuple[AdapterState, ...] = ()


@dataclass(frozen=True)
class ClippedSum:
    """A round's sum in float64, the sum of centred bits, and the sites that count as nothing."""

    total: Mapping[str, Tensor]
    centred: float
    left_out: tuple[str, ...]


def clipped_sum(
    updates: Sequence[ClientUpdate], *, like: AdapterState, clip_norm: float
) -> ClippedSum:
    """Sum of the updates, each scaled to norm at most ``clip_norm`` over all tensors of ``like``.

    By site name and not by arrival. An update over other tensors than ``like``, or one that is not
    finite, counts as if the site had not answered. FederationError for a site that comes twice.
    """
    ordered = sorted(updates, key=lambda update: update.site)
    for one, other in itertools.pairwise(ordered):
        if one.site == other.site:
            raise FederationError("a site counts twice in one round", given=one.site)
    total = {key: torch.zeros_like(t, dtype=torch.float64) for key, t in like.tensors.items()}
    centred, left_out = 0.0, list[str]()
    for update in ordered:
        norm = update.delta.norm() if _fits(update.delta, like) else math.nan
        if not math.isfinite(norm):
            left_out.append(update.site)
            continue
        factor = min(1.0, clip_norm / norm) if norm > 0 else 1.0
        for key, tensor in update.delta.tensors.items():
            total[key] += factor * tensor.double()
        centred += 0.5 if norm <= clip_norm else -0.5
    return ClippedSum(total, centred, tuple(left_out))


def private_mean(
    updates: Sequence[ClientUpdate],
    *,
    like: AdapterState,
    memory: Memory,
    mechanism: Mechanism,
    noise: NoiseSource,
) -> tuple[AdapterState, Memory]:
    """What the server may release of a round's updates, and the memory for the next one."""
    clip_norm = memory.clip_norm
    found = clipped_sum(updates, like=like, clip_norm=clip_norm)
    of_sum, of_count = split(mechanism)
    scale = of_sum * clip_norm * mechanism.sensitivity
    sums, kept = _noised(found.total, like, memory, mechanism, noise=noise, scale=scale)
    mean = {key: total.div(mechanism.denominator) for key, total in sums.items()}
    if mechanism.quantile is not None:
        centred = torch.tensor([found.centred], dtype=torch.float64)
        count = float(noise.noised(centred, std=of_count / 2))
        below = count / mechanism.denominator + 0.5
        clip_norm = adapted(clip_norm, below, mechanism)
    released = AdapterState(like.spec, {key: tensor.float() for key, tensor in mean.items()})
    return released, Memory(clip_norm=clip_norm, noises=kept)


def split(mechanism: Mechanism) -> tuple[float, float]:
    """Noise multipliers ``z_d`` of the sum and ``z_b`` of the count, the two together z.

    ``z_b`` is in units of what one client can change the count of centred bits by, 1/2.
    """
    whole = mechanism.noise_multiplier
    if mechanism.quantile is None:
        return whole, math.inf
    of_count = max(2 * COUNT_NOISE * mechanism.denominator, whole / math.sqrt(COUNT_SHARE))
    return (whole**-2 - of_count**-2) ** -0.5, of_count


def adapted(clip_norm: float, below: float, mechanism: Mechanism) -> float:
    """The next clip norm, from the noisy share of clients whose norm was at most this one."""
    assert mechanism.quantile is not None
    least, most = CLIP_NORMS
    step = -mechanism.rate * (below - mechanism.quantile)
    return min(most, max(least, clip_norm * math.exp(min(step, 50.0))))


def _noised(
    total: Mapping[str, Tensor],
    like: AdapterState,
    memory: Memory,
    mechanism: Mechanism,
    *,
    noise: NoiseSource,
    scale: float,
) -> tuple[Mapping[str, Tensor], tuple[AdapterState, ...]]:
    """The sum with noise, on a public grid, float32; and the noise to be remembered.

    Where rounds have noise of their own, sum and noise are rounded together, which tells nothing
    more. Correlated noise is on the grid when it is drawn, so it is the sum alone that is rounded
    there: a client then moves it by up to half a step more in each value, with and without it, and
    the noise is scaled for that.
    """
    if len(mechanism.coefficients) == 1:
        return {key: noise.noised(value, std=scale) for key, value in total.items()}, ()
    values = sum(value.numel() for value in total.values())
    scale = scaled_for_rounding(scale, mechanism, num_values=values)
    own = _correlated(like, memory, mechanism, noise=noise, scale=scale)
    sums = {
        key: on_grid(value + own.tensors[key].double(), std=scale) for key, value in total.items()
    }
    return sums, (own, *memory.noises)[: len(mechanism.coefficients) - 1]


def scaled_for_rounding(scale: float, mechanism: Mechanism, *, num_values: int) -> float:
    """A ``scale`` for sums that a client moves by the clip norm, for sums that are rounded, too.

    The step of the grid is at most ``2^-20`` of what is returned, and rounding adds
    ``sqrt(num_values)`` steps to the clip norm. Raises PrivacyError where that is more than half.
    """
    ratio = mechanism.noise_multiplier * mechanism.sensitivity
    added = ratio * math.sqrt(num_values) * 2.0**-20
    if added > 0.5:
        raise PrivacyError(
            "rounding would move correlated noise's sums by as much as a client does",
            given=f"{num_values} values, noise of {ratio:g} clip norms",
            remedy="train fewer values, or leave out privacy.client_turns",
        )
    return scale / (1.0 - added)


def _correlated(
    like: AdapterState, memory: Memory, mechanism: Mechanism, *, noise: NoiseSource, scale: float
) -> AdapterState:
    """A round's noise ``w = z - sum_k f_k w_(k rounds ago)``, so that ``C w = z``.

    No data is in it. A tensor that was not trained k rounds ago had no noise then: for it the
    rounds begin later, and the matrix is the lower right part of the same one.
    """
    drawn = like.map(lambda tensor: noise.noised(torch.zeros_like(tensor), std=scale))
    exact = {key: tensor.double() for key, tensor in drawn.tensors.items()}
    for factor, before in zip(mechanism.coefficients[1:], memory.noises, strict=False):
        for key in exact.keys() & before.tensors.keys():
            exact[key] = exact[key] - factor * before.tensors[key].double()
    return AdapterState(like.spec, {key: tensor.float() for key, tensor in exact.items()})


def _fits(delta: AdapterState, like: AdapterState) -> bool:
    return (
        delta.spec == like.spec
        and delta.keys == like.keys
        and all(tensor.shape == like.tensors[key].shape for key, tensor in delta.tensors.items())
        and delta.is_finite()
    )
