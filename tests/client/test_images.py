"""Per-example gradients of images through the product's own rows: one image, one bounded share."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import numpy as np
import pytest
import torch

from hushtune.client.train import train_locally
from hushtune.common import lora
from hushtune.common.config_augment import AugmentConfig
from hushtune.common.model import Level
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.tasks.augment import ImageViews, TextViews, keys_of
from hushtune.common.tasks.image_processor import ImageProcessor
from hushtune.common.tasks.image_rows import ImageRows
from hushtune.common.tasks.kinds.classification import text_classification
from hushtune.common.tasks.objectives import Classification, class_weights
from hushtune.common.tasks.supervised import Supervised
from hushtune.common.tasks.targets import DenseTargets
from hushtune.common.tasks.units import Units

from .families import (
    CLASS_WEIGHTS,
    CONVOLUTIONAL,
    IMAGES,
    NUM_ROWS,
    adapted,
    flat,
    labels,
    make_order,
    moved,
    one_gradient,
    plan_off,
    summed,
    token_rows,
)

CASES = [
    *((family, head) for family in (*IMAGES, "resnet") for head in ("mean", "own")),
    *((family, "mean") for family in CONVOLUTIONAL if family != "resnet"),
    ("mobilenet_v2", "own"),
]
every_case = pytest.mark.parametrize(("family", "head"), CASES)
HOW = AugmentConfig(views=3, flip=True, rotation=20, crop=0.3, noise=0.1)
ALL = np.arange(NUM_ROWS, dtype=np.int64)


def image_rows(side: int, positions: int) -> ImageRows:
    """Random images in memory; none is in a file."""
    pixels = torch.randint(
        0, 256, (NUM_ROWS, 3, side, side), generator=torch.Generator().manual_seed(3)
    )
    half = (0.5, 0.5, 0.5)
    processor = ImageProcessor(
        resize=(side, side),
        height=side,
        width=side,
        resample=2,
        scale=1 / 255,
        offset=0.0,
        mean=half,
        std=(0.25, 0.25, 0.25),
        positions=positions,
        processor=None,
    )
    return ImageRows([f"{n}:?" for n in range(NUM_ROWS)], processor, pixels.to(torch.uint8))


def task_of(
    family: str, head: str, how: AugmentConfig | None = None, *, without: int = 0, **others: Any
) -> Supervised:
    """``without``: so many of the first images are not in the table."""
    rows = image_rows(16, 5) if family in IMAGES else image_rows(64, 1)
    rows = replace(rows, texts=rows.texts[without:], kept=rows.kept[without:])
    return Supervised(
        adapted(family, head),
        rows,
        DenseTargets(torch.from_numpy(labels()[without:])),
        Classification(class_weights(CLASS_WEIGHTS, 3)),
        augmented=None if how is None else ImageViews(rows, keys_of(rows.texts), how),
        **others,
    )


@cache
def task(family: str, head: str) -> Supervised:
    return task_of(family, head)


@cache
def changed_task(family: str, head: str) -> Supervised:
    return task_of(family, head, HOW)


def norms(of: Supervised, state: Any) -> list[float]:
    return [float(summed(of, [row], state=state, clip_norm=1e9).norm()) for row in ALL]


# --------------------------------------------------------------------------- one image ----


@every_case
def test_a_gradient_is_that_of_the_image_alone(family: str, head: str) -> None:
    """By plain autograd, in a batch of the same shape: what is beside it is zero there."""
    of = task(family, head)
    state = moved(of.model)
    for row in (0, 4):
        found = summed(of, [row], state=state, clip_norm=1e9, microbatch=1)
        trained = lora.set_trainable(of.model, state.keys)
        of.model.frozen_mode()
        expected = one_gradient(of, row, trained)
        assert torch.linalg.norm(found - expected) <= 1e-5 * expected.norm()


@every_case
def test_an_image_moves_the_sum_by_the_clip_norm_at_most(family: str, head: str) -> None:
    """And by no more than rounding else: who else is there changes nothing for the others."""
    of = task(family, head)
    state = moved(of.model)
    clip = float(np.median(norms(of, state)))
    whole = summed(of, ALL, state=state, clip_norm=clip, microbatch=4)
    for row in (0, 5, 8):
        rest = summed(of, np.delete(ALL, row), state=state, clip_norm=clip, microbatch=4)
        alone = summed(of, [row], state=state, clip_norm=clip, microbatch=4)
        assert float(alone.norm()) <= clip * (1 + 1e-6)
        assert float((whole - rest).norm()) <= clip * (1 + 1e-5)
        assert float((whole - rest - alone).norm()) <= 1e-5 * clip


@every_case
def test_levels_give_the_same_answers(family: str, head: str) -> None:
    of = task_of(family, head, cache_megabytes=64)
    start = lora.initial_state(of.model, seed=0)
    heads = tuple(key for key in start.keys if key.startswith("head."))
    convolutional = family in CONVOLUTIONAL
    deep = Level.TOKENS if convolutional else Level.HIDDEN
    assert of.level(start, heads) is (Level.FEATURES if head == "mean" else deep)
    state = moved(of.model)
    assert of.level(state, state.keys) is deep
    lora.install(of.model, start)
    of.model.frozen_mode()
    with torch.no_grad():
        plain = of.model(of.batch(ALL, Level.TOKENS).inputs)
        cheap = of.model(of.batch(ALL, of.level(start, heads)).inputs)
        torch.testing.assert_close(cheap, plain, rtol=1e-4, atol=1e-4)
        lora.install(of.model, state)
        plain = of.model(of.batch(ALL, Level.TOKENS).inputs)
        deep_answers = of.model(of.batch(ALL, deep).inputs)
    assert plain.std(0).min() > 1e-3
    torch.testing.assert_close(deep_answers, plain, rtol=1e-4, atol=1e-4)


# ------------------------------------------------------------------------------- views ----


VIEWED = pytest.mark.parametrize(
    ("family", "head"), [("vit", "mean"), ("dinov2", "own"), ("resnet", "mean"), ("resnet", "own")]
)


def drawn(of: Supervised, rows: Any, state: Any, clip: float, *, microbatch: int = 12) -> Any:
    """The clipped sum of one and the same step: the draw comes from torch's stream."""
    with torch.random.fork_rng():
        torch.manual_seed(11)
        return summed(of, rows, state=state, clip_norm=clip, microbatch=microbatch)


