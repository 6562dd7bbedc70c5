"""Each kind of layer that is adapted, against its weight written out."""

from __future__ import annotations

import math
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
import transformers as tf
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hushtune.common import lora, lora_files, lora_targets
from hushtune.common.adapter import AdapterState, a_key, b_key, base_keys
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.errors import TargetModuleError, UnsupportedModelError
from hushtune.common.model import AdaptedModel

from ..client.families import NUM_LABELS, adapted, moved, tiny_base, tiny_config
from .test_lora import inputs

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# What is particular: Conv1D holds W^T and c_attn is (32, 96), Llama's v_proj (16, 32) with two key
# heads, BERT's intermediate.dense (48, 32); an embedding is (50, 32) and ELECTRA's (50, 16).
KINDS = [
    ("bert", ("intermediate.dense",)),
    ("bert", ("word_embeddings",)),
    ("bert", ("word_embeddings", "value")),
    ("electra", ("word_embeddings",)),
    ("gpt2", ("attn.c_attn",)),
    ("gpt2", ("attn.c_proj",)),
    ("gpt2", ("wte", "attn.c_attn")),
    ("llama", ("v_proj",)),
    ("llama", ("embed_tokens", "v_proj")),
]
every_kind = pytest.mark.parametrize(
    ("family", "targets"), KINDS, ids=[f"{family}-{'+'.join(names)}" for family, names in KINDS]
)
EMBEDDINGS = [
    ("bert", "word_embeddings"),
    ("roberta", "word_embeddings"),
    ("electra", "word_embeddings"),
    ("distilbert", "word_embeddings"),
    ("gpt2", "wte"),
    ("llama", "embed_tokens"),
    ("qwen2", "embed_tokens"),
]
every_embedding = pytest.mark.parametrize(("family", "name"), EMBEDDINGS)
every_head = pytest.mark.parametrize("head", ["mean", "own"])


def change_of(base: nn.Module, module: str, product: Tensor) -> Tensor:
    """What is added to the weight of a module, as it stores it, for ``product (d_out, d_in)``."""
    kind = base.get_submodule(module)
    return product.T if isinstance(kind, Conv1D | nn.Embedding) else product


@torch.no_grad()
def written_out(base: Any, state: AdapterState) -> Any:
    """The base with ``W0 + base_B base_A + s B A`` for weights, and the head's tensors."""
    for module in state.spec.targets:
        a, b = state.factors(module)
        product = state.spec.scale * (b.double() @ a.double())
        before = state.base_change(module)
        if before is not None:
            product += before[1].double() @ before[0].double()
        base.get_submodule(module).weight += change_of(base, module, product).float()
    own = dict(base.named_parameters())
    for name in state.spec.head:
        if name in own:  # the mean-pooled head is no part of the base
            own[name].copy_(state.tensors[f"head.{name}"])
    return base.eval()


@torch.no_grad()
def output(model: Any, family: str) -> Tensor:
    """Logits of a classifier, and the last states of a bare base."""
    found = model.eval()(**inputs(family))
    return found.logits if hasattr(found, "logits") else found.last_hidden_state


def with_base_change(state: AdapterState, *, rank: int = 3) -> AdapterState:
    random = torch.Generator().manual_seed(8)
    made = dict(state.tensors)
    for module in state.spec.targets:
        for key, like in zip(base_keys(module), state.factors(module), strict=True):
            shape = (rank, like.shape[1]) if key.endswith("A") else (like.shape[0], rank)
            made[key] = 0.2 * torch.randn(shape, generator=random)
    return AdapterState(state.spec, made)


def close(one: Tensor, other: Tensor) -> None:
    assert other.std() > 1e-3
    torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


# --------------------------------------------------------------- attach, install, export ----


@every_head
@every_kind
@pytest.mark.parametrize("rslora", [False, True])
def test_a_model_computes_with_the_weight_written_out(
    family: str, targets: tuple[str, ...], head: str, rslora: bool
) -> None:
    """With a change of the frozen weight too, and at a rank that it was not attached with."""
    model = adapted(family, head, targets=targets, rslora=rslora)
    plain = output(tiny_base(family, head), family)
    for rank in (2, 5):
        spec = replace(lora.spec(model), rank=rank)
        assert spec.scale == pytest.approx(4.0 / (math.sqrt(rank) if rslora else rank))
        lora.install(model, AdapterState(spec, {}))
        for state in (moved(model, by=0.3), with_base_change(moved(model))):
            lora.install(model, state)
            assert lora.extract(model).to_bytes() == state.to_bytes()
            expected = output(written_out(tiny_base(family, head), state), family)
            close(output(model.base, family), expected)
            assert (expected - plain).abs().max() > 1e-2
    lora.install(model, lora.initial_state(model, seed=4))
    if head == "mean":
        close(output(model.base, family), plain)


