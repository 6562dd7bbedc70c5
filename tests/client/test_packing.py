"""Texts side by side in one row of places give what texts of one width by themselves give."""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any

import numpy as np
import pytest
import torch
import transformers as tf
from hypothesis import given
from hypothesis import strategies as st

from hushtune.client import cohort, dp
from hushtune.client.together import Asked
from hushtune.common import lora
from hushtune.common.adapter import AdapterState
from hushtune.common.config import AdapterConfig, ModelConfig
from hushtune.common.config_augment import AugmentConfig
from hushtune.common.model import AdaptedModel, Head, Level
from hushtune.common.packed_attention import FAMILIES
from hushtune.common.tasks.activations import TokenRows
from hushtune.common.tasks.kinds.classification import text_classification
from hushtune.common.tasks.packed_rows import packed_inputs, packed_pieces
from hushtune.common.tasks.units import Units
from hushtune.common.tuning import GradientMethod

from .families import adapted, flat, labels, moved, summed, token_rows, with_change
from .test_images import text_task

COUNT = 40
SINGLE = Units.single(np.arange(COUNT, dtype=np.int64))
MIXED = Units(
    np.arange(COUNT, dtype=np.int64), np.array([0, 1, 2, 5, 6, 14, 20, 21, COUNT], dtype=np.int64)
)
TINY = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 48,
    "vocab_size": 50,
    "max_position_embeddings": 80,
}
CONFIGS = {
    "bert": lambda: tf.BertConfig(**TINY),
    "camembert": lambda: tf.CamembertConfig(**TINY),
    "distilbert": lambda: tf.DistilBertConfig(
        dim=32, n_layers=3, n_heads=4, hidden_dim=48, vocab_size=50
    ),
    "electra": lambda: tf.ElectraConfig(**TINY, embedding_size=16),
    "roberta": lambda: tf.RobertaConfig(**TINY),
    "xlm-roberta": lambda: tf.XLMRobertaConfig(**TINY),
}


def made(
    family: str, head: str = "mean", *, precision: str = "float32", layers: int = 2
) -> AdaptedModel:
    targets = ("q_lin", "v_lin") if family == "distilbert" else ("query", "value")
    with torch.random.fork_rng():
        torch.manual_seed(7)
        base = tf.AutoModel.from_config(CONFIGS[family](), attn_implementation="eager").eval()
    model = lora.attach(
        base,
        model=ModelConfig(head="mean", precision=precision),
        adapter=AdapterConfig(rank=2, alpha=4.0, layers=layers, targets=targets),
        num_outputs=3,
        seed=0,
        head=Head(head),
    )
    model.gradients, model.separator = GradientMethod.FUSED, 9
    return model


def task_of(model: AdaptedModel, family: str = "bert", *, longest: int = 70, **others: Any) -> Any:
    rows = token_rows("roberta" if "roberta" in family else family, COUNT, longest=longest)
    return text_classification(model, rows, labels(COUNT), weights=(0.5, 1.0, 4.0), **others)


@pytest.fixture(autouse=True)
def threads() -> None:
    torch.set_num_threads(1)


# ---------------------------------------------------------------------------- the same sum ----


@pytest.mark.parametrize("family", sorted(FAMILIES))
@pytest.mark.parametrize("head", ["mean", "pair"])
@pytest.mark.parametrize("units", [SINGLE, MIXED], ids=["rows", "units"])
@pytest.mark.parametrize("level", [Level.TOKENS, Level.HIDDEN])
def test_side_by_side_the_clipped_sum_is_the_same(
    family: str, head: str, units: Units, level: Level
) -> None:
    model = made(family, head)
    task, state = task_of(model, family, cache_megabytes=8), moved(model)
    without_a = tuple(key for key in state.keys if "lora_A" not in key)
    task.level(state, state.keys)
    for keys in (state.keys, without_a):
        norm = float(summed(task, [0], state=state, clip_norm=1e9, keys=keys).norm())
        for clip in (0.5 * norm, 100 * norm):  # what is clipped hides how long a gradient was
            how: dict[str, Any] = {"state": state, "clip_norm": clip, "keys": keys, "level": level}
            found = []
            for pack, microbatch in ((False, 4), (True, 2), (True, 16)):
                model.pack = pack
                assert model.packs is pack
                pieces = task.microbatches(units, microbatch, level)
                assert all((piece.packing is not None) is pack for piece in pieces)
                found.append(summed(task, units, microbatch=microbatch, **how))
            assert found[0].norm() > 0.05 * clip
            for packed in found[1:]:
                assert torch.linalg.norm(packed - found[0]) <= 1e-5 * clip


