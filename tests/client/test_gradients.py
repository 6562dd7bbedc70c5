"""The two ways to take each example's gradient: the layers' own, and Opacus' hooks.

The other files of this folder test the first, which is what runs; here the second is held to the
same numbers, and to the bound that clipping is for.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hushtune.client import dp, example_gradients
from hushtune.common import lora
from hushtune.common.model import AdaptedModel, Level
from hushtune.common.tasks.units import Units
from hushtune.common.tuning import GradientMethod

from . import test_dp, test_groups, test_images
from .families import NUM_ROWS, adapted, make_task, moved, summed, tensor_task

CASES = [
    *[("bert", "mean"), ("gpt2", "own"), ("llama", "mean"), ("vit", "mean")],
    *[("distilbert", "own"), ("resnet", "own")],
]
every_case = pytest.mark.parametrize(("family", "head"), CASES)
MIXED = Units(np.array([4, 0, 7, 2, 8, 1], dtype=np.int64), np.array([0, 1, 3, 6], dtype=np.int64))
"""Units of one, two and three rows, of several lengths."""


@pytest.fixture
def fused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AdaptedModel, "gradients", GradientMethod.FUSED)


def both(task: Any, rows: Any, monkeypatch: pytest.MonkeyPatch, **how: Any) -> tuple[Tensor, ...]:
    """The clipped sum by each method."""
    found: list[Tensor] = []
    for method in GradientMethod:
        monkeypatch.setattr(AdaptedModel, "gradients", method)
        found.append(summed(task, rows, **how))
    return tuple(found)


@every_case
@pytest.mark.parametrize("rows", [range(NUM_ROWS), MIXED], ids=["rows", "units"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_both_ways_give_the_same_sum(
    family: str, head: str, rows: Any, precision: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = adapted(family, head, model={"precision": precision})
    task, state = make_task(family, head, model=model), moved(model)
    without_a = tuple(key for key in state.keys if "lora_A" not in key)
    for keys in (state.keys, without_a):
        how: dict[str, Any] = {"state": state, "clip_norm": 0.1, "microbatch": 4, "keys": keys}
        hooks, fused = both(task, rows, monkeypatch, **how)
        assert fused.norm() > 0.1
        assert torch.linalg.norm(fused - hooks) <= 1e-5 * 0.1


@pytest.mark.parametrize("kind", ["embedding", "inner", "dropout", "kept states"])
def test_both_ways_give_the_same_sum_of_other_adapters(
    kind: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: dict[str, Any] = {
        "embedding": {"targets": ("word_embeddings", "value"), "layers": 0},
        "dropout": {"dropout": 0.5},
    }.get(kind, {})
    model = adapted("bert", inner=kind == "inner", **settings)
    others = {"cache_megabytes": 8} if kind == "kept states" else {}
    task, state = make_task("bert", "mean", model=model, **others), moved(model)
    # Where R is trained, the factors beside it are not.
    keys = tuple(key for key in state.keys if kind != "inner" or key[-1] not in "AB")
    found: list[Tensor] = []
    for method in GradientMethod:
        monkeypatch.setattr(AdaptedModel, "gradients", method)
        torch.manual_seed(3)
        how: dict[str, Any] = {"level": task.level(state, keys), "keys": keys}
        found.append(summed(task, range(NUM_ROWS), state=state, clip_norm=0.1, **how))
    assert found[0].norm() > 0.1
    assert torch.linalg.norm(found[0] - found[1]) <= 1e-6


@every_case
@pytest.mark.usefixtures("fused")
def test_fused_one_record_moves_the_sum_by_at_most_the_clip_norm(family: str, head: str) -> None:
    test_dp.test_one_record_moves_the_sum_by_at_most_the_clip_norm(family, head)


@every_case
@pytest.mark.usefixtures("fused")
def test_fused_the_sum_is_that_of_one_example_at_a_time(family: str, head: str) -> None:
    test_dp.test_equals_one_example_at_a_time(family, head, 4)


@pytest.mark.parametrize(("family", "head"), CASES[:4])
@pytest.mark.usefixtures("fused")
def test_fused_one_unit_moves_the_sum_by_at_most_the_clip_norm(family: str, head: str) -> None:
    test_groups.test_one_unit_moves_the_sum_by_at_most_the_clip_norm(family, head)


@pytest.mark.usefixtures("fused")
def test_fused_all_views_of_an_image_are_clipped_as_one() -> None:
    test_images.test_all_views_of_an_image_are_clipped_as_one("vit", "mean")


@pytest.mark.parametrize("fault", ["batch axis lost", "tensor unused"])
@pytest.mark.usefixtures("fused")
def test_fused_gradients_that_are_not_one_an_example_are_refused(fault: str) -> None:
    test_dp.test_gradients_that_are_not_one_an_example_are_refused(fault)


def test_no_gradient_of_the_batch_is_taken_and_what_was_left_before_is_not_counted() -> None:
    task = tensor_task()
    state = moved(task.model)
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, state.keys)
    rows = np.arange(3, dtype=np.int64)
    layers = example_gradients.layers_of(task.model)
    assert layers is not None
    for _ in range(2):  # the second pass begins with what the first has left
        with example_gradients.recorded(layers):
            task.example_losses(task.batch(rows, Level.TOKENS)).sum().backward()
            assert all(parameter.grad is None for parameter in trained.values())
            found = {key: parameter.grad_sample.clone() for key, parameter in trained.items()}
            assert all(len(sample) == 3 for sample in found.values())
        assert not any(hasattr(parameter, "grad_sample") for parameter in trained.values())
        assert not any("forward" in vars(module) for module in task.model.modules())
    plain = torch.autograd.grad(
        task.example_losses(task.batch(rows, Level.TOKENS)).sum(), list(trained.values())
    )
    for sample, gradient in zip(found.values(), plain, strict=True):
        torch.testing.assert_close(sample.sum(0), gradient, rtol=1e-4, atol=1e-6)


def test_gradients_of_a_layer_that_is_used_twice_add_up() -> None:
    layer, inputs = nn.Linear(3, 3), torch.randn(4, 3)
    with example_gradients.recorded([layer]):
        layer(layer(inputs)).square().sum().backward()
        found = layer.weight.grad_sample.clone()  # pyright: ignore
    for row in range(4):
        layer.zero_grad()
        layer(layer(inputs[row : row + 1])).square().sum().backward()
        torch.testing.assert_close(found[row], layer.weight.grad)


@pytest.mark.usefixtures("fused")
def test_layers_of_other_kinds_are_left_to_the_hooks() -> None:
    task = tensor_task()
    state = moved(task.model)
    lora.install(task.model, state)
    lora.set_trainable(task.model, state.keys)
    assert example_gradients.layers_of(task.model)
    head = task.model.head
    task.model.head = nn.Sequential(nn.LayerNorm(32), nn.Linear(32, 3))
    assert example_gradients.layers_of(task.model) is None
    task.model.training_mode()
    with dp.per_example_gradients(task.model):
        task.example_losses(task.batch(np.arange(3), Level.TOKENS)).sum().backward()
        norm = task.model.head[0].weight
        assert norm.grad_sample.shape == (3, 32)
    task.model.head = head
