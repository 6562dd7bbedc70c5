"""Convolutional bases: 1 by 1 convolutions as linear layers, and batch norm that never trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as tf
from torch import nn

from hushtune.common import lora, lora_files
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.errors import TargetModuleError, UnsupportedModelError
from hushtune.common.lora_convolutions import Pointwise, is_pointwise
from hushtune.common.lora_targets import find_targets, fingerprint

from ..client.families import CONVOLUTIONAL, adapted, moved, tiny_base

every_family = pytest.mark.parametrize("family", CONVOLUTIONAL)
IMAGES = torch.randn(3, 3, 64, 64, generator=torch.Generator().manual_seed(4))


@pytest.mark.parametrize("stride", [1, 2, (2, 1)])
@pytest.mark.parametrize("bias", [True, False])
def test_a_pointwise_convolution_is_a_linear_layer(stride: Any, bias: bool) -> None:
    convolution = nn.Conv2d(6, 10, 1, stride=stride, bias=bias)
    linear = Pointwise(convolution)
    images = torch.randn(4, 6, 9, 7)
    torch.testing.assert_close(linear(images), convolution(images), rtol=1e-5, atol=1e-5)
    again = linear.convolution()
    assert torch.equal(again.weight, convolution.weight)
    torch.testing.assert_close(again(images), convolution(images), rtol=1e-5, atol=1e-5)


def test_what_is_no_matrix_on_the_channels_is_not_taken_for_one() -> None:
    assert is_pointwise(nn.Conv2d(4, 4, 1))
    for other in (nn.Conv2d(4, 4, 3), nn.Conv2d(4, 4, 1, groups=2), nn.Conv2d(4, 4, 1, padding=1)):
        assert not is_pointwise(other)


@every_family
@torch.no_grad()
def test_an_adapted_base_computes_what_it_did(family: str) -> None:
    expected = tiny_base(family)(pixel_values=IMAGES).last_hidden_state
    model = adapted(family)
    found = model._run_base({"pixel_values": IMAGES}).last_hidden_state
    assert expected.std() > 1e-3 * expected.abs().max()
    scale = float(expected.abs().max())
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-5, atol=1e-5)
    assert model.fingerprint == fingerprint(tiny_base(family))


@every_family
@torch.no_grad()
def test_features_are_the_mean_of_the_last_map(family: str) -> None:
    model = adapted(family)
    lora.install(model, lora.initial_state(model, seed=0))
    hidden, features = model.frozen_activations({"pixel_values": IMAGES})
    assert hidden is None
    assert features is not None
    mean = tiny_base(family)(pixel_values=IMAGES).last_hidden_state.mean((2, 3))
    expected = nn.functional.normalize(mean, dim=-1) * 10
    torch.testing.assert_close(features, expected, rtol=1e-4, atol=1e-4)
    assert features.std(0).mean() > 0.05  # images are told apart


@pytest.mark.parametrize(
    ("family", "head"), [("resnet", "own"), ("efficientnet", "mean"), ("mobilenet_v2", "own")]
)
@torch.no_grad()
def test_merged_it_is_a_plain_convolutional_model(family: str, head: str, tmp_path: Path) -> None:
    model = adapted(family, head)
    state = moved(model)
    lora.install(model, state)
    model.eval()
    inputs = {"pixel_values": IMAGES}
    run = model._run_base(inputs)
    name = "logits" if head == "own" else "last_hidden_state"
    expected = run[name].clone()
    base = lora_files.merged(model)
    base.save_pretrained(tmp_path)
    auto = tf.AutoModelForImageClassification if head == "own" else tf.AutoModel
    loaded = auto.from_pretrained(tmp_path)
    assert not any(isinstance(module, Pointwise) for module in loaded.modules())
    scale = float(expected.abs().max())
    found = loaded.eval()(**inputs)[name]
    torch.testing.assert_close(found / scale, expected / scale, rtol=1e-4, atol=1e-4)
    plain = tiny_base(family, head)(**inputs)[name]
    assert (plain - expected).abs().max() > 1e-3 * scale  # the adapter was at work


@every_family
def test_the_top_blocks_are_adapted(family: str) -> None:
    base = tiny_base(family)
    one, two, every = (len(find_targets(base, AdapterConfig(layers=n))) for n in (1, 2, 0))
    assert 0 < one < two <= every
    with pytest.raises(UnsupportedModelError, match=r"(?s)adapter.layers.*999"):
        find_targets(base, AdapterConfig(layers=999))
    with pytest.raises(TargetModuleError, match=r"nothing_such(?s:.*)adapter.targets"):
        find_targets(base, AdapterConfig(targets=("nothing_such",)))


def test_what_lies_behind_all_blocks_can_be_named() -> None:
    base = tiny_base("mobilenet_v2")
    found = find_targets(base, AdapterConfig(targets=("conv_1x1.convolution",), layers=1))
    assert found == ("conv_1x1.convolution",)
    with pytest.raises(TargetModuleError):  # 3 by 3
        find_targets(tiny_base("resnet"), AdapterConfig(targets=("layer.1.convolution",)))


def test_batch_norm_in_training_mode_is_refused() -> None:
    base = tiny_base("resnet")
    next(m for m in base.modules() if isinstance(m, nn.BatchNorm2d)).train()
    with pytest.raises(UnsupportedModelError, match="BatchNorm in training mode"):
        lora.attach(base, model=ModelConfig(), adapter=AdapterConfig(rank=1), num_outputs=2, seed=0)


@every_family
def test_batch_norm_stays_in_evaluation_mode_and_never_moves(family: str) -> None:
    model = adapted(family)
    state = moved(model)
    lora.install(model, state)
    lora.set_trainable(model, state.keys)
    model.training_mode()
    norms = [m for m in model.modules() if isinstance(m, nn.modules.batchnorm._BatchNorm)]
    before = [(m.running_mean.clone(), m.running_var.clone()) for m in norms]  # pyright: ignore
    assert not any(m.training for m in norms)
    assert norms or family == "convnext"
    model({"pixel_values": IMAGES}).sum().backward()
    for module, (mean, var) in zip(norms, before, strict=True):
        assert torch.equal(module.running_mean, mean)
        assert torch.equal(module.running_var, var)
        assert all(p.grad is None for p in module.parameters())


def test_of_a_convolutional_model_no_layers_are_dropped() -> None:
    with pytest.raises(UnsupportedModelError, match=r"model\.layer = 1"):
        lora.attach(
            tiny_base("resnet"),
            model=ModelConfig(layer=1),
            adapter=AdapterConfig(rank=1),
            num_outputs=2,
            seed=0,
        )