@pytest.mark.parametrize("inner", [True, False])
def test_with_other_adapters_too(inner: bool) -> None:
    """With R between the factors, or a change of the frozen weights."""
    model = adapted("bert", inner=inner)
    model.gradients = GradientMethod.FUSED
    task, state = task_of(model), moved(model)
    # Where R is trained, the factors beside it are not.
    keys = tuple(key for key in state.keys if not inner or key[-1] not in "AB")
    if not inner:
        state = with_change(state, 3)
    found = []
    for model.pack in (False, True):
        how: dict[str, Any] = {"state": state, "clip_norm": 0.1, "keys": keys, "microbatch": 4}
        found.append(summed(task, SINGLE, **how))
    assert found[0].norm() > 0.1
    assert torch.linalg.norm(found[1] - found[0]) <= 1e-6


def test_in_bfloat16_it_differs_by_rounding_alone() -> None:
    model = made("bert", precision="bfloat16", layers=0)
    task, state = task_of(model), moved(model)
    found = []
    for model.pack in (False, True):
        found.append(summed(task, SINGLE, state=state, clip_norm=1e9, microbatch=8))
    assert torch.linalg.norm(found[1] - found[0]) <= 0.02 * torch.linalg.norm(found[0])


@pytest.mark.parametrize("sites", [2, 5, 20])
def test_sites_at_once_side_by_side_get_what_each_gets_alone(sites: int) -> None:
    """Of few sites all weights are one matrix, of many each row has its own."""
    model = made("bert", layers=0)
    task = task_of(model)
    begin = moved(model)
    asked: list[Asked] = []
    for place, rows in enumerate(np.array_split(np.arange(COUNT, dtype=np.int64), sites)):
        own = moved(model, seed=10 + place)
        trained = {key: torch.nn.Parameter(own.tensors[key].clone()) for key in own.keys}
        asked.append(
            Asked(
                task=task,
                units=Units.single(rows),
                begin=begin,
                trained=trained,
                clip_norm=0.3,
                microbatch=8,
                level=Level.TOKENS,
            )
        )
    model.pack = True
    found = cohort.clipped_sums(asked)
    model.pack = False
    for one, sums in zip(asked, found, strict=True):
        own = {key: parameter.detach() for key, parameter in one.trained.items()}
        state = AdapterState(begin.spec, own)
        alone = summed(task, one.units, state=state, clip_norm=0.3, microbatch=4)
        assert alone.norm() > 0.05
        assert torch.linalg.norm(flat(sums) - alone) <= 1e-5


