"""Weights that are rounded once give the bits of those that autocast rounds each time."""

from __future__ import annotations

import copy
import gc
import pickle
import weakref
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from hushtune.common import lora
from hushtune.common.model import Level
from hushtune.common.rounded_weights import keep_rounded, most_bytes

from ..client.families import adapted, make_task, moved, summed, tiny_base

MAKE: dict[str, Callable[[], nn.Module]] = {
    "linear": lambda: nn.Linear(6, 5),
    "no bias": lambda: nn.Linear(6, 5, bias=False),
    "wide": lambda: nn.Linear(6, 384),
    "conv1d": lambda: Conv1D(5, 6),
}


def outputs(layer: Any, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """What a layer gives under autocast, and the gradient of its inputs."""
    inputs = inputs.clone().requires_grad_()
    with torch.autocast("cpu", torch.bfloat16):
        found = layer(inputs)
    found.float().square().sum().backward()
    assert inputs.grad is not None
    return found.detach(), inputs.grad


def is_as_autocast_rounds(one: torch.Tensor, other: torch.Tensor) -> bool:
    """The same bits: but a sum that is added up in another order is one rounding off where it lies
    between two, as of some 40,000 values one does."""
    apart = one != other
    rounding = 2**-7 * other.float().abs().max()
    return int(apart.sum()) <= max(1, one.numel() // 10) and bool(
        ((one - other).float().abs() <= rounding).all()
    )


@pytest.mark.parametrize("kind", MAKE)
@pytest.mark.parametrize("shape", [(3, 6), (2, 3, 6)])
def test_a_layer_gives_the_same_bits(kind: str, shape: tuple[int, ...]) -> None:
    plain = MAKE[kind]().requires_grad_(False)
    kept = copy.deepcopy(plain)
    keep_rounded(nn.Sequential(kept), but=())
    inputs = torch.randn(shape)
    for _ in range(2):  # rounded, then kept
        for one, other in zip(outputs(kept, inputs), outputs(plain, inputs), strict=True):
            assert one.dtype == other.dtype
            assert is_as_autocast_rounds(one, other)
    assert torch.equal(kept(inputs), plain(inputs))  # in float32 where nothing asks for less
    assert set(kept.state_dict()) == set(plain.state_dict())


@pytest.mark.parametrize("trained", [(), (0,), (2,), (4,)])
def test_where_each_input_has_one_reader_a_pass_and_its_gradients_are_the_same_bits(
    trained: tuple[int, ...],
) -> None:
    """Nothing is shared, so that nothing adds up in another precision."""
    plain = nn.Sequential(nn.Linear(6, 48), nn.GELU(), Conv1D(40, 48), nn.Tanh(), nn.Linear(40, 3))
    plain.requires_grad_(False)
    for place in trained:
        plain[place].requires_grad_(True)
    kept = copy.deepcopy(plain)
    keep_rounded(kept, but=[own for own in kept.parameters() if own.requires_grad])
    inputs = torch.randn(2, 7, 6)
    for one, other in zip(outputs(kept, inputs), outputs(plain, inputs), strict=True):
        assert is_as_autocast_rounds(one, other)
    for one, other in zip(kept.parameters(), plain.parameters(), strict=True):
        assert (one.grad is None) == (other.grad is None) == (not one.requires_grad)
        assert one.grad is None or is_as_autocast_rounds(one.grad, other.grad)


def test_what_is_kept_follows_the_weight() -> None:
    layer = nn.Linear(6, 5).requires_grad_(False)
    keep_rounded(nn.Sequential(layer), but=())
    inputs = torch.randn(2, 6)
    before, _ = outputs(layer, inputs)
    twin = copy.deepcopy(layer)
    with torch.no_grad():
        layer.weight.mul_(-2)
    changed, _ = outputs(layer, inputs)
    plain = nn.Linear(6, 5).requires_grad_(False)
    plain.load_state_dict(layer.state_dict())
    assert torch.equal(changed, outputs(plain, inputs)[0])
    layer.load_state_dict(twin.state_dict())
    assert torch.equal(outputs(layer, inputs)[0], before)
    assert torch.equal(outputs(twin, inputs)[0], before)


@pytest.mark.parametrize(
    ("family", "head"), [("bert", "mean"), ("gpt2", "own"), ("llama", "mean"), ("vit", "own")]
)
def test_a_private_sum_is_that_of_autocast_and_what_is_trained_is_not_kept(
    family: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    sums = []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(lora, "keep_rounded", lambda *_, **__: None)
        model = adapted(family, head, model={"precision": "bfloat16"})
        kinds = {type(module).__module__ for module in model.modules()}
        assert (keep_rounded.__module__ in kinds) == kept
        task, state = make_task(family, head, model=model), moved(model)
        first = summed(task, range(5), state=state, clip_norm=0.1)
        sums.append((first, summed(task, range(5), state=moved(model, seed=2), clip_norm=0.1)))
    for one, other in zip(*sums, strict=True):
        assert (one - other).norm() < 0.01 * other.norm()
    assert not torch.equal(*sums[0])


@torch.no_grad()
@pytest.mark.parametrize(
    ("family", "head"), [("bert", "own"), ("gpt2", "mean"), ("qwen3", "mean"), ("vit", "mean")]
)
def test_a_whole_model_s_outputs_are_those_of_autocast(
    family: str, head: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever reads an input reads the same bits of it, shared or not."""
    found: list[torch.Tensor] = []
    for kept in (True, False):
        if not kept:
            monkeypatch.setattr(lora, "keep_rounded", lambda *_, **__: None)
        model = adapted(family, head, model={"precision": "bfloat16"})
        assert (keep_rounded.__module__ in {type(m).__module__ for m in model.modules()}) == kept
        task, state = make_task(family, head, model=model), moved(model)
        lora.install(model, state)
        batch = task.batch(np.arange(5), Level.TOKENS)
        found += [model(batch.inputs) for _ in range(2)]  # rounded, then kept
    *of_kept, plain, _ = found
    assert torch.equal(*of_kept)
    assert (of_kept[0] - plain).norm() < 2**-7 * plain.norm()
    assert float(plain.std(0).max()) > 1e-3  # rows are told apart


def test_float32_keeps_nothing() -> None:
    assert tiny_base("bert").dtype == torch.float32
    model = adapted("bert")
    assert not any(type(m).__module__ == keep_rounded.__module__ for m in model.modules())


def test_inputs_that_many_layers_read_are_rounded_once() -> None:
    layers = [nn.Linear(6, 5).requires_grad_(trained) for trained in (False, False, True)]
    keep_rounded(nn.ModuleList(layers), but=layers[2].parameters())
    leaf = torch.randn(4, 6, requires_grad=True)
    inputs = leaf * 1
    read: list[torch.Tensor] = []
    with torch.autocast("cpu", torch.bfloat16):
        for layer in layers:
            layer.register_forward_pre_hook(lambda _module, args: read.append(args[0]))
        found = torch.stack([layer(inputs) for layer in layers])
        kept = vars(inputs)["_in_bfloat16"][1]
        assert read[2] is kept  # the trained one reads what the frozen ones have read
        with torch.no_grad():
            inputs.mul_(2)
        doubled = layers[0](inputs)  # changed in place: rounded anew
    assert vars(inputs)["_in_bfloat16"][1] is not kept
    bias = layers[0].bias.bfloat16()
    torch.testing.assert_close(doubled - bias, 2 * (found[0] - bias), atol=0.02, rtol=0.02)
    found.float().sum().backward()
    assert leaf.grad is not None
    expected = torch.stack([layer.weight for layer in layers]).sum((0, 1))
    torch.testing.assert_close(leaf.grad, expected.expand(4, 6), atol=0.03, rtol=0.03)
    assert torch.equal(layers[2](inputs), nn.functional.linear(inputs, *layers[2].parameters()))


@contextmanager
def bfloat16_layers() -> Iterator[tuple[nn.Linear, nn.Linear]]:
    """A frozen layer and one that is trained, under autocast."""
    layers = nn.Linear(6, 5).requires_grad_(False), nn.Linear(6, 5)
    keep_rounded(nn.ModuleList(layers), but=layers[1].parameters())
    with torch.autocast("cpu", torch.bfloat16):
        yield layers


def test_inputs_rounded_without_a_graph_are_rounded_again_for_one() -> None:
    inputs = torch.randn(4, 6, requires_grad=True) * 1
    with bfloat16_layers() as (frozen, _):
        with torch.no_grad():
            frozen(inputs)
        assert frozen(inputs).requires_grad
        with torch.no_grad():
            assert not frozen(inputs).requires_grad


@pytest.mark.parametrize("leaf", [True, False])
def test_rounded_inputs_go_with_the_inputs(leaf: bool) -> None:
    inputs = torch.randn(4, 6, requires_grad=True)
    inputs = inputs if leaf else inputs * 1
    gone = weakref.ref(inputs)
    with bfloat16_layers() as (frozen, trained):
        (frozen(inputs) + trained(inputs)).sum().backward()
    del inputs
    gc.collect()
    assert gone() is None


def test_inference_keeps_nothing_that_training_would_read() -> None:
    inputs = torch.randn(4, 6)
    with bfloat16_layers() as (frozen, trained):
        expected = frozen(inputs.clone())
        with torch.inference_mode():
            assert torch.equal(frozen(inputs), expected)
            assert torch.equal(frozen(inputs.clone()), expected)
        trained(inputs).sum().backward()
    assert trained.weight.grad is not None


def test_inputs_may_be_given_by_name() -> None:
    inputs = torch.randn(4, 6)
    with bfloat16_layers() as layers:
        for layer in layers:
            assert torch.equal(layer(input=inputs), layer(inputs))


@pytest.mark.parametrize("how", [copy.deepcopy, lambda model: pickle.loads(pickle.dumps(model))])
def test_a_copied_or_pickled_model_rounds_its_own_weights(how: Callable[[Any], Any]) -> None:
    inputs = torch.randn(4, 6)
    with bfloat16_layers() as layers:
        before = [layer(inputs) for layer in layers]
        copied = how(nn.ModuleList(layers))
        assert vars(layers[0])["_rounded_weight"] is not None
        assert vars(copied[0])["_rounded_weight"] is None
        for layer, expected in zip(copied, before, strict=True):
            assert torch.equal(layer(inputs), expected)


def test_at_most_four_bytes_of_a_value_are_kept() -> None:
    """Two for the forward pass, two for the backward pass, of what is frozen and linear."""
    model = nn.Sequential(nn.Linear(6, 5), Conv1D(7, 5), nn.LayerNorm(7), nn.Linear(7, 2))
    assert most_bytes(model) == 0
    keep_rounded(model, but=model[3].parameters())
    with torch.autocast("cpu", torch.bfloat16):
        model(torch.randn(3, 6, requires_grad=True)).sum().backward()
    held = [vars(vars(layer)["_rounded_weight"]) for layer in (model[0], model[1])]
    packed = sum(name in own for own in held for name in ("_packed", "_packed_transposed"))
    a_value = 4 if packed else 2
    assert packed in (0, 4)
    assert most_bytes(model) == a_value * (6 * 5 + 5 * 7)