@VIEWED
def test_all_views_of_an_image_are_clipped_as_one(family: str, head: str) -> None:
    """Clipped each by itself and added, an image of three views would move the sum by thrice as
    much as noise is made for."""
    of = changed_task(family, head)
    state = moved(of.model)
    clip = 0.2 * min(norms(task(family, head), state))  # every view is clipped
    whole = drawn(of, ALL, state, clip)
    for row in (0, 3, 8):
        rest = drawn(of, np.delete(ALL, row), state, clip)
        assert float((whole - rest).norm()) <= clip * (1 + 1e-5)
        assert float((whole - rest).norm()) >= 0.99 * clip


@VIEWED
def test_an_image_has_the_same_views_alone_and_in_a_batch(family: str, head: str) -> None:
    of = changed_task(family, head)
    state = moved(of.model)
    clip = float(np.median(norms(task(family, head), state)))
    whole = drawn(of, ALL, state, clip)
    alone = sum(drawn(of, [row], state, clip) for row in ALL)
    assert float((whole - alone).norm()) <= 1e-5 * clip
    other = summed(of, ALL, state=state, clip_norm=clip)  # another draw
    assert float((whole - other).norm()) > 1e-2 * clip


def test_an_image_that_is_in_no_table_leaves_the_others_views_as_they_are() -> None:
    """Whoever knows a step's draw then learns no more of the image than the clip norm allows."""
    of, rest_of = changed_task("vit", "mean"), task_of("vit", "mean", HOW, without=1)
    state = moved(of.model)
    clip = 0.2 * min(norms(task("vit", "mean"), state))
    whole, rest = drawn(of, ALL, state, clip), drawn(rest_of, ALL[:-1], state, clip)
    assert 0.99 * clip <= float((whole - rest).norm()) <= clip * (1 + 1e-5)


