"""Whatever a rule made, what is saved is one plain LoRA adapter that computes the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from peft import PeftModel

from hushtune.common import lora, lora_files
from hushtune.common.adapter import AdapterState, a_key, b_key, base_keys
from hushtune.common.lora_files import plain_adapter
from hushtune.common.model import AdaptedModel

from ..client.families import adapted, at_rank, moved, tiny_base, with_change
from .test_lora import inputs, logits

FAMILIES = [
    *(("bert", head) for head in ("mean", "own")),
    *(("gpt2", head) for head in ("mean", "own")),  # Conv1D, and c_attn is (32, 96)
    ("vit", "own"),
]


def uneven(model: AdaptedModel) -> AdapterState:
    """Changes of 1 to 3 columns, and none of one module."""
    state = with_change(moved(model), 3)
    tensors = dict(state.tensors)
    for place, module in enumerate(state.spec.targets):
        a, b = base_keys(module)
        if place == 0:
            del tensors[a], tensors[b]
        else:
            tensors[a], tensors[b] = state.tensors[a][:place], state.tensors[b][:, :place]
    return AdapterState(state.spec, tensors)


# In the tiny models the least width of an adapted module is 32.
STATES: dict[str, tuple[dict[str, Any], Any]] = {
    "plain": ({}, moved),
    "another rank": ({}, lambda model: at_rank(model, 5)),
    "a change of weights": ({}, lambda model: with_change(moved(model), 3)),
    "a wide change": ({}, lambda model: with_change(moved(model), 70)),
    "a change and another rank": ({}, lambda model: with_change(at_rank(model, 4), 2)),
    "changes of several widths": ({}, uneven),
    "R": ({"inner": True}, moved),
    "R at another rank": ({"inner": True}, lambda model: at_rank(model, 4)),
    "R and a change": ({"inner": True}, lambda model: with_change(moved(model), 40)),
    "rsLoRA and a change": ({"rslora": True}, lambda model: with_change(at_rank(model, 3), 3)),
    "rsLoRA and R": ({"rslora": True, "inner": True}, lambda model: at_rank(model, 3)),
}


def from_files(family: str, head: str, model: AdaptedModel, folder: Path) -> list[torch.Tensor]:
    """Logits by peft alone: with the adapter beside the base, and merged into it."""
    loaded: Any = PeftModel.from_pretrained(tiny_base(family, head), str(folder)).eval()
    found: list[torch.Tensor] = []
    for merge in (False, True):
        whole = loaded.merge_and_unload() if merge else loaded
        with torch.no_grad():
            output = whole(**inputs(family))
            if head == "own":
                found.append(output.logits)
                continue
            weights = safetensors.torch.load_file(folder / lora_files.HEAD_FILE)
            mask = inputs(family).get("attention_mask")
            features = model._pool(output.last_hidden_state, {"attention_mask": mask})
            found.append(features @ weights["weight"].T + weights["bias"])
    return found


@pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")  # peft asks for it
@pytest.mark.parametrize("kind", STATES)
@pytest.mark.parametrize(("family", "head"), FAMILIES)
def test_plain_peft_computes_what_the_rule_s_own_adapter_does(
    family: str, head: str, kind: str, tmp_path: Path
) -> None:
    how, make = STATES[kind]
    targets = ("attn.c_attn", "attn.c_proj") if family == "gpt2" else ()
    model = adapted(family, head, targets=targets, **how)
    state = make(model)
    lora.install(model, state)
    expected = logits(model, family)
    plain = plain_adapter(state)
    assert plain.keys == plain.spec.all_keys()
    assert not plain.spec.inner
    tiny_base(family, head).config.save_pretrained(tmp_path / "base")
    folder = tmp_path / "adapter"
    lora_files.save_adapter(model, plain, folder, base_name=str(tmp_path / "base"))
    for found in from_files(family, head, model, folder):
        torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-5)
    lora.install(model, lora.initial_state(model, seed=0))  # the adapter is at work
    assert (logits(model, family) - expected).abs().max() > 1e-3


def test_a_plain_adapter_stays_itself_and_keeps_its_rank() -> None:
    model = adapted("bert")
    state = moved(model)
    assert plain_adapter(state) is state
    with_r = moved(adapted("bert", inner=True))
    assert plain_adapter(with_r).spec == replace(with_r.spec, inner=False)


def test_no_more_rank_is_saved_than_there_is() -> None:
    """Beside the factors stands the change, and both together are no wider than the weight."""
    model = adapted("bert")
    state = moved(model)
    for n, expected in ((1, 3), (7, 9), (30, 32), (500, 32)):
        plain = plain_adapter(with_change(state, n))
        assert plain.spec.rank == expected
        assert plain.spec.scale == 1.0
    plain = plain_adapter(uneven(model))
    first, *others = plain.spec.targets
    assert plain.spec.rank == 2 + len(others)
    a, b = plain.tensors[a_key(first)], plain.tensors[b_key(first)]
    assert not a[2:].any()  # filled up
    assert not b[:, 2:].any()
    torch.testing.assert_close(
        b @ a, state.spec.scale * state.tensors[b_key(first)] @ state.tensors[a_key(first)]
    )