# ---------------------------------------------------------------------- whose it is alone ----


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("hidden", "rank", "size", "level"),
    [
        (384, 4, 24, Level.TOKENS),
        (384, 1, 24, Level.TOKENS),
        (384, 4, 24, Level.HIDDEN),
        (128, 2, 3, Level.TOKENS),
        (64, 1, 5, Level.TOKENS),
    ],
)
def test_what_is_computed_for_a_unit_does_not_depend_on_who_else_is_there(
    precision: str, hidden: int, rank: int, size: int, level: Level
) -> None:
    """To the bit: else a record would move what others add to a sum, which no clipping bounds.

    Products of some shapes, of a single row among them, take other roads through the processor."""
    config = tf.BertConfig(**{**TINY, "hidden_size": hidden, "num_attention_heads": hidden // 32})
    with torch.random.fork_rng():
        torch.manual_seed(7)
        base = tf.AutoModel.from_config(config, attn_implementation="eager").eval()
    layers = 0 if level is Level.TOKENS else 2
    adapter = AdapterConfig(rank=rank, layers=layers)
    how: dict[str, Any] = {"adapter": adapter, "num_outputs": 3, "seed": 0}
    model = lora.attach(base, model=ModelConfig(head="mean", precision=precision), **how)
    model.gradients, model.pack = GradientMethod.FUSED, True
    task = task_of(model, cache_megabytes=8)
    task.level(moved(model), moved(model).keys)
    lora.install(model, moved(model))
    trained = lora.set_trainable(model, lora.initial_state(model, seed=0).keys)
    random = np.random.default_rng(1)
    first: dict[int, dict[str, torch.Tensor]] = {}
    again = 0
    with dp.per_example_gradients(model):
        for _ in range(8):
            chosen = random.permutation(COUNT)[: random.integers(1, COUNT)]
            for piece in task.microbatches(SINGLE.take(chosen), size, level):
                batch = task.batch(piece.rows, level, packing=piece.packing)
                task.example_losses(batch).sum().backward()
                samples = {key: parameter.grad_sample for key, parameter in trained.items()}
                for place, row in enumerate(piece.units.rows.tolist()):
                    own = {key: sample[place].clone() for key, sample in samples.items()}
                    again += row in first
                    before = first.setdefault(row, own)
                    assert all(torch.equal(before[key], own[key]) for key in own)
                for parameter in trained.values():
                    parameter.grad_sample = parameter.grad = None
    assert again > COUNT


def test_no_pair_of_matrices_is_multiplied_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of a single pair some libraries make another problem, whose rounding is another."""
    model = made("bert")
    model.pack = True
    task, state = task_of(model), moved(model)
    bmm, batches = torch.bmm, list[int]()

    def seen(left: torch.Tensor, right: torch.Tensor) -> torch.Tensor:
        batches.append(len(left))
        return bmm(left, right)

    monkeypatch.setattr(torch, "bmm", seen)
    found = summed(task, [3], state=state, clip_norm=1e9)
    assert min(batches) == 2
    monkeypatch.undo()
    model.pack = False
    assert torch.linalg.norm(summed(task, [3], state=state, clip_norm=1e9) - found) <= 1e-4


@given(
    sizes=st.lists(st.lists(st.integers(1, 70), min_size=1, max_size=4), min_size=1, max_size=25),
    size=st.integers(1, 12),
    max_tokens=st.sampled_from([8, 37, 70]),
)
def test_pieces_hold_each_unit_once_and_whole_in_as_many_places_as_ever(
    sizes: list[list[int]], size: int, max_tokens: int
) -> None:
    lengths = [min(length, max_tokens) for unit in sizes for length in unit]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype(np.int64)
    ids = torch.arange(1, int(offsets[-1]) + 1, dtype=torch.int32)
    tokens = TokenRows(ids, offsets, 0, max_tokens)
    starts = np.concatenate([[0], np.cumsum([len(unit) for unit in sizes])]).astype(np.int64)
    units = Units(np.arange(len(lengths), dtype=np.int64), starts)
    pieces = packed_pieces(tokens, units, size)
    seen = [
        tuple(piece.units.rows[start:end])
        for piece in pieces
        for start, end in pairwise(piece.units.starts)
    ]
    whole = [tuple(range(start, end)) for start, end in pairwise(starts)]
    assert sorted(seen) == whole
    for piece in pieces:
        packing = piece.packing
        assert packing is not None
        assert packing.rows == len(piece.units.rows)
        assert len(piece.rows) == packing.most_rows >= packing.rows
        assert packing.places == 32 * size or (len(piece.units) == 1 and packing.places > 32 * size)
        inputs = packed_inputs(tokens, piece.rows, packing, None)
        taken = torch.zeros(packing.places, dtype=torch.long)
        for row, start in zip(piece.units.rows, packing.starts, strict=True):
            own = ids[offsets[row] : offsets[row + 1]]
            end = start + len(own)
            assert inputs["input_ids"][0, start:end].tolist() == own.tolist()
            assert inputs["position_ids"][0, start:end].tolist() == list(range(len(own)))
            taken[start:end] += 1
        assert inputs["attention_mask"][0].tolist() == taken.tolist()
        assert int(taken.max()) == 1
        where = packing.spread(torch.arange(len(piece.rows)))
        for place, start in enumerate(packing.starts):
            assert int(where[start]) == place
        values = torch.arange(packing.places * 2).view(packing.places, 2).float()
        joined = packing.joined(packing.split(values))
        filled = sum(rows * width for rows, width in packing.blocks)
        assert torch.equal(joined[:filled], values[:filled])
        assert not joined[filled:].any()


# ------------------------------------------------------------------------ where it is done ----


def test_only_where_it_is_asked_for_and_understood() -> None:
    def packs(model: AdaptedModel, *, method: GradientMethod = GradientMethod.FUSED) -> bool:
        model.gradients, model.pack = method, True
        return model.packs

    of = partial(adapted, "bert")
    assert packs(of())
    assert not packs(of(), method=GradientMethod.HOOKS)  # which know one row an example
    assert not packs(adapted("bert", "own"))
    assert not packs(of(dropout=0.5))
    assert not packs(of(targets=("word_embeddings", "value"), layers=0))
    for family in ("gpt2", "llama", "vit", "resnet", "mpnet"):
        assert not packs(adapted(family))
    model = of()
    assert not model.packs  # nobody asked
    model._inner[0].config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
    fused_attention = of()
    fused_attention._inner[0].config._attn_implementation = "sdpa"  # pyright: ignore[reportPrivateUsage]
    assert not packs(fused_attention)


def test_changed_examples_are_not_packed() -> None:
    """Nor left as they are."""
    task = text_task(AugmentConfig(word_dropout=0.3))
    task.model.gradients, task.model.pack = GradientMethod.FUSED, True
    assert task.model.packs
    pieces = task.microbatches(Units.single(np.arange(5)), 4, Level.TOKENS)
    assert pieces
    assert all(piece.packing is None for piece in pieces)


def test_features_are_computed_by_rows_as_ever() -> None:
    model = made("bert")
    task = task_of(model)
    model.pack = True
    pieces = task.microbatches(SINGLE, 4, Level.FEATURES)
    assert all(piece.packing is None for piece in pieces)


def test_the_base_is_left_as_it_was() -> None:
    model = made("bert")
    task, state = task_of(model), moved(model)
    config = model._inner[0].config  # pyright: ignore[reportPrivateUsage]
    inputs = task.batch(np.arange(5), Level.TOKENS).inputs
    lora.install(model, state)
    model.frozen_mode()
    before = model(inputs)
    model.pack = True
    summed(task, SINGLE, state=state, clip_norm=1.0, microbatch=4)
    model.frozen_mode()
    assert config._attn_implementation == "eager"
    assert torch.equal(model(inputs), before)