@VIEWED
def test_a_gradient_is_the_mean_over_its_views(family: str, head: str) -> None:
    of = changed_task(family, head)
    state = moved(of.model)
    found = drawn(of, [4], state, 1e9)
    with torch.random.fork_rng():
        torch.manual_seed(11)
        draw = int(torch.randint(2**62, ()))
    trained = lora.set_trainable(of.model, state.keys)
    of.model.frozen_mode()
    views = of.batch(np.array([4, 4, 4]), Level.TOKENS, draw=draw)
    assert (views.inputs["pixel_values"][0] - views.inputs["pixel_values"][1]).abs().max() > 0.1
    mean = of.example_losses(views).mean()
    gradients = torch.autograd.grad(mean, list(trained.values()))
    expected = flat(dict(zip(trained, gradients, strict=True)))
    assert float((found - expected).norm()) <= 1e-5 * float(expected.norm())


def test_views_of_a_patient_s_images_are_one_unit() -> None:
    of = changed_task("vit", "mean")
    state = moved(of.model)
    patients = Units(ALL, np.array([0, 4, 6, 9]))
    clip = 1e-3
    whole = drawn(of, patients, state, clip)
    rest = drawn(of, patients.take(np.array([1, 2])), state, clip)
    assert 0.9 * clip <= float((whole - rest).norm()) <= clip * (1 + 1e-5)


def test_evaluation_never_changes_an_image(monkeypatch: pytest.MonkeyPatch) -> None:
    plain, changed = task("vit", "mean"), changed_task("vit", "mean")
    state = moved(plain.model)
    lost = plain.row_figures(state, ALL)[1]

    def forbidden(*_: object) -> None:
        raise AssertionError("changed in evaluation")

    monkeypatch.setattr(ImageViews, "inputs", forbidden)
    for _ in range(2):
        assert torch.equal(changed.row_figures(state, ALL)[1], lost)
    figures = changed.metrics_by_group(state, {"all": ALL})
    assert figures == plain.metrics_by_group(state, {"all": ALL})
    assert changed.level(state) is Level.HIDDEN


def test_training_on_views_starts_from_the_images_themselves() -> None:
    of = task_of("vit", "mean", HOW, cache_megabytes=64)
    start = lora.initial_state(of.model, seed=0)
    heads = tuple(key for key in start.keys if key.startswith("head."))
    assert of.level(start, heads) is Level.TOKENS
    assert of.level(start, start.keys) is Level.TOKENS
    assert of.level(start) is Level.FEATURES  # to evaluate
    with pytest.raises(ValueError, match="changed"):
        of.batch(ALL, Level.HIDDEN, draw=1)


def trained(of: Supervised, seed: int) -> torch.Tensor:
    state = lora.initial_state(of.model, seed=0)
    order = make_order(state, plan_off(), local_steps=2)
    random = np.random.default_rng(seed)
    delta = train_locally(
        order, task=of, units=Units.single(ALL), noise=NoiseSource(), random=random
    )
    return flat(delta.tensors)


def test_changes_are_drawn_from_the_site_s_own_stream() -> None:
    """The same for one state of it, whatever the process's generators are at."""
    of = changed_task("vit", "mean")
    torch.manual_seed(1)
    first = trained(of, 5)
    torch.manual_seed(2)
    assert torch.equal(trained(of, 5), first)
    assert not torch.equal(trained(task("vit", "mean"), 5), first)


# ------------------------------------------------------------------------------- texts ----


def text_task(how: AugmentConfig | None) -> Supervised:
    tokens = token_rows("bert")
    numbers = torch.cat([torch.arange(int(n), dtype=torch.int32) for n in tokens.lengths])
    words = type(tokens)(numbers, tokens.offsets, -1, tokens.max_tokens)
    augmented = None if how is None else TextViews(tokens, words, np.arange(NUM_ROWS), how)
    return text_classification(adapted("bert"), tokens, labels(), augmented=augmented)


def test_all_views_of_a_text_are_clipped_as_one() -> None:
    of = text_task(AugmentConfig(views=3, word_dropout=0.3, word_swap=0.3))
    state = moved(of.model)
    clip = 0.2 * min(norms(text_task(None), state))
    whole = drawn(of, ALL, state, clip)
    for row in (0, 3, 8):
        rest = drawn(of, np.delete(ALL, row), state, clip)
        assert 0.99 * clip <= float((whole - rest).norm()) <= clip * (1 + 1e-5)
    alone = sum(drawn(of, [row], state, clip) for row in ALL)
    assert float((whole - alone).norm()) <= 1e-5 * clip
