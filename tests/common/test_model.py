"""The adapted model: modes, pooling, and a base that is left as it was."""

from __future__ import annotations

import pytest
import torch

from hushtune.common import lora, lora_targets
from hushtune.common.errors import UnsupportedModelError

from ..client.families import CASES, IMAGES, PIXELS, adapted, make_task, moved, tiny_base

every_case = pytest.mark.parametrize(("family", "head"), CASES)


def inputs(family: str) -> dict[str, torch.Tensor]:
    random = torch.Generator().manual_seed(2)
    if family in PIXELS:
        side = 16 if family in IMAGES else 64
        return {"pixel_values": torch.randn(4, 3, side, side, generator=random)}
    ids = torch.randint(3, 50, (4, 6), generator=random)
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids)}


@every_case
def test_training_mode_trains_the_adapter_and_nothing_else(family: str, head: str) -> None:
    model = adapted(family, head, dropout=0.5)
    state = moved(model)
    lora.install(model, state)
    trained = lora.set_trainable(model, state.keys)
    model.training_mode()
    kept = {id(parameter) for parameter in trained.values()}
    for name, module in model.named_modules():
        own = list(module.parameters(recurse=False))
        if module.training:
            assert ".lora_dropout" in name or {id(p) for p in own} <= kept, name
        else:
            assert not any(parameter.requires_grad for parameter in own), name
    model.frozen_mode()
    assert not any(module.training for module in model.modules())


def test_the_mean_head_reads_the_mean_of_real_tokens_at_a_fixed_norm() -> None:
    model = adapted("bert", model={"feature_scale": 7.0})
    given = inputs("bert")
    given["attention_mask"][0, 3:] = 0
    _, features = model.frozen_activations(given)
    assert features is not None
    torch.testing.assert_close(features.norm(dim=1), torch.full((4,), 7.0))
    with torch.no_grad():
        states = tiny_base("bert")(**given).last_hidden_state
    means = torch.stack([states[0, :3].mean(0), *states[1:].mean(1)])
    torch.testing.assert_close(features, 7.0 * torch.nn.functional.normalize(means, dim=1))
    with torch.no_grad():
        given["input_ids"][0, 3:] = 9  # padding must not be read
        assert torch.allclose(model.frozen_activations(given)[1], features, atol=1e-5)  # pyright: ignore


def test_features_need_the_mean_head() -> None:
    model = adapted("bert", "own")
    with pytest.raises(UnsupportedModelError, match="features"):
        model({"features": torch.zeros(1, 32)})


def test_blocks_come_back_after_a_pass_that_failed() -> None:
    model = adapted("bert")
    before = list(model.blocks)
    given = inputs("bert")
    with pytest.raises(RuntimeError):
        model({**given, "hidden": torch.zeros(4, 6, 5)})
    assert list(model.blocks) == before
    assert not model.blocks[model.first_adapted]._forward_pre_hooks


@every_case
def test_training_leaves_the_base_s_fingerprint(family: str, head: str) -> None:
    task = make_task(family, head)
    own = lora_targets.head_modules(tiny_base(family, head)) if head == "own" else ()
    assert lora_targets.fingerprint(tiny_base(family, head), without=own) == task.model.fingerprint
    other = tiny_base(family, head)
    with torch.no_grad():
        next(other.parameters()).add_(1e-3)
    assert lora_targets.fingerprint(other, without=own) != task.model.fingerprint