@every_kind
def test_modules_of_one_name_are_told_apart_by_their_block(
    family: str, targets: tuple[str, ...]
) -> None:
    model = adapted(family, targets=targets)
    state = moved(model, by=0.3)
    names = state.spec.targets
    assert len(names) == len(set(names)) >= len(targets)
    found = []
    for chosen in names:
        tensors = dict(state.tensors)
        for other in names:
            if other != chosen:
                tensors[b_key(other)] = torch.zeros_like(tensors[b_key(other)])
        one = AdapterState(state.spec, tensors)
        lora.install(model, one)
        found.append(output(model.base, family))
        close(found[-1], output(written_out(tiny_base(family), one), family))
    for place, one in enumerate(found):
        assert all((one - other).abs().max() > 1e-4 for other in found[:place])


@every_head
@every_kind
@pytest.mark.parametrize("changed", [False, True])
def test_plain_peft_loads_and_merges_it(
    family: str, targets: tuple[str, ...], head: str, changed: bool, tmp_path: Path
) -> None:
    model = adapted(family, head, targets=targets, rslora=True)
    state = moved(model)
    state = with_base_change(state) if changed else state
    plain = lora_files.plain_adapter(state)
    lora_files.save_adapter(model, plain, tmp_path, base_name="base")
    lora.install(model, state)
    expected = output(model.base, family)
    loaded = PeftModel.from_pretrained(tiny_base(family, head), str(tmp_path)).eval()
    close(output(loaded, family), expected)
    whole = cast(Any, loaded).merge_and_unload()
    close(output(whole, family), expected)
    weights = written_out(tiny_base(family, head), state)
    spec = plain.spec
    again = adapted(family, head, targets=targets, alpha=spec.alpha, rslora=spec.rslora)
    lora.install(again, plain)
    ours = lora_files.merged(again)
    close(output(ours, family), expected)
    for name, parameter in weights.named_parameters():
        for other in (whole, ours):
            torch.testing.assert_close(other.get_parameter(name), parameter, rtol=0, atol=1e-5)


@every_embedding
def test_the_inner_factor_of_an_embedding_stands_between_b_and_a(family: str, name: str) -> None:
    base = tiny_base(family)
    model = lora.attach(
        base,
        model=ModelConfig(head="mean", precision="float32"),
        adapter=AdapterConfig(rank=2, alpha=4.0, targets=(name,)),
        num_outputs=NUM_LABELS,
        seed=0,
        inner=True,
    )
    state = moved(model)
    assert len(state.spec.all_keys()) == 3 + len(state.spec.head)
    lora.install(model, state)
    close(output(model.base, family), output(written_out(tiny_base(family), state), family))


# ----------------------------------------------------------------------------- embeddings ----


@every_head
@every_embedding
def test_an_embedding_is_adapted_where_it_is_named_and_only_there(
    family: str, name: str, head: str
) -> None:
    base = tiny_base(family, head)
    whole = lora_targets.name_of(base, base.get_input_embeddings())
    for layers in (0, 1, 3):  # which says nothing of what lies below the blocks
        config = AdapterConfig(layers=layers, targets=(name,))
        assert lora_targets.find_targets(base, config) == (whole,)
    assert lora_targets.find_targets(base, AdapterConfig(targets=(whole,))) == (whole,)
    assert whole not in lora_targets.find_targets(base, AdapterConfig(layers=0))
    both = lora_targets.find_targets(
        base, AdapterConfig(layers=1, targets=(name, *lora_targets.FAMILY_TARGETS[family]))
    )
    assert len(both) == 3
    assert whole in both


@every_embedding
def test_initial_factors_of_an_embedding(family: str, name: str) -> None:
    model = adapted(family, targets=(name,))
    first = lora.initial_state(model, seed=4)
    (module,) = first.spec.targets
    a, b = first.factors(module)
    width = tiny_base(family).get_submodule(module).weight.shape[1]
    assert (tuple(a.shape), tuple(b.shape)) == ((2, 50), (width, 2))
    torch.testing.assert_close(a @ a.T, torch.eye(2), rtol=0, atol=1e-5)
    assert not b.any()
    close(output(model.base, family), output(tiny_base(family), family))


