"""The peft bridge: targets, initial factors, reading out, putting in, saving for others to load."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel
from torch import nn
from transformers import BertConfig, BertModel

from hushtune.common import lora, lora_files, lora_targets
from hushtune.common.adapter import AdapterState
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.errors import TargetModuleError, UnsupportedModelError
from hushtune.common.model import Head

from ..client.families import (
    CASES,
    CONVOLUTIONAL,
    IMAGES,
    NUM_LABELS,
    PADDED_WITH_ONE,
    PIXELS,
    TEXT_CASES,
    TRANSFORMER_CASES,
    adapted,
    moved,
    tiny_base,
)

every_case = pytest.mark.parametrize(("family", "head"), CASES)


def inputs(family: str) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    if family in PIXELS:
        side = 16 if family in IMAGES else 64
        return {"pixel_values": torch.randn(4, 3, side, side, generator=random)}
    ids = torch.randint(3, 50, (4, 6), generator=random)
    mask = torch.ones_like(ids)
    mask[0, 4:], ids[0, 4:] = 0, 1 if family in PADDED_WITH_ONE else 0
    return {"input_ids": ids, "attention_mask": mask}


@torch.no_grad()
def logits(model: Any, family: str) -> torch.Tensor:
    model.eval()
    return model(inputs(family))


# ------------------------------------------------------------------------------ targets ----


@pytest.mark.parametrize(("family", "head"), TRANSFORMER_CASES)
def test_value_and_output_projections_of_the_top_blocks_are_found(family: str, head: str) -> None:
    base = tiny_base(family, head)
    found = lora_targets.find_targets(base, AdapterConfig(layers=2))
    assert len(found) == 4
    assert {"0", "1", "2"} & {part for name in found for part in name.split(".")} == {"1", "2"}
    assert len(lora_targets.find_targets(base, AdapterConfig(layers=0))) == 6
    assert len(lora_targets.find_targets(base, AdapterConfig(layers=3))) == 6
    with pytest.raises(UnsupportedModelError, match=r"(?s)adapter.layers.*99.*1 to 3, or 0"):
        lora_targets.find_targets(base, AdapterConfig(layers=99))
    ends = lora_targets.FAMILY_TARGETS[family]
    assert all(name.endswith(ends) for name in found)
    assert all(isinstance(base.get_submodule(name), nn.Module) for name in found)


def test_twenty_modules_and_more_are_each_named() -> None:
    """Of so many peft keeps only the endings that they share."""
    kept = BertConfig(
        vocab_size=50,
        hidden_size=8,
        num_hidden_layers=6,
        num_attention_heads=2,
        intermediate_size=8,
    )
    settings = AdapterConfig(rank=1, layers=0, targets=("query", "dense"))
    model = lora.attach(
        BertModel(kept), model=ModelConfig(), adapter=settings, num_outputs=2, seed=0
    )
    assert len(lora.spec(model).targets) == 24
    assert lora.extract(model).keys == lora.spec(model).all_keys()


def test_a_target_in_no_adapted_block_is_refused() -> None:
    base = tiny_base("bert")
    low = lora_targets.find_targets(base, AdapterConfig(layers=0, targets=("query",)))[0]
    with pytest.raises(TargetModuleError, match=r"(?s)no adapted block.*adapter.layers = 1"):
        lora_targets.find_targets(base, AdapterConfig(layers=1, targets=(low,)))


def test_given_targets_are_taken_in_place_of_the_family_s() -> None:
    base = tiny_base("bert")
    found = lora_targets.find_targets(base, AdapterConfig(layers=1, targets=("query", "key")))
    assert found == (
        "encoder.layer.2.attention.self.key",
        "encoder.layer.2.attention.self.query",
    )
    whole = "encoder.layer.1.attention.self.query"
    assert lora_targets.find_targets(base, AdapterConfig(layers=0, targets=(whole,))) == (whole,)


def test_a_missing_target_names_the_nearest_one() -> None:
    with pytest.raises(TargetModuleError) as caught:
        lora_targets.find_targets(
            tiny_base("bert"), AdapterConfig(targets=("attention.self.valu",))
        )
    assert "attention.self.valu" in caught.value.message
    assert "'attention.self.value'" in str(caught.value.remedy)
    assert "intermediate.dense" in str(caught.value.expected)


def test_a_family_without_default_targets_asks_for_them() -> None:
    base = tiny_base("bert")
    base.config.model_type = "unheard-of"
    with pytest.raises(TargetModuleError, match="no default targets"):
        lora_targets.find_targets(base, AdapterConfig())
    assert lora_targets.find_targets(base, AdapterConfig(targets=("query",)))


# --------------------------------------------------------------------------- the base ----


def test_batchnorm_in_training_mode_is_refused() -> None:
    base = tiny_base("bert")
    base.encoder.layer[1].odd = nn.BatchNorm1d(4)
    base.eval()
    lora_targets.refuse_unfit(base)
    base.encoder.layer[1].odd.train()
    with pytest.raises(UnsupportedModelError, match="BatchNorm") as caught:
        lora_targets.refuse_unfit(base)
    assert caught.value.given == "encoder.layer.1.odd"


def test_batchnorm_in_a_head_that_is_trained_is_refused_at_once() -> None:
    """In evaluation mode too, as a loaded model is: training puts the head into training mode."""
    base = tiny_base("bert", "own")
    base.classifier = nn.Sequential(nn.BatchNorm1d(32), nn.Linear(32, NUM_LABELS))
    base.eval()
    lora_targets.refuse_unfit(base)
    with pytest.raises(
        UnsupportedModelError, match=r'(?s)BatchNorm.*model\.head = "mean"'
    ) as caught:
        lora.attach(
            base,
            model=ModelConfig(head="own"),
            adapter=AdapterConfig(rank=2),
            num_outputs=NUM_LABELS,
            seed=0,
        )
    assert caught.value.given == "classifier.0"


@pytest.mark.parametrize(("family", "head"), [*TEXT_CASES, ("vit", "mean"), ("dinov2", "mean")])
def test_kept_first_blocks_compute_what_they_did_before(family: str, head: str) -> None:
    base = tiny_base(family, head)
    seen: list[torch.Tensor] = []
    lora_targets.transformer_blocks(base)[1].register_forward_hook(
        lambda _module, _inputs, output: seen.append(
            output if isinstance(output, torch.Tensor) else output[0]
        )
    )
    with torch.no_grad():
        base(**inputs(family))
        lora_targets.keep_first_blocks(base, 2)
        base(**inputs(family))
    assert len(lora_targets.transformer_blocks(base)) == base.config.num_hidden_layers == 2
    torch.testing.assert_close(seen[0], seen[1])


def test_blocks_that_are_not_there_cannot_be_kept() -> None:
    base = tiny_base("bert")
    lora_targets.keep_first_blocks(base, None)
    lora_targets.keep_first_blocks(base, 3)
    assert len(lora_targets.transformer_blocks(base)) == 3
    with pytest.raises(UnsupportedModelError, match="deeper"):
        lora_targets.keep_first_blocks(base, 4)


def test_a_base_without_blocks_or_without_a_head_is_refused() -> None:
    base = tiny_base("bert")
    base.config.num_hidden_layers = 5
    with pytest.raises(UnsupportedModelError, match="no stack"):
        lora_targets.transformer_blocks(base)
    assert not any(parameter.requires_grad for parameter in adapted("bert").parameters())


# ----------------------------------------------------------------------- initial state ----


@every_case
def test_a_new_adapter_leaves_the_base_s_output_as_it_was(family: str, head: str) -> None:
    model = adapted(family, head)
    if head == "mean":
        model.head.weight.data.normal_()  # pyright: ignore[reportOptionalMemberAccess]
        with torch.no_grad():
            plain = tiny_base(family)(**inputs(family)).last_hidden_state
            mask = inputs(family).get("attention_mask")
            features = model._pool(plain, {"attention_mask": mask})
            expected = model.head(features)  # pyright: ignore[reportOptionalCall]
    else:
        state = lora.extract(model)
        base = tiny_base(family, head)
        with torch.no_grad():
            for name in state.spec.head:
                base.get_parameter(name).copy_(state.tensors[f"head.{name}"])
            expected = base(**inputs(family)).logits
        assert expected.shape == (4, NUM_LABELS)
    assert expected.std() > 1e-4
    rounding = 1e-5 if family in CONVOLUTIONAL else 1e-6  # of convolutions as linear layers
    torch.testing.assert_close(logits(model, family), expected, rtol=1e-5, atol=rounding)


@every_case
def test_initial_factors_are_orthonormal_and_the_seed_s_own(family: str, head: str) -> None:
    model = adapted(family, head)
    first, again, other = (lora.initial_state(model, seed=seed) for seed in (4, 4, 5))
    assert first.to_bytes() == again.to_bytes() != other.to_bytes()
    for name in first.spec.targets:
        a, b = first.factors(name)
        torch.testing.assert_close(a @ a.T, torch.eye(2), rtol=0, atol=1e-5)
        assert not b.any()
        assert not torch.equal(a, other.factors(name)[0])
    installed = lora.extract(model)
    assert installed.to_bytes() == lora.initial_state(model, seed=0).to_bytes()


@pytest.mark.parametrize("rslora", [False, True])
def test_the_scale_is_the_description_s(rslora: bool) -> None:
    model = adapted("bert", rank=4, alpha=6.0, rslora=rslora)
    state = moved(model)
    assert state.spec.scale == pytest.approx(6.0 / (math.sqrt(4) if rslora else 4))
    lora.install(model, state)
    base = tiny_base("bert")
    with torch.no_grad():
        for name in state.spec.targets:
            a, b = state.factors(name)
            base.get_submodule(name).weight += state.spec.scale * b @ a
        merged = base(**inputs("bert")).last_hidden_state
        features = model._pool(merged, inputs("bert"))
        expected = model.head(features)  # pyright: ignore[reportOptionalCall]
    torch.testing.assert_close(logits(model, "bert"), expected, rtol=1e-4, atol=1e-5)


def test_of_a_pair_each_text_is_read_for_itself() -> None:
    ids = torch.tensor(
        [[2, 7, 8, 3, 9, 3, 0, 0], [2, 7, 3, 9, 9, 9, 3, 0], [2, 7, 8, 9, 9, 9, 9, 9]]
    )
    mask = torch.tensor([[1] * 6 + [0] * 2, [1] * 7 + [0], [1] * 8])
    base = tiny_base("bert")
    model = lora.attach(
        tiny_base("bert"),
        model=ModelConfig(precision="float32", feature_scale=5.0),
        adapter=AdapterConfig(rank=2),
        num_outputs=3,
        seed=0,
        head=Head.PAIR,
    )
    model.separator = 3
    assert (model.hidden_size, model.feature_size) == (32, 64)
    assert lora.initial_state(model, seed=0).tensors["head.weight"].shape == (3, 64)
    given = {"input_ids": ids, "attention_mask": mask}
    hidden, features = model.frozen_activations(given)
    with torch.no_grad():
        states = base(**given).last_hidden_state
        parts = [((0, 3), (3, 6)), ((0, 2), (2, 7)), ((0, 8), None)]
        for row, (first, second) in enumerate(parts):
            one = nn.functional.normalize(states[row, slice(*first)].mean(0), dim=0) * 5
            none = torch.zeros(32)
            two = none
            if second is not None:
                two = nn.functional.normalize(states[row, slice(*second)].mean(0), dim=0) * 5
            torch.testing.assert_close(features[row], torch.cat([one, two]), rtol=1e-4, atol=1e-5)
        torch.testing.assert_close(model(given), model({"features": features}))
        torch.testing.assert_close(model(given), model({**given, "hidden": hidden}))


# ------------------------------------------------------------------------ out and in ----


@every_case
def test_what_is_put_in_comes_out(family: str, head: str) -> None:
    model = adapted(family, head)
    state = moved(model)
    lora.install(model, state)
    assert lora.extract(model).to_bytes() == state.to_bytes()
    assert state.keys == lora.spec(model).all_keys()
    some = state.keys[1::2]
    assert lora.extract(model, some).keys == some
    out = lora.extract(model)
    lora.install(model, lora.initial_state(model, seed=9))
    assert out.to_bytes() == state.to_bytes()  # a copy, and no view of the model


def test_another_description_or_shape_is_refused() -> None:
    model = adapted("bert")
    state = moved(model)
    for change, named in (
        ({"base": "0" * 64}, "base"),
        ({"alpha": 5.0}, "alpha"),
        ({"rslora": True}, "rslora"),
    ):
        spec = replace(state.spec, **change)
        with pytest.raises(TargetModuleError) as caught:
            lora.install(model, AdapterState(spec, state.tensors))
        assert str(caught.value.given).startswith(named)
    before = lora.extract(model).to_bytes()
    wrong = {"head.bias": torch.zeros(NUM_LABELS + 1)}
    with pytest.raises(TargetModuleError, match="wrong shape"):
        lora.install(model, AdapterState(state.spec, {**state.tensors, **wrong}))
    with pytest.raises(TargetModuleError):
        lora.install(model, moved(adapted("bert", layers=1)))
    lora.install(model, AdapterState(state.spec, {}))
    assert lora.spec(model) == state.spec
    assert len(before) == len(lora.extract(model).to_bytes())


# ---------------------------------------------------------------------------- saving ----


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@every_case
def test_peft_loads_what_was_saved(family: str, head: str, tmp_path: Path) -> None:
    model = adapted(family, head)
    state = moved(model)
    expected_base = tiny_base(family, head)
    expected_base.config.save_pretrained(tmp_path / "base")
    folder = tmp_path / "adapter"
    lora_files.save_adapter(model, state, folder, base_name=str(tmp_path / "base"))
    assert not (folder / "README.md").exists()
    loaded = PeftModel.from_pretrained(expected_base, str(folder)).eval()
    with torch.no_grad():
        output = loaded(**inputs(family))
        if head == "mean":
            weights = safetensors.torch.load_file(folder / lora_files.HEAD_FILE)
            mask = inputs(family).get("attention_mask")
            features = model._pool(output.last_hidden_state, {"attention_mask": mask})
            found = features @ weights["weight"].T + weights["bias"]
        else:
            found = output.logits
    lora.install(model, state)
    expected = logits(model, family)
    assert expected.std() > 1e-3
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
