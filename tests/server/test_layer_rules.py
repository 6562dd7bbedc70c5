"""Rules that change frozen weights, on real layers: the merged model is the mean of the sites'.

Compared weight by weight with everything written out, in a model that plain peft merges. On a
square module a change put in the wrong way round fits, and nothing but its values tells.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, cast

import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from hushtune.common import lora, lora_files
from hushtune.common.adapter import AdapterState
from hushtune.common.config import AggregationConfig
from hushtune.common.messages import ClientUpdate
from hushtune.common.model import AdaptedModel
from hushtune.server.aggregation.aggregator import make_aggregator

from ..client.families import adapted, tiny_base
from ..common.test_lora import inputs
from .test_estimates import update

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# GPT-2's Conv1D hold W^T: c_proj (32, 32) and c_attn (32, 96). Llama's v_proj is (16, 32). An
# embedding is (50, 32).
KINDS = [
    ("gpt2", "mean", ("attn.c_proj",)),
    ("gpt2", "own", ("attn.c_attn",)),
    ("gpt2", "mean", ("wte", "attn.c_attn")),
    ("bert", "mean", ("query", "intermediate.dense")),
    ("bert", "own", ("word_embeddings", "value")),
    ("llama", "mean", ("v_proj", "down_proj")),
]
every_kind = pytest.mark.parametrize(
    ("family", "head", "targets"), KINDS, ids=[f"{f}-{h}-{'+'.join(t)}" for f, h, t in KINDS]
)
SHARES = (0.5, 0.3, 0.2)


def drawn(model: AdaptedModel, seed: int, *, by: float) -> AdapterState:
    random = torch.Generator().manual_seed(seed)
    return lora.initial_state(model, seed=0).map(
        lambda tensor: by * torch.randn(tensor.shape, generator=random)
    )


def as_stored(module: nn.Module, product: Tensor) -> Tensor:
    """``product (d_out, d_in)`` as a module holds its weight."""
    return product.T if isinstance(module, Conv1D | nn.Embedding) else product


def mean_model(base: Any, before: AdapterState, updates: Sequence[ClientUpdate]) -> Any:
    """The base with ``W0`` as changed so far, and ``sum_k p_k s B_k A_k`` on top."""
    with torch.no_grad():
        for module in before.spec.targets:
            layer = base.get_submodule(module)
            change = before.base_change(module)
            whole = torch.zeros_like(as_stored(layer, layer.weight), dtype=torch.float64)
            if change is not None:
                whole += change[1].double() @ change[0].double()
            for share, one in zip(SHARES, updates, strict=True):
                site = before.merge(before.select(one.delta.keys) + one.delta)
                a, b = site.factors(module)
                whole += share * site.spec.scale * (b.double() @ a.double())
            layer.weight += as_stored(layer, whole)
    return base


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rule", ["fedex", "flora"])
@every_kind
def test_the_merged_model_is_the_mean_of_the_sites(
    rule: str, family: str, head: str, targets: tuple[str, ...], rslora: bool, tmp_path: Path
) -> None:
    """Two rounds: the second one adds to what the first has changed."""
    layout: dict[str, Any] = {"targets": targets, "rslora": rslora}
    model = adapted(family, head, **layout)
    state = drawn(model, 1, by=0.3)
    aggregator = make_aggregator(AggregationConfig.model_validate({"rule": rule}), seed=5)
    memory = aggregator.init(state)
    for round in (1, 2):
        deltas = [drawn(model, 10 * round + site, by=0.2) for site in range(3)]
        updates = [
            replace(update(site, delta, size), round=round)
            for site, delta, size in zip("abc", deltas, (50, 30, 20), strict=True)
        ]
        expected = mean_model(tiny_base(family, head).double(), state, updates)
        memory, state = aggregator.apply(memory, state, updates)
        assert all(state.base_change(module) is not None for module in state.spec.targets)

    plain = lora_files.plain_adapter(state)
    lora_files.save_adapter(model, plain, tmp_path, base_name="base")
    loaded = PeftModel.from_pretrained(tiny_base(family, head), str(tmp_path)).double()
    merged = cast(Any, loaded).merge_and_unload().eval()
    for module in state.spec.targets:
        weight = expected.get_submodule(module).weight
        assert (weight - tiny_base(family, head).get_submodule(module).weight).abs().max() > 0.1
        found = merged.get_submodule(module).weight
        torch.testing.assert_close(found, weight, rtol=1e-5, atol=1e-5)

    # The model that a federation goes on with computes with those weights too.
    lora.install(model, state)
    model.frozen_mode()
    with torch.no_grad():
        ours, theirs = model.base(**inputs(family))[0], merged(**inputs(family))[0]
    assert theirs.std() > 1e-3
    torch.testing.assert_close(ours, theirs.float(), rtol=1e-5, atol=1e-5)


@every_kind
def test_sites_train_from_what_they_are_given(
    family: str, head: str, targets: tuple[str, ...]
) -> None:
    """A state of each rule goes over the wire and comes out as it went in."""
    model = adapted(family, head, targets=targets)
    state = drawn(model, 1, by=0.3)
    for rule in ("ffa", "fedit", "fedex", "flora", "flexlora", "fedsvd"):
        aggregator = make_aggregator(AggregationConfig.model_validate({"rule": rule}), seed=5)
        updates = [update(site, drawn(model, at, by=0.2)) for at, site in enumerate("ab")]
        _, after = aggregator.apply(aggregator.init(state), state, updates)
        again = AdapterState.from_bytes(after.to_bytes())
        lora.install(model, again)
        assert lora.extract(model).to_bytes() == after.to_bytes()
