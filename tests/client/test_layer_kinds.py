"""Per-example gradients of embeddings and other kinds of layers, and where passes may start."""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from torch import Tensor, nn

from hushtune.client.train import train_locally
from hushtune.common import lora, lora_files
from hushtune.common.adapter import AdapterState, a_key, b_key
from hushtune.common.model import Level
from hushtune.common.privacy.noise import NoiseSource
from hushtune.common.seeds import rng
from hushtune.common.tasks.units import Units

from .families import (
    CLASS_WEIGHTS,
    NUM_ROWS,
    adapted,
    flat,
    make_order,
    make_task,
    moved,
    private_plan,
    reference_sum,
    summed,
    tiny_base,
)
from .test_dp import ROUNDING, median_norm
from .test_levels import logits, with_zero_b

pytestmark = pytest.mark.filterwarnings("ignore:.*is_gradient_checkpointing:FutureWarning")

# GPT-2's c_attn is a Conv1D of (32, 96), Llama's v_proj is (16, 32); ELECTRA's embedding is of 16.
KINDS = [
    ("bert", ("word_embeddings",)),
    ("bert", ("word_embeddings", "value")),
    ("roberta", ("word_embeddings", "intermediate.dense")),
    ("electra", ("word_embeddings",)),
    ("distilbert", ("word_embeddings", "lin1")),
    ("gpt2", ("wte", "c_attn", "mlp.c_fc")),
    ("llama", ("embed_tokens", "v_proj", "down_proj")),
    ("qwen2", ("embed_tokens",)),
]
every_kind = pytest.mark.parametrize(
    ("family", "targets"), KINDS, ids=[f"{family}-{'+'.join(names)}" for family, names in KINDS]
)
every_head = pytest.mark.parametrize("head", ["mean", "own"])
ALL = np.arange(NUM_ROWS, dtype=np.int64)


@cache
def kind_task(family: str, targets: tuple[str, ...], head: str) -> Any:
    model = adapted(family, head, targets=targets, rslora=True)
    return make_task(family, head, model=model, cache_megabytes=64)


# ------------------------------------------------------------------ gradients by example ----


@every_head
@every_kind
def test_equals_one_example_at_a_time(family: str, targets: tuple[str, ...], head: str) -> None:
    task = kind_task(family, targets, head)
    state = moved(task.model)
    clip = median_norm(task, state)
    for bound in (clip, 1e-3 * clip, 1e3 * clip):
        reference = reference_sum(task, ALL, state=state, clip_norm=bound)
        for microbatch in (1, 4, 100):
            found = summed(task, ALL, state=state, clip_norm=bound, microbatch=microbatch)
            assert torch.linalg.norm(found - reference) <= 1e-5 * min(bound, clip)


@every_head
@every_kind
def test_one_record_moves_the_sum_by_at_most_the_clip_norm(
    family: str, targets: tuple[str, ...], head: str
) -> None:
    task = kind_task(family, targets, head)
    state = moved(task.model)
    for clip in (1e-2, median_norm(task, state)):
        whole = summed(task, ALL, state=state, clip_norm=clip)
        for row in (0, 4, 8):
            rest = summed(task, np.delete(ALL, row), state=state, clip_norm=clip)
            alone = summed(task, [row], state=state, clip_norm=clip)
            assert (whole - rest).norm() <= clip * (1 + ROUNDING)
            assert torch.linalg.norm(whole - rest - alone) <= 1e-5 * clip


@pytest.mark.parametrize("kind", ["A", "B"])
@every_kind
def test_a_factor_alone_is_clipped_by_its_own_norm(
    family: str, targets: tuple[str, ...], kind: str
) -> None:
    """As under ffa or rolora, which train one of the two."""
    task = kind_task(family, targets, "mean")
    state = moved(task.model)
    keys = [key for key in state.keys if key.endswith(f"lora_{kind}")]
    for row in (0, 4):
        alone = summed(task, [row], state=state, clip_norm=1e-4, keys=keys)
        assert alone.norm() == pytest.approx(1e-4, rel=1e-4)