@pytest.mark.parametrize(
    ("family", "name"),
    [("bert", "position_embeddings"), ("bert", "token_type_embeddings"), ("gpt2", "wpe")],
)
def test_other_embeddings_are_refused(family: str, name: str) -> None:
    with pytest.raises(TargetModuleError, match="plain one of tokens") as caught:
        lora_targets.find_targets(tiny_base(family), AdapterConfig(targets=(name,)))
    assert name in str(caught.value.given)
    assert "word_embeddings" in str(caught.value.expected) or family == "gpt2"
    assert name in str(caught.value.remedy)


def test_an_embedding_that_does_more_than_look_up_is_refused() -> None:
    class Scaled(nn.Embedding):
        pass

    for odd in (Scaled(50, 32), nn.Embedding(50, 32, max_norm=1.0)):
        base = tiny_base("bert")
        base.set_input_embeddings(odd)
        with pytest.raises(TargetModuleError, match="plain one of tokens"):
            lora_targets.find_targets(base, AdapterConfig(targets=("word_embeddings",)))


def test_a_misspelt_embedding_names_the_right_one() -> None:
    with pytest.raises(TargetModuleError) as caught:
        lora_targets.find_targets(tiny_base("bert"), AdapterConfig(targets=("word_embedings",)))
    assert "'embeddings.word_embeddings'" in str(caught.value.remedy)


def test_a_rank_above_an_embedding_s_width_is_refused() -> None:
    with pytest.raises(TargetModuleError, match=r"(?s)rank.*17.*word_embeddings of 16"):
        adapted("electra", targets=("word_embeddings",), rank=17)


def test_hidden_states_are_refused_above_an_adapted_embedding() -> None:
    model = adapted("bert", targets=("word_embeddings", "value"))
    with pytest.raises(UnsupportedModelError, match="what is below them is adapted"):
        model({**inputs("bert"), "hidden": torch.zeros(4, 6, 32)})
    assert model.first_adapted == 0


# --------------------------------------------------------------------------- tied weights ----


def attached(base: Any, *targets: str, layers: int = 1) -> AdaptedModel:
    return lora.attach(
        base,
        model=ModelConfig(head="mean", precision="float32"),
        adapter=AdapterConfig(rank=2, layers=layers, targets=targets),
        num_outputs=NUM_LABELS,
        seed=0,
    )


@pytest.mark.parametrize(
    ("family", "kind", "name"),
    [
        ("gpt2", tf.GPT2LMHeadModel, "transformer.wte"),
        ("llama", tf.LlamaForCausalLM, "model.embed_tokens"),
        ("qwen2", tf.Qwen2ForCausalLM, "model.embed_tokens"),
    ],
)
def test_a_weight_that_another_module_shares_is_refused(family: str, kind: Any, name: str) -> None:
    config = tiny_config(family)
    config.tie_word_embeddings = True
    short = name.rsplit(".", maxsplit=1)[-1]
    with pytest.raises(TargetModuleError, match="shares its weight") as caught:
        attached(kind(config).eval(), short)
    assert f"{name}, tied to lm_head" == caught.value.given
    assert "both" in caught.value.message
    assert "AutoModel" in str(caught.value.remedy)
    config.tie_word_embeddings = False
    untied = kind(config).eval()
    lora_targets.refuse_tied(
        untied, lora_targets.find_targets(untied, AdapterConfig(targets=(short,)))
    )
    # Nothing is tied to it where no such head is loaded.
    config.tie_word_embeddings = True
    model = attached(tf.AutoModel.from_config(config).eval(), short)
    lora.install(model, moved(model))
    assert lora_files.merged(model).get_input_embeddings().weight.shape == (50, 32)


def test_any_shared_weight_is_found_and_others_of_the_model_do_not_matter() -> None:
    base = tiny_base("bert")
    low, high = (base.encoder.layer[at].attention.self for at in (1, 2))
    high.value.weight = low.value.weight
    with pytest.raises(TargetModuleError, match="shares its weight") as caught:
        attached(base, "value")
    assert "layer.2.attention.self.value, tied to encoder.layer.1" in str(caught.value.given)
    assert attached(base, "query").first_adapted == 2
    twice = tiny_base("bert")
    twice.encoder.layer[1].attention.self.value = twice.encoder.layer[2].attention.self.value
    with pytest.raises(TargetModuleError, match="shares its weight"):
        attached(twice, "value", layers=2)


def test_keys_of_an_embedding_are_those_of_any_module() -> None:
    model = adapted("gpt2", targets=("wte",))
    assert {a_key("wte"), b_key("wte")} <= set(lora.extract(model).keys)
    assert lora_files.peft_names(model)[a_key("wte")] == "base_model.model.wte.lora_embedding_A"
