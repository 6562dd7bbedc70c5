"""DP-SGD at a site: Poisson batches, per-example clipping, noise (Abadi et al. 1607.00133).

The step is

    g = ( sum over the batch of min(1, C / ||g_u||) g_u  +  N(0, (sigma C)^2) ) / denominator

with ``g_u`` the gradient of one unit (an example, or the mean over a patient's or user's),
``||g_u||`` over all trained tensors together and a public denominator, the expected batch.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Protocol

import numpy as np
import torch
from torch import Tensor, nn

from hushtune.client import example_gradients
from hushtune.common.errors import PrivacyError
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.privacy.plan import PrivacyPlan, Trust
from hushtune.common.tasks.base import Task
from hushtune.common.tasks.units import Piece, Rows, Units
from hushtune.common.tuning import GradientMethod

Gradients = Mapping[str, Tensor]


class Sites(Protocol):
    """Whose units are computed at once; see ``hushtune.client.cohort``."""

    count: int

    def at(self, rows: Rows) -> AbstractContextManager[None]:
        """Around a pass over some rows."""
        ...

    def owners(self, units: Units) -> Tensor:
        """The place of each unit's site, ``(num_units,)``."""
        ...


_MOST_NORM = 1e30
"""Far from where squares of float64 overflow, and from what any gradient is."""


def poisson_batch(units: Units, probability: float, random: np.random.Generator) -> Units:
    """Each unit with the given probability, independently and as a whole; possibly none.

    The amplification that the accountant counts on needs the draw to be unknown to those who see
    the update, so ``random`` must be the site's own (see ``hushtune.client.site``).
    """
    return units.take(np.flatnonzero(random.random(len(units)) < probability))


@contextmanager
def per_example_gradients(model: AdaptedModel) -> Generator[None]:
    """A backward pass in the block leaves ``grad_sample (b, ...)`` on what is trained.

    By the layers' own backward pass where ``model.gradients`` asks for it and all trained layers
    are of kinds that it knows, else by Opacus' hooks: the same numbers in another time.
    """
    fused = model.gradients is GradientMethod.FUSED
    layers = example_gradients.layers_of(model) if fused else None
    with _hooked(model) if layers is None else example_gradients.recorded(layers):
        yield


def _hooked(model: AdaptedModel) -> AbstractContextManager[None]:
    from hushtune.client.opacus_hooks import hooked  # half a second, which most runs do without

    return hooked(model)


def clipped_sum(
    task: Task,
    units: Units,
    *,
    trained: Mapping[str, nn.Parameter],
    clip_norm: float,
    microbatch: int,
    level: Level,
    sites: Sites | None = None,
) -> dict[str, Tensor]:
    """Sum over ``units`` of each one's gradient, clipped to ``clip_norm`` over all tensors.

    A unit's gradient is the mean over its examples, so that one with many records pulls no harder.
    Where examples are changed at random it is over all views of them too, before it is clipped
    (augmentation multiplicity, De et al. 2204.13650). A row's changes follow from the step's draw
    and the row alone: whatever was drawn, a unit moves the sum by the clip norm at most, so they
    cost nothing, and nothing rests on their being secret.
    The same for any ``microbatch`` (examples at a time) but for rounding; zero for no units. Must
    run inside ``per_example_gradients``. Returns float64 CPU tensors in the shapes of ``trained``.

    ``sites``: of whom the units are, for one sum each, ``(sites, ...)``; must run ``in_place`` of
    it then.

    Norms, factors and the sum are float64: n units make it that of real numbers to within
    ``2^-52 n^2 clip_norm`` at most, so that one unit moves it by no more than the clip norm and
    that; a float32 sum of a few thousand would be off by 1e-5 of it.
    """
    total = {
        key: torch.zeros_like(parameter, dtype=torch.float64) for key, parameter in trained.items()
    }
    if sites is not None:
        total = {key: torch.stack([zero] * sites.count) for key, zero in total.items()}
    # From torch's stream, which a site begins from its own batches' (see ``train_locally``).
    draw = int(torch.randint(2**62, ())) if task.augments else None
    units = task.views(units)
    for piece in task.microbatches(units, microbatch, level):
        batch = task.batch(piece.rows, level, draw=draw, packing=piece.packing)
        with nullcontext() if sites is None else sites.at(piece.rows):
            task.example_losses(batch).sum().backward()
        samples = {
            key: piece.units.means(_take(key, parameter, piece).float())
            for key, parameter in trained.items()
        }
        # In float64: the square of a small float32 is zero, and what has no norm is not clipped.
        squares = sum(_norms(sample).square() for sample in samples.values())
        norms = torch.sqrt(torch.as_tensor(squares))  # (units,)
        # A gradient that is not finite, or so large that its norm says nothing, counts as zero: an
        # error would tell that there is one.
        finite = norms <= _MOST_NORM
        factors = (clip_norm / norms.clamp_min(torch.finfo(norms.dtype).tiny)).clamp(max=1.0)
        factors = torch.where(finite, factors, 0.0)
        # One row for each sum: a unit's factor where it is added, and zero elsewhere.
        shares = factors.unsqueeze(0)
        if sites is not None:
            owners = sites.owners(piece.units).to(factors.device)
            shares = factors * (torch.arange(sites.count).to(owners)[:, None] == owners)
        all_finite = bool(finite.all())
        for key, sample in samples.items():
            flat = sample.flatten(1)
            counted = flat if all_finite else torch.where(finite[:, None], flat, 0.0)
            total[key] += (shares @ counted.double()).view(total[key].shape)
    return {key: tensor.detach().cpu() for key, tensor in total.items()}


def _norms(sample: Tensor) -> Tensor:
    """The L2 norm of each row of ``(units, ...)``, float64."""
    return torch.linalg.vector_norm(sample.flatten(1), dim=1, dtype=torch.float64)


def _take(key: str, parameter: nn.Parameter, piece: Piece) -> Tensor:
    """The gradient of each example of a piece's units, ``(rows, ...)``, taken off the parameter.

    The others fill the piece up, and count for nothing; of packed texts layers leave none of them.
    """
    sample = getattr(parameter, "grad_sample", None)
    if isinstance(sample, list):  # the tensor was used more than once in the pass
        sample = torch.stack(sample).sum(0)
    own, size = len(piece.units.rows), len(piece.rows)
    known = {size} if piece.packing is None else {size, own}
    shapes = {(rows, *parameter.shape) for rows in known}
    if not isinstance(sample, Tensor) or tuple(sample.shape) not in shapes:
        raise PrivacyError(
            f"the gradients of {key} could not be taken example by example",
            given="none" if sample is None else str(tuple(sample.shape)),
            expected=" or ".join(map(str, sorted(shapes))),
            remedy="the module's inputs and outputs must have one row an example",
        )
    parameter.grad_sample = None  # pyright: ignore[reportAttributeAccessIssue]
    parameter.grad = None
    return sample[:own]


def noisy_mean(total: Gradients, plan: PrivacyPlan, noise: NoiseSource) -> dict[str, Tensor]:
    """Add the plan's noise to a clipped sum, once, and divide by the public denominator."""
    std = 0.0 if plan.trust is Trust.OFF else plan.noise_multiplier * plan.clip_norm
    return {
        key: (noise.noised(tensor, std=std) if std else tensor.float()) / plan.denominator
        for key, tensor in total.items()
    }