@pytest.mark.parametrize(("family", "targets"), [KINDS[1], KINDS[5]])
def test_units_of_several_rows(family: str, targets: tuple[str, ...]) -> None:
    """A unit's gradient is the mean over its rows, which hold tokens of their own each."""
    task = kind_task(family, targets, "mean")
    state = moved(task.model)
    units = Units(ALL, np.array([0, 3, 4, 9]))
    expected = torch.zeros(state.num_values(), dtype=torch.float64)
    for start, end in ((0, 3), (3, 4), (4, 9)):
        rows = [summed(task, [row], state=state, clip_norm=1e9) for row in range(start, end)]
        mean = torch.stack(rows).mean(0)
        expected += mean / max(1.0, float(mean.norm()) / 0.1)
    found = summed(task, units, state=state, clip_norm=0.1)
    assert torch.linalg.norm(found - expected) <= 1e-5


@pytest.mark.parametrize(
    ("family", "name"), [("bert", "word_embeddings"), ("gpt2", "wte"), ("llama", "embed_tokens")]
)
def test_gradients_are_those_of_plain_peft(family: str, name: str, tmp_path: Path) -> None:
    """Which holds the factors as bare parameters, and adds them in a forward pass of its own."""
    task = kind_task(family, (name,), "own")
    model, state = task.model, moved(task.model)
    lora_files.save_adapter(model, state, tmp_path, base_name="base")
    loaded = PeftModel.from_pretrained(tiny_base(family, "own"), str(tmp_path), is_trainable=True)
    loaded.eval()
    module = state.spec.targets[0]
    own = {
        key: dict(loaded.named_parameters())[
            f"base_model.model.{module}.lora_embedding_{x}.default"
        ]
        for key, x in ((a_key(module), "A"), (b_key(module), "B"))
    }
    for row in range(3):
        batch = task.batch(ALL[row : row + 1], Level.TOKENS)
        label = int(batch.targets[0])
        loss = -CLASS_WEIGHTS[label] * loaded(**batch.inputs).logits[0].log_softmax(0)[label]
        expected = torch.autograd.grad(loss, list(own.values()))
        keys = list(own)
        found = summed(task, [row], state=state, clip_norm=1e9, keys=keys)
        truth = flat(dict(zip(keys, expected, strict=True)))
        assert torch.linalg.norm(found - truth) <= 1e-5 * truth.norm()


def tokens_of(task: Any, rows: np.ndarray) -> set[int]:
    inputs = task.inputs.inputs(rows)
    return {int(token) for token in inputs["input_ids"][inputs["attention_mask"] == 1]}


def test_only_tokens_of_an_example_have_a_gradient_of_it() -> None:
    task = kind_task("bert", ("word_embeddings",), "mean")
    state = moved(task.model)
    (module,) = state.spec.targets
    for row in range(3):
        found = summed(task, [row], state=state, clip_norm=1e9, keys=[a_key(module)])
        columns = found.view(2, 50).abs().sum(0).nonzero().flatten().tolist()
        assert set(columns) == tokens_of(task, ALL[row : row + 1])


@pytest.mark.parametrize("seed", range(2))
def test_noise_reaches_tokens_that_no_row_holds(seed: int) -> None:
    """Else what moved would tell which words a site has, whatever epsilon says."""
    task = kind_task("bert", ("word_embeddings",), "mean")
    state = moved(task.model)
    (module,) = state.spec.targets
    absent = sorted(set(range(50)) - tokens_of(task, ALL))
    assert len(absent) >= 5
    order = make_order(state, private_plan(sampling_probability=1.0), local_steps=1)
    delta = train_locally(
        order,
        task=task,
        units=Units.single(ALL),
        noise=NoiseSource.insecure(seed),
        random=rng(seed, "layer kinds"),
    )
    moved_by = delta.tensors[a_key(module)]
    assert bool((moved_by != 0).all())
    # 2.0 * 1.0 / 4.0: noise multiplier, clip norm, denominator of the plan.
    assert float(moved_by[:, absent].std()) == pytest.approx(0.5, rel=0.5)


# -------------------------------------------------------------------------------- levels ----


@every_head
@every_kind
def test_nothing_below_an_adapted_embedding_is_kept(
    family: str, targets: tuple[str, ...], head: str
) -> None:
    task = kind_task(family, targets, head)
    state = moved(task.model)
    heads = tuple(key for key in state.keys if key.startswith("head."))
    assert task.level(state, state.keys) is Level.TOKENS
    assert task.level(state) is Level.TOKENS
    zero = with_zero_b(state)
    assert task.level(zero, state.keys) is Level.TOKENS
    least = Level.FEATURES if head == "mean" else Level.TOKENS
    assert task.level(zero, heads) is least
    assert task.level(zero) is least
    assert task._activations().hidden is None
    if head == "mean":
        reference = logits(task, Level.TOKENS, zero)
        close = torch.testing.assert_close
        close(logits(task, Level.FEATURES, zero), reference, rtol=1e-5, atol=1e-5)
        sums = [
            summed(task, ALL, state=zero, clip_norm=0.5, level=level, keys=heads, microbatch=4)
            for level in (Level.TOKENS, Level.FEATURES)
        ]
        assert torch.linalg.norm(sums[1] - sums[0]) <= 1e-5


