"""Each kind of target under DP-SGD: an example's gradient is its own, and moves a sum by no more
than the clip norm."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from hushtune.client.metrics import unit_sums
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.metrics_messages import SENSITIVITY
from hushtune.common.model import Head, Level
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.objectives import MultiLabel, Objective, Regression
from hushtune.common.tasks.objectives_tokens import IGNORED, TokenTags
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.targets import DenseTargets, TargetRows, TokenTargets
from hushtune.common.tasks.units import Units

from .families import NUM_ROWS, flat, moved, summed, tiny_base, token_rows

KINDS = ("multi-label", "regression", "tags", "pairs")
FAMILIES = ("bert", "gpt2")
CASES = [(kind, family) for kind in KINDS for family in FAMILIES]
TAGS = 4
every_case = pytest.mark.parametrize(("kind", "family"), CASES)


def tags_of(tokens: TokenRows) -> TokenTargets:
    """A tag for about every second token, and one at least of each row."""
    random = np.random.default_rng(11)
    tags = random.integers(0, TAGS, len(tokens.ids)).astype(np.int32)
    tags[random.random(len(tags)) < 0.5] = IGNORED
    tags[tokens.offsets[:-1]] = 1
    return TokenTargets(TokenRows(torch.from_numpy(tags), tokens.offsets, IGNORED, 12))


def kind_task(kind: str, family: str, *, megabytes: int = 0) -> Supervised:
    random = torch.Generator().manual_seed(4)
    tokens = token_rows(family)
    made: dict[str, tuple[Objective, TargetRows, Head]] = {
        "multi-label": (
            MultiLabel(3),
            DenseTargets(torch.randint(0, 2, (NUM_ROWS, 3), generator=random).float()),
            Head.MEAN,
        ),
        "regression": (
            Regression(-2.0, 10.0),
            DenseTargets(torch.rand(NUM_ROWS, generator=random) * 12 - 2),
            Head.MEAN,
        ),
        "pairs": (
            Regression(-2.0, 10.0),
            DenseTargets(torch.rand(NUM_ROWS, generator=random) * 12 - 2),
            Head.PAIR,
        ),
        "tags": (TokenTags(torch.tensor([1.0, 0.5, 2.0, 1.0])), tags_of(tokens), Head.TOKENS),
    }
    objective, targets, head = made[kind]
    model = lora.attach(
        tiny_base(family),
        model=ModelConfig(precision="float32"),
        adapter=AdapterConfig(rank=2, alpha=4.0, layers=2),
        num_outputs=objective.num_outputs,
        seed=0,
        head=head,
    )
    model.separator = int(tokens.ids[2])  # in some rows, at different places, and in some not
    return Supervised(model, tokens, targets, objective, cache_megabytes=megabytes)


def alone(task: Supervised, row: int, state: AdapterState) -> Tensor:
    """The gradient of one example by plain autograd, in a batch of its own."""
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, state.keys)
    task.model.frozen_mode()
    batch = task.batch(np.array([row]), Level.TOKENS)
    (loss,) = task.example_losses(batch)
    found = torch.autograd.grad(loss, list(trained.values()))
    return flat(dict(zip(trained, found, strict=True)))


@every_case
def test_the_clipped_sum_is_that_of_each_example_by_itself(kind: str, family: str) -> None:
    task = kind_task(kind, family)
    state = moved(task.model)
    gradients = [alone(task, row, state) for row in range(NUM_ROWS)]
    clip = float(torch.stack([g.norm() for g in gradients]).median())
    expected = torch.stack([g / max(1.0, float(g.norm()) / clip) for g in gradients]).sum(0)
    for microbatch in (2, 100):
        found = summed(task, range(NUM_ROWS), state=state, clip_norm=clip, microbatch=microbatch)
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@every_case
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(kind: str, family: str) -> None:
    task = kind_task(kind, family)
    state = moved(task.model)
    clip = 1e-3  # every gradient is longer
    whole = summed(task, range(NUM_ROWS), state=state, clip_norm=clip)
    for gone in range(NUM_ROWS):
        rest = [row for row in range(NUM_ROWS) if row != gone]
        share = whole - summed(task, rest, state=state, clip_norm=clip)
        assert float(share.norm()) == pytest.approx(clip, rel=1e-3)


@every_case
def test_kept_states_give_the_same_losses(kind: str, family: str) -> None:
    kept, anew = kind_task(kind, family, megabytes=64), kind_task(kind, family)
    state = moved(kept.model)
    rows = np.arange(NUM_ROWS)
    assert kept.level(state) is Level.HIDDEN
    losses: list[Tensor] = []
    for task, level in ((kept, Level.HIDDEN), (anew, Level.TOKENS)):
        lora.install(task.model, state)
        task.model.frozen_mode()
        losses.append(task.example_losses(task.batch(rows, level)))
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-5)


@every_case
def test_a_unit_moves_what_a_site_tells_by_at_most_its_bound(kind: str, family: str) -> None:
    """Scores outside [0, 1], or losses without a bound, would not be covered by the noise."""
    task = kind_task(kind, family)
    state = moved(task.model, by=5.0)  # large, so that losses are
    rows = np.arange(NUM_ROWS)
    whole = unit_sums(task, state, Units.single(rows))
    for gone in rows:
        rest = unit_sums(task, state, Units.single(rows[rows != gone]))
        assert float((whole - rest).norm()) <= SENSITIVITY + 1e-5


def test_a_score_that_is_no_share_is_cut_before_it_is_told() -> None:
    task = kind_task("regression", "bert")

    def wild(figures: Tensor) -> tuple[Tensor, Tensor]:
        return torch.full((len(figures),), 1e6), torch.full((len(figures),), -1e6)

    object.__setattr__(task.objective, "judged", wild)
    found = unit_sums(task, moved(task.model), Units.single(np.arange(3)))
    assert found.tolist() == [3.0, 0.0]


def test_a_token_head_has_no_features() -> None:
    task = kind_task("tags", "bert", megabytes=64)
    state: Any = lora.initial_state(task.model, seed=0)
    assert task.level(state, ("head.weight",)) is Level.HIDDEN