@every_kind
def test_logits_follow_the_embedding_whatever_was_kept_before(
    family: str, targets: tuple[str, ...]
) -> None:
    task = make_task(family, "mean", model=adapted(family, targets=targets), cache_megabytes=64)
    first, other = moved(task.model, by=0.3), moved(task.model, seed=2, by=0.3)
    task.figures(with_zero_b(first), ALL)
    for state in (first, other, first):
        expected = logits(task, Level.TOKENS, state)
        torch.testing.assert_close(task.figures(state, ALL)[:, :-1], expected, rtol=1e-5, atol=1e-5)
    assert not torch.allclose(task.figures(first, ALL), task.figures(other, ALL), atol=1e-3)


def test_training_turns_to_an_embedding_and_leaves_it_as_told() -> None:
    """ffa: B moves and A does not."""
    task = kind_task("bert", ("word_embeddings", "value"), "mean")
    state = lora.initial_state(task.model, seed=3)
    keys = tuple(key for key in state.keys if not key.endswith("lora_A"))
    order = make_order(state, private_plan(), trainable=keys, local_steps=2)
    delta = train_locally(
        order,
        task=task,
        units=Units.single(ALL),
        noise=NoiseSource.insecure(1),
        random=rng(1, "layer kinds"),
    )
    assert delta.keys == keys
    after = lora.extract(task.model)
    for key in state.keys:
        expected = state.tensors[key]
        if key in keys:
            expected = expected + delta.tensors[key]
            assert delta.tensors[key].abs().max() > 0.01
        torch.testing.assert_close(after.tensors[key], expected)


def test_modules_of_an_embedding_are_in_training_mode_where_they_are_trained() -> None:
    task = kind_task("bert", ("word_embeddings", "value"), "mean")
    state: AdapterState = moved(task.model)
    lora.install(task.model, state)
    trained = lora.set_trainable(task.model, state.keys)
    task.model.training_mode()
    held: dict[int, nn.Module] = {
        id(p): module for module in task.model.modules() for p in module.parameters(recurse=False)
    }
    assert all(held[id(parameter)].training for parameter in trained.values())
    shapes: dict[str, Tensor] = dict(trained)
    assert all(shapes[key].shape == state.tensors[key].shape for key in state.keys)
    task.model.requires_grad_(False)
    task.model.frozen_mode()


def hooks_of(model: nn.Module) -> dict[str, tuple[int, int]]:
    return {
        name: (len(module._forward_hooks), len(module._backward_hooks))
        for name, module in model.named_modules()
    }


def test_hooks_for_gradients_of_an_embedding_leave_nothing_behind() -> None:
    task = make_task("bert", "mean", model=adapted("bert", targets=("word_embeddings", "value")))
    before = hooks_of(task.model)
    summed(task, [0, 1], state=moved(task.model), clip_norm=1.0)
    assert hooks_of(task.model) == before
    modules = dict(task.model.named_modules()).items()
    assert not [name for name, module in modules if getattr(module, "activations", None)]
    assert all(getattr(p, "grad_sample", None) is None for p in task.model.parameters())


@pytest.mark.parametrize(("family", "targets"), [KINDS[1], KINDS[5], KINDS[6]])
def test_bfloat16_products_keep_the_bound_and_nearly_the_sum(
    family: str, targets: tuple[str, ...]
) -> None:
    exact = kind_task(family, targets, "mean")
    model = adapted(family, targets=targets, rslora=True, model={"precision": "bfloat16"})
    short = make_task(family, "mean", model=model)
    state = moved(model)
    for row in (0, 4, 8):
        alone = summed(short, [row], state=state, clip_norm=1e-3)
        assert alone.norm() <= 1e-3 * (1 + ROUNDING)
        reference = summed(exact, [row], state=state, clip_norm=1e-3)
        assert 0 < torch.linalg.norm(alone - reference) <= 0.1 * reference.norm()
